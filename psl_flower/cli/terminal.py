"""Shared parts of the owner's and restorer's commands: passphrases, sizes, folders, trust."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from psl_flower.errors import PassphraseError, StoreNotFound
from psl_flower.sealed import keyfile
from psl_flower.sealed import manifest as manifests
from psl_flower.sealed.identities import Identity, PublicIdentity, Role
from psl_flower.sealed.labels import Labels
from psl_flower.sealed.manifest import SignedManifest
from psl_flower.sealed.matching import place_of
from psl_flower.sealed.newest_dataset import read_newest_dataset
from psl_flower.sealed.seen import SeenBook
from psl_flower.text import read_pairs

PassphraseFile = Annotated[Path | None, typer.Option(help="File whose first line is the passphrase of the keys given.")]
OwnerPrivate = Annotated[Path, typer.Option("--owner-key", help="The owner's private key file.")]
OwnerPublic = Annotated[str, typer.Option("--owner", help="Public key of the owner to trust, or a file with it.")]
State = Annotated[
    Path | None,
    typer.Option(help="Folder that remembers what was seen [$PSL_STATE, or psl-flower in the XDG state folder]."),
]


def passphrase_source(file: Path | None) -> Callable[[str], str]:
    """Return a reader of a passphrase: a file's first line, or the terminal; never the command line."""

    def ask(name: str) -> str:
        if file is not None:
            return keyfile.passphrase_in(file, name)
        if not sys.stdin.isatty():
            raise PassphraseError(f"{name} is protected by a passphrase; give it with --passphrase-file")
        return getpass.getpass(f"Passphrase of {name}: ")

    return ask


def new_passphrase(file: Path | None) -> str:
    """Ask for a new passphrase, twice if it is typed.

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
    """Read NAME=PUB options; raises ConfigError if one is not of this form, or a name comes twice."""
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


@dataclass(frozen=True, slots=True)
class Trusted:
    """A manifest, the folder it is in, what was seen before, and whether its owner was named now or seen before.

    `labels` are those in the folder, if there are any and a reader was named.
    """

    signed: SignedManifest
    folder: Path
    seen: SeenBook
    known: bool
    labels: Labels | None

    @property
    def labels_N(self) -> NDArray[np.int64] | None:
        """The newest labels (N,), where they are known."""
        return self.labels.labels_N if self.labels is not None else None


def load_trusted(path: Path, owner: str, state: Path | None, reader: Identity | None = None) -> Trusted:
    """Load a manifest, or the one in a folder, and hold it to the owner named and to what was seen before.

    With a reader, who is about to write, labels and audit log in the folder are held to what was seen, too.
    """
    trusted, seen = keyfile.load_public(owner, Role.OWNER) if owner else None, SeenBook(state)
    if reader is None:
        with seen.open() as memory:
            signed = manifests.load(path, trusted)
            known, labels = memory.check(signed), None
    else:
        newest = read_newest_dataset(path, seen, trusted, reader=reader, whole=False)
        signed, known, labels = newest.signed, newest.known, newest.labels
    return Trusted(signed, folder_of(path), seen, known or trusted is not None, labels)


def folder_of(manifest: Path) -> Path:
    """Return the folder of a manifest, which may itself be given."""
    return manifest if manifest.is_dir() else manifest.parent


def stores_beside(manifest_path: Path, stores: Sequence[str]) -> list[str]:
    """Return the named stores, or those beside the manifest; raises StoreNotFound if there are none."""
    folder = folder_of(manifest_path)
    found = list(stores) or sorted(str(path) for path in folder.glob("store-[0-9]*") if path.is_dir())
    if not found:
        raise StoreNotFound(f"no store lies beside {manifest_path}; name them with --store")
    if not stores:
        manifest = manifests.load(manifest_path).manifest
        if len(found) > len(manifest.stores):
            # A rotation has dropped a node; its folder may still be there.
            return [str(place_of(folder, manifest, entry.upper)) for entry in manifest.stores]
    return found
