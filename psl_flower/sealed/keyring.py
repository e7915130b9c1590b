"""The private keys of one machine: a folder of key files, or a single one, found by public key."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from psl_flower.errors import ConfigError, IdentityError, PassphraseError
from psl_flower.sealed import keyfile
from psl_flower.sealed.identities import Identity, PublicIdentity, Role
from psl_flower.sealed.manifest import LOCK_FILE
from psl_flower.system.files import locked
from psl_flower.system.folders import make_ignored_folder

# A demonstration on one machine: two restorers, both needed.
DEMO_RESTORERS = ("restorer-1", "restorer-2")
# Where a program without a terminal finds the passphrase of its keys.
PASSPHRASE_VARIABLE = "PSL_PASSPHRASE_FILE"  # nosec B105 # the name of a variable


class KeyRing:
    """The key files given; a private key is read only when it is asked for.

    `place` is a folder, whose ``*.key`` files count, or one key file. The first line of `passphrase_file`, by default
    ``$PSL_PASSPHRASE_FILE``, is the passphrase of the keys that have one.

    Raises
    ------
    ConfigError
        If there is no such folder or file.
    """

    def __init__(self, place: Path, passphrase_file: Path | None = None) -> None:
        if not place.exists():
            raise ConfigError(f"{place}: no such key file, or folder of key files")
        self.place = place
        self._files = sorted(place.glob("*.key")) if place.is_dir() else [place]
        named = os.environ.get(PASSPHRASE_VARIABLE)
        self._passphrase_file = passphrase_file or (Path(named) if named else None)

    def public(self, role: Role) -> list[tuple[PublicIdentity, Path]]:
        """Return the public keys of a role whose private keys are here, each with its file.

        Raises
        ------
        IdentityError
            If a file is not a key file.
        """
        found = ((keyfile.load_public(str(file)), file) for file in self._files)
        return [(identity, file) for identity, file in found if identity.role is role]

    def find(self, public: PublicIdentity) -> Identity | None:
        """Return the private key that belongs to a public one; None if it is not here.

        Raises
        ------
        IdentityError
            If its file is damaged, readable by others, or its passphrase is missing or wrong.
        """
        for identity, file in self.public(public.role):
            if identity == public:
                return keyfile.load(file, self._passphrase)
        return None

    @property
    def _passphrase(self) -> Callable[[str], str] | None:
        file = self._passphrase_file
        return functools.partial(keyfile.passphrase_in, file) if file is not None else None


@dataclass(frozen=True, slots=True)
class DemoKeys:
    """The keys of all parties of a simulation: one machine holds them all, so they protect nothing from its owner."""

    owner: Identity
    lower: Identity
    nodes: tuple[PublicIdentity, ...]
    restorers: dict[str, PublicIdentity]


def demo_keys(folder: Path, num_nodes: int) -> DemoKeys:
    """Return the demonstration keys in a folder; those that are missing are made first.

    Raises
    ------
    IdentityError
        If a file there is not what it should be.
    StoreError
        If the disk refuses.
    """
    if not folder.exists():
        # Not the permissions of a folder that somebody else made and named: its key files are private anyway.
        make_ignored_folder(folder)
    with locked(folder / LOCK_FILE):
        return DemoKeys(
            owner=_made(folder, Role.OWNER, "owner"),
            lower=_made(folder, Role.LOWER, "lower"),
            nodes=tuple(_made(folder, Role.NODE, f"node-{m:03d}").public for m in range(num_nodes)),
            restorers={name: _made(folder, Role.RESTORER, name).public for name in DEMO_RESTORERS},
        )


def _made(folder: Path, role: Role, name: str) -> Identity:
    file = folder / f"{name}.key"
    if not file.exists():
        keyfile.save(Identity.generate(role, name), file)
    try:
        return keyfile.load(file).expect(role)
    except PassphraseError:
        raise IdentityError(f"{file}: keys of a simulation have no passphrase; name another folder with keys") from None
