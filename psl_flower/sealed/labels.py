"""Labels: a chain of signed versions beside the manifest, for the Lower model and those who may correct them.

    labels/000000.psl, 000001.psl, ...   each a signed document that names the digest of the one before

A version brings the labels of new images ("images", by the owner), corrects some ("relabel", by the owner or
a restorer), or repeats all of them for new readers ("snapshot", by the owner, at a rotation). Nothing is
overwritten. Where the dataset has a Lower key, the body is encrypted under a random key that is sealed to the
Lower, the owner and each restorer; otherwise it is in clear, and the folder must be given to the Lower only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from psl_flower.errors import LabelError, StoreError
from psl_flower.sealed import envelope
from psl_flower.sealed import manifest as manifests
from psl_flower.sealed.identities import Identity, PublicIdentity, Role
from psl_flower.sealed.manifest import DRAFT_FILE, LOCK_FILE, Manifest, Part
from psl_flower.sealed.secret import Secret
from psl_flower.sealed.seen import SeenBook, opened
from psl_flower.sealed.shares import member_of
from psl_flower.sealed.suite import Purpose, context, digest, unwrap, wrap
from psl_flower.system.files import DISK, Disk, locked, read_file, write_file
from psl_flower.text import counted

Kind = Literal["images", "relabel", "snapshot"]

FOLDER = "labels"
KIND = envelope.DocumentKind(b"PSLLABEL", Purpose.SIGN_LABELS, "label version")


class ReaderKey(Part, frozen=True, kw_only=True):
    """The version's key, sealed to one reader."""

    public: str
    key: bytes


class Body(Part, frozen=True, kw_only=True):
    """Content of a version: labels (u32 each) of images from `first` on, and changes (image, new label)."""

    why: str = ""
    first: int = 0
    labels: bytes = b""
    changes: tuple[tuple[int, int], ...] = ()


