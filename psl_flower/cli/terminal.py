"""What the owner's and restorer's commands share: passphrases, sizes, places, trust."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from psl_flower.errors import ConfigError, PassphraseError, StoreNotFound
from psl_flower.sealed import keyfile
from psl_flower.sealed import manifest as manifests
from psl_flower.sealed.keys import Identity, PublicIdentity, Role
from psl_flower.sealed.manifest import SignedManifest
from psl_flower.sealed.matching import place_of
from psl_flower.sealed.seen import SeenBook
from psl_flower.system.files import read_file
from psl_flower.text import read_pairs

PassphraseFile = Annotated[Path | None, typer.Option(help="File whose first line is the passphrase of the keys given.")]
OwnerPublic = Annotated[str, typer.Option("--owner-key", help="Public key of the owner to trust, or a file with it.")]
State = Annotated[
    Path | None,
    typer.Option(help="Folder that remembers what was seen [$PSL_STATE, or psl-flower in the XDG state folder]."),
]
_PASSPHRASE_LIMIT = 4096


def passphrase_source(file: Path | None) -> Callable[[str], str]:
    """Return what asks for a passphrase: a file's first line, or the terminal. Never the command line."""

    def ask(name: str) -> str:
        if file is not None:
            text = read_file(file, limit=_PASSPHRASE_LIMIT).decode("utf-8", errors="replace")
            return text.splitlines()[0] if text else ""
        if not sys.stdin.isatty():
            raise PassphraseError(f"{name} is protected by a passphrase; give it with --passphrase-file")
        return getpass.getpass(f"Passphrase of {name}: ")

    return ask


def new_passphrase(file: Path | None) -> str:
    """Ask for a new passphrase, twice where it is typed.

    Raises
    ------
    PassphraseError
        If it is empty or typed differently, or there is no terminal.
    """
    first = passphrase_source(file)("the new key")
    if file is None and getpass.getpass("Once more: ") != first:
        raise PassphraseError("the two passphrases differ")
    if not first:
        raise PassphraseError("an empty passphrase protects nothing")
    return first


def load_identity(path: Path, role: Role, passphrase_file: Path | None = None) -> Identity:
    """Load a private key of one role."""
    return keyfile.load(path, passphrase_source(passphrase_file)).expect(role)


def named_public(texts: Sequence[str], role: Role) -> dict[str, PublicIdentity]:
    """Read NAME=PUB options.

    Raises
    ------
    ConfigError
        If one is not of this form, or a name comes twice.
    """
    named = read_pairs(texts, "NAME=PUBLIC-KEY (or NAME=FILE)")
    return {name: keyfile.load_public(value, role) for name, value in named.items()}


def numbered(texts: Sequence[str]) -> tuple[list[str], dict[int, str]]:
    """Divide options into plain ones and NUMBER=VALUE ones."""
    plain: list[str] = []
    by_number: dict[int, str] = {}
    for text in texts:
        number, equals, value = text.partition("=")
        if equals and number.isdecimal():
            by_number[int(number)] = value
        else:
            plain.append(text)
    return plain, by_number


def parse_size(text: str, name: str) -> tuple[int, int]:
    """Read HEIGHTxWIDTH, or one number for both.

    Raises
    ------
    ConfigError
        If it is neither.
    """
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(part.isdecimal() for part in parts):
        raise ConfigError(f"{name}: expected HEIGHTxWIDTH such as 16x16, got {text!r}")
    return int(parts[0]), int(parts[-1])


def load_trusted(path: Path, owner_key: str, seen: SeenBook | None) -> tuple[SignedManifest, bool]:
    """Load a manifest; returns it and whether its owner is trusted already (named now, or seen before)."""
    owner = keyfile.load_public(owner_key, Role.OWNER) if owner_key else None
    signed = manifests.load(path, owner)
    known = seen.check(signed) if seen is not None else False
    return signed, known or owner is not None


def stores_beside(manifest_path: Path, stores: Sequence[str]) -> list[str]:
    """Return the stores named, or those that lie beside the manifest.

    Raises
    ------
    StoreNotFound
        If there are none.
    """
    folder = manifest_path if manifest_path.is_dir() else manifest_path.parent
    found = list(stores) or sorted(str(path) for path in folder.glob("store-[0-9]*") if path.is_dir())
    if not found:
        raise StoreNotFound(f"no store lies beside {manifest_path}; name them with --store")
    if not stores:
        manifest = manifests.load(manifest_path).manifest
        if len(found) > len(manifest.stores):
            # A rotation has dropped a node; its folder may still be there.
            return [str(place_of(folder, manifest, entry.upper)) for entry in manifest.stores]
    return found