class Version(Part, frozen=True, kw_only=True):
    """One label version, as signed."""

    dataset: bytes
    version: int
    previous: bytes
    generation: int
    kind: Kind
    author: str
    name: str
    when: str
    readers: tuple[ReaderKey, ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Change:
    """One label version for people."""

    version: int  #: Number of the version, from 0.
    #: Kind, author (by name), time and reason of the version.
    kind: str
    who: str
    when: str
    why: str
    changes: tuple[tuple[int, int, int], ...]  #: (image, old label, new label) of a "relabel".


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of the newest version."""

    labels_N: NDArray[np.int64]  #: (N,) index into the class names.
    version: int  #: The newest version's number.
    history: tuple[Change, ...]  #: All versions, oldest first; those before a snapshot only for who could read them.
    digests: tuple[bytes, ...]  #: SHA-256 of each version's file, for `Memory.check_labels`.


class LabelBook:
    """The label versions in an owner's folder."""

    def __init__(self, out: Path, disk: Disk = DISK) -> None:
        self._out = out
        self.folder = out / FOLDER
        self._disk = disk

    def read(self, manifest: Manifest, reader: Identity | None = None, upto: int | None = None) -> Labels:
        """Check the chain and return the labels of the newest version, or of an earlier one.

        Parameters
        ----------
        manifest : Manifest
            Says who may write labels.
        reader : Identity, optional
            Lower, owner or restorer; needed where labels are sealed.
        upto : int, optional
            The last version to apply.

        Raises
        ------
        LabelError
            If versions are missing, changed, or not by someone entitled, or sealed to others.
        RevokedRestorer, UnknownRestorer
            If they are sealed to others, and the reader is a restorer who was dropped, or never was one.
        """
        chain = self._whole_chain(manifest)
        if upto is not None:
            if upto >= len(chain):
                raise LabelError(f"{self.folder}: label version {upto} is missing; there are {len(chain)}")
            chain = chain[: upto + 1]
        readable = [self._open(version, reader) for version, _ in chain]
        start = max((k for k, (version, _) in enumerate(chain) if version.kind == "snapshot"), default=0)
        if any(body is None for body in readable[start:]):
            if reader is not None and reader.role is Role.RESTORER:
                member_of(manifest, reader.public, reader.name)
            raise LabelError(
                f"{self.folder}: the labels are sealed; give the key of the Lower, the owner or a restorer"
            )
        given = sum(len(body.labels) // 4 for body in readable if body is not None)
        if given < manifest.num_samples:  # before anything of that size is made
            raise self._unlabelled(manifest.num_samples - given, manifest, upto)
        labels_N = np.full(manifest.num_samples, -1, np.int64)
        history = []
        for (version, _), body in zip(chain, readable, strict=True):
            changes = () if body is None else _apply(version, body, manifest, labels_N)
            why = "(sealed to others)" if body is None else body.why
            history.append(Change(version.version, version.kind, version.name, version.when, why, changes))
        if unlabelled := int((labels_N < 0).sum()):
            raise self._unlabelled(unlabelled, manifest, upto)
        return Labels(labels_N, len(chain) - 1, tuple(history), tuple(found for _, found in chain))

    def _unlabelled(self, count: int, manifest: Manifest, upto: int | None) -> LabelError:
        if upto is not None:
            return LabelError(
                f"{self.folder}: {count} of {counted(manifest.num_samples, 'image')} were added after label version "
                f"{upto}; a run that began with it cannot continue; start a new one"
            )
        return LabelError(f"{self.folder}: no label for {count} of {counted(manifest.num_samples, 'image')}")

    def digests(self, manifest: Manifest) -> list[bytes]:
        """Check the chain, which needs no key, and return the versions' digests; raises LabelError as `read` does."""
        return [found for _, found in self._whole_chain(manifest)]

    def add_images(
        self, manifest: Manifest, owner: Identity, *, first: int, labels: NDArray[np.int64]
    ) -> tuple[int, bytes]:
        """Add the labels of a coming generation's new images; returns the version's number and digest.

        The version that an interrupted ingest of these images wrote is kept.

        Raises
        ------
        LabelError
            If the generation does not follow the folder's newest: its version would replace a valid one.
        """
        body = Body(why="ingest", first=first, labels=labels.astype("<u4").tobytes())
        return self._add_coming(manifest, owner, "images", body)

    def add_snapshot(
        self, manifest: Manifest, owner: Identity, labels: NDArray[np.int64], why: str
    ) -> tuple[int, bytes]:
        """Repeat all labels in a coming generation, for readers who could not read earlier ones; see `add_images`."""
        body = Body(why=why, labels=labels.astype("<u4").tobytes())
        return self._add_coming(manifest, owner, "snapshot", body)

    def relabel(
        self,
        manifest: Manifest,
        author: Identity,
        changes: Sequence[tuple[int, int]],
        why: str,
        *,
        seen: SeenBook | None = None,
    ) -> int:
        """Correct labels: (image, new label) each, and remember it in `seen`. Returns the new version's number.

        Raises
        ------
        LabelError
            If the author is not allowed to, an image or label is out of range, an ingest is unfinished, versions that
            were seen are missing, or the manifest is no longer the folder's newest.
        RevokedRestorer
            If the author is a restorer who was dropped.
        StoreNotFound
            If the folder holds no manifest.
        """
        if author.public.sign_key not in _entitled(manifest, "relabel"):
            if author.role is Role.RESTORER:
                member_of(manifest, author.public, author.name)
            raise LabelError(f"{author.role} {author.name!r} may not change this dataset's labels")
        _check_changes(changes, manifest)
        with locked(self._out / LOCK_FILE):
            if (self._out / DRAFT_FILE).exists():
                raise LabelError(f"{self._out}: repeat the interrupted ingest or rotation, or remove {DRAFT_FILE}")
            # Committed since the caller read its manifest, a generation has a version with the number of this one.
            newest = manifests.load(self._out).manifest
            if newest != manifest:
                raise self._changed(newest)
            body, chain = Body(why=why, changes=tuple(changes)), self._whole_chain(manifest)
            known = [found for _, found in chain]
            with opened(seen) as memory:
                memory.check_labels(manifest.dataset, known)
            number, added = self._add(manifest, author, "relabel", body, chain)
            with opened(seen) as memory:
                memory.check_labels(manifest.dataset, [*known, added])
            return number

    def _add_coming(self, manifest: Manifest, owner: Identity, kind: Kind, body: Body) -> tuple[int, bytes]:
        if (self._out / manifests.FILE).exists():
            newest = manifests.load(self._out)
            if manifest.previous != newest.digest:
                raise self._changed(newest.manifest)
        chain = self._chain(manifest, manifest.generation - 1)
        found = self._left_over(manifest, owner, body, len(chain))
        return (len(chain), found) if found else self._add(manifest, owner, kind, body, chain)

    def _changed(self, newest: Manifest) -> LabelError:
        return LabelError(f"{self._out}: the dataset changed meanwhile (generation {newest.generation}); run it again")

    def _left_over(self, manifest: Manifest, owner: Identity, body: Body, number: int) -> bytes | None:
        """Return the digest of this version, if an interrupted ingest wrote it and continues now.

        Any other file there belongs to a dropped draft, and was never valid.
        """
        path = self.folder / _file(number)
        try:
            signed = envelope.parse(KIND, read_file(path, limit=envelope.MAX_BYTES), str(path))
            version = envelope.decode(signed.payload, Version, str(path))
            same = (version.dataset, version.generation) == (manifest.dataset, manifest.generation)
            if same and signed.signed_by(owner.public) and self._open(version, owner) == body:
                return signed.digest
        except StoreError:
            return None
        return None

    def _add(
        self, manifest: Manifest, author: Identity, kind: Kind, body: Body, chain: list[tuple[Version, bytes]]
    ) -> tuple[int, bytes]:
        number = len(chain)
        bound = context(Purpose.LABELS, manifest.dataset, number)
        plain = envelope.encode(body)
        readers: tuple[ReaderKey, ...] = ()
        if manifest.lower:
            with Secret.random() as key:
                info = context(Purpose.LABEL_KEY, manifest.dataset, number)
                publics = [manifest.owner, manifest.lower, *(member.public for member in manifest.restorers)]
                readers = tuple(
                    ReaderKey(public=p, key=PublicIdentity.parse(p).seal(key.reveal(), info)) for p in publics
                )
                plain = wrap(key, plain, bound)
        version = Version(
            dataset=manifest.dataset,
            version=number,
            previous=chain[-1][1] if chain else bytes(32),
            generation=manifest.generation,
            kind=kind,
            author=str(author.public),
            name=author.name,
            when=envelope.now(),
            readers=readers,
            body=plain,
        )
        data = envelope.sign(KIND, envelope.encode(version), [author])
        write_file(self.folder / _file(number), data, mode=0o600, parents=True, disk=self._disk)
        return number, digest(data)

    def _whole_chain(self, manifest: Manifest) -> list[tuple[Version, bytes]]:
        chain, committed = self._chain(manifest, manifest.generation), manifest.labels_version
        if committed >= 0 and [found for _, found in chain[committed : committed + 1]] != [manifest.labels_digest]:
            raise LabelError(f"{self.folder}: label version {committed} is missing or replaced")
        return chain

    def _chain(self, manifest: Manifest, last: int) -> list[tuple[Version, bytes]]:
        """Return the versions of generations up to `last`, checked, with their digests.

        A version of a later generation is what an interrupted ingest left: it is not yet valid.
        """
        files = sorted(self.folder.glob("[0-9]*.psl")) if self.folder.is_dir() else []
        chain: list[tuple[Version, bytes]] = []
        for number, file in enumerate(files):
            if file.name != _file(number):
                raise LabelError(f"{self.folder}: label version {number} is missing")
            signed = envelope.parse(KIND, read_file(file, limit=envelope.MAX_BYTES), str(file))
            version = envelope.decode(signed.payload, Version, str(file))
            if version.generation > last:
                break
            previous = chain[-1][1] if chain else bytes(32)
            in_order = not chain or version.generation >= chain[-1][0].generation
            if (version.dataset, version.version, version.previous) != (
                manifest.dataset,
                number,
                previous,
            ) or not in_order:
                raise LabelError(f"{file}: is not version {number} of this dataset's labels")
            author = PublicIdentity.parse(version.author)
            if len(signed.signers) != 1 or not signed.signed_by(author):
                raise LabelError(f"{file}: is not signed by the author that it names")
            if author.sign_key not in _entitled(manifest, version.kind, version.generation):
                raise LabelError(f"{file}: {author.role} {version.name!r} may not write label versions of this kind")
            chain.append((version, signed.digest))
        return chain

    def _open(self, version: Version, reader: Identity | None) -> Body | None:
        where = str(self.folder / _file(version.version))
        if not version.readers:
            return envelope.decode(version.body, Body, where)
        for box in version.readers:
            if reader is not None and box.public == str(reader.public):
                plain = reader.open(box.key, context(Purpose.LABEL_KEY, version.dataset, version.version))
                if plain is None:
                    raise LabelError(f"{where}: its key was not sealed to {reader.role} {reader.name!r} as it claims")
                body = unwrap(Secret(plain), version.body, context(Purpose.LABELS, version.dataset, version.version))
                if body is None:
                    raise LabelError(f"{where}: its body does not open under its key")
                return envelope.decode(body, Body, where)
        return None


def _entitled(manifest: Manifest, kind: Kind, generation: int | None = None) -> set[bytes]:
    """Return the Ed25519 keys that may sign such a version; restorers dropped since could, in their time."""
    keys = {PublicIdentity.parse(manifest.owner).sign_key}
    if kind == "relabel":
        keys |= {PublicIdentity.parse(member.public).sign_key for member in manifest.restorers}
        for dropped in manifest.dropped:
            public = PublicIdentity.parse(dropped.public)
            if generation is not None and public.role is Role.RESTORER and generation < dropped.generation:
                keys.add(public.sign_key)
    return keys


def _check_changes(changes: Sequence[tuple[int, int]], manifest: Manifest) -> None:
    for image, label in changes:
        if not 0 <= image < manifest.num_samples:
            raise LabelError(f"image {image} is not in this dataset of {manifest.num_samples}")
        if not 0 <= label < len(manifest.classes):
            raise LabelError(f"image {image}: its label is not one of the {len(manifest.classes)} classes")


def _apply(
    version: Version, body: Body, manifest: Manifest, labels_N: NDArray[np.int64]
) -> tuple[tuple[int, int, int], ...]:
    if version.kind in ("images", "snapshot"):
        new = np.frombuffer(body.labels, "<u4") if len(body.labels) % 4 == 0 else np.empty(0, "<u4")
        _check_changes([(body.first + len(new) - 1, int(new.max()))] if len(new) else [], manifest)
        labels_N[body.first : body.first + len(new)] = new
        return ()
    _check_changes(body.changes, manifest)
    changes = []
    for image, label in body.changes:
        changes.append((image, int(labels_N[image]), label))
        labels_N[image] = label
    return tuple(changes)


def _file(number: int) -> str:
    return f"{number:06d}.psl"
