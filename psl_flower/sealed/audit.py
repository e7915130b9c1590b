"""The audit log: who was given which images, when and why, written before the images are released.

    audit.log    one line per entry: {"entry": {...}, "signatures": [{"public": ..., "signature": ...}, ...]}
    audit.head   a signed document: how many entries there are, and the digest of the last

Each entry names the SHA-256 of the line before, and is signed by everyone who took part. Both files are
replaced whole, log before head, and a head that a crash left behind is mended before the next entry, so that the log
is at most one valid entry ahead. Who can put back an old log together with its old head is found out by those who saw
the newer one (`SeenBook`). Readers take no lock, since they may not be allowed to write here: they read again where the
head has changed meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from psl_flower.errors import AuditLogEdited, AuditLogTruncated, StoreError, StoreNotFound
from psl_flower.sealed import envelope
from psl_flower.sealed.identities import Identity, PublicIdentity, signature_is_good
from psl_flower.sealed.manifest import Manifest, SignedManifest
from psl_flower.sealed.seen import Memory, SeenBook, opened
from psl_flower.sealed.suite import Purpose, digest
from psl_flower.system.files import DISK, Disk, locked, read_file, write_file
from psl_flower.system.folders import make_folder
from psl_flower.text import counted

FILE = "audit.log"
HEAD = envelope.DocumentKind(b"PSLAUDIT", Purpose.SIGN_AUDIT_HEAD, "audit head")
_LIMIT = 1 << 30
_ATTEMPTS = 100


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry."""

    number: int  #: Number of the entry, from 0.
    previous: str  #: Hex SHA-256 of the line before; zeros for the first.
    #: Hex names of the dataset and of the manifest file that it was done by.
    dataset: str
    manifest: str
    when: str  #: UTC, as the clock of the machine had it.
    action: str  #: "restore", "answer" (a node, to a remote request) or "rotate".
    who: tuple[str, ...]  #: Names, each with the key's fingerprint.
    images: tuple[int, ...]  #: Global sample indices.
    why: str  #: Reason, in their words.


class _Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    public: str
    signature: bytes


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    entry: msgspec.Raw
    signatures: tuple[_Signature, ...]


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dataset: bytes
    count: int
    last: bytes


class AuditLog:
    """An audit log on disk; its head lies beside it."""

    def __init__(self, path: Path, disk: Disk = DISK) -> None:
        self.path = path
        self._head = path.with_suffix(".head")
        self._disk = disk

    def append(
        self,
        signed: SignedManifest,
        who: Sequence[Identity],
        action: str,
        images: Sequence[int],
        why: str,
        *,
        seen: SeenBook | None = None,
    ) -> Entry:
        """Write an entry, signed by everyone who takes part, make it durable, and remember it in `seen`.

        Raises
        ------
        AuditError
            If the log so far cannot be trusted, or is shorter than one seen: nothing may be released on top of it.
        """
        make_folder(self.path.parent, disk=self._disk)
        with locked(self.path.with_suffix(".lock")):
            with opened(seen) as memory:
                lines, _, vouched = self._read(signed.manifest, memory)
            if vouched < len(lines):
                self._write_head(signed.manifest, lines, who)  # or a second crash would leave the log two ahead
            entry = Entry(
                number=len(lines),
                previous=digest(lines[-1]).hex() if lines else bytes(32).hex(),
                dataset=signed.manifest.dataset.hex(),
                manifest=signed.digest.hex(),
                when=envelope.now(),
                action=action,
                who=tuple(f"{person.name} ({person.role} {person.public.fingerprint})" for person in who),
                images=tuple(images),
                why=why,
            )
            raw = msgspec.json.encode(entry)
            signatures = tuple(_Signature(str(p.public), p.sign(Purpose.SIGN_AUDIT, raw)) for p in who)
            lines.append(msgspec.json.encode(_Line(msgspec.Raw(raw), signatures)))
            write_file(self.path, b"".join(line + b"\n" for line in lines), mode=0o644, disk=self._disk)
            self._write_head(signed.manifest, lines, who)
            with opened(seen) as memory:
                self._remember(lines, signed.manifest, memory)
        return entry

    def read(self, manifest: Manifest, seen: SeenBook | None = None) -> list[Entry]:
        """Check the whole log, also against `seen`, and return its entries, oldest first.

        Raises
        ------
        AuditLogEdited
            If an entry was changed, moved, or not signed by a person whom the manifest names.
        AuditLogTruncated
            If entries are missing.
        """
        with opened(seen) as memory:
            return self.check(manifest, memory)

    def check(self, manifest: Manifest, memory: Memory) -> list[Entry]:
        """Do as `read` does, with a memory that is open already."""
        return self._read(manifest, memory)[1]

    def _read(self, manifest: Manifest, memory: Memory) -> tuple[list[bytes], list[Entry], int]:
        """Return the log's lines, its entries, and how many of them the head vouches for."""
        lines, head = self._files()
        entries, vouched = self._check(lines, head, manifest)
        self._remember(lines, manifest, memory)
        return lines, entries, vouched

    def _write_head(self, manifest: Manifest, lines: list[bytes], who: Sequence[Identity]) -> None:
        head = _Head(manifest.dataset, len(lines), digest(lines[-1]))
        data = envelope.sign(HEAD, envelope.encode(head), list(who))
        write_file(self._head, data, mode=0o644, disk=self._disk)

    def _remember(self, lines: list[bytes], manifest: Manifest, memory: Memory) -> None:
        memory.check_audit(manifest.dataset, str(self.path.resolve()), [digest(line) for line in lines])

    def _files(self) -> tuple[list[bytes], bytes | None]:
        """Return the log's lines and the head that belongs to them, while others may be writing both."""
        head = self._head_data()
        for _ in range(_ATTEMPTS):
            lines, before = self._lines(), head
            head = self._head_data()
            if head == before:
                break
        return lines, head

    def _head_data(self) -> bytes | None:
        try:
            return read_file(self._head, limit=envelope.MAX_BYTES)
        except StoreNotFound:
            return None

    def _lines(self) -> list[bytes]:
        try:
            data = read_file(self.path, limit=_LIMIT)
        except StoreNotFound:
            return []
        if data and not data.endswith(b"\n"):
            raise AuditLogTruncated(f"{self.path}: the last line is cut")
        return data.split(b"\n")[:-1]

    def _check(self, lines: list[bytes], head: bytes | None, manifest: Manifest) -> tuple[list[Entry], int]:
        entries, previous = [], bytes(32)
        known = _signers(manifest)
        for number, line in enumerate(lines):
            entries.append(self._check_line(line, number, previous, manifest, known))
            previous = digest(line)
        return entries, self._check_head(lines, head, manifest, known)

    def _check_line(
        self, line: bytes, number: int, previous: bytes, manifest: Manifest, known: dict[str, bytes]
    ) -> Entry:
        where = f"{self.path}: entry {number}"
        try:
            parsed = msgspec.json.decode(line, type=_Line)
            raw = bytes(parsed.entry)
            entry = msgspec.json.decode(raw, type=Entry)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise AuditLogEdited(f"{where} is not an entry") from None
        # Only one spelling of a line is valid, so that no byte can change unnoticed.
        if msgspec.json.encode(parsed) != line:
            raise AuditLogEdited(f"{where} was changed")
        if (entry.number, entry.previous, entry.dataset) != (number, previous.hex(), manifest.dataset.hex()):
            raise AuditLogEdited(f"{where} does not follow the one before: entries were removed, moved or exchanged")
        if not parsed.signatures or len(parsed.signatures) != len(entry.who):
            raise AuditLogEdited(f"{where} is not signed by all who took part")
        for part, person in zip(parsed.signatures, entry.who, strict=True):
            sign_key = known.get(part.public)
            if sign_key is None:
                raise AuditLogEdited(f"{where} is signed by somebody whom the manifest does not name")
            if not person.endswith(f" {PublicIdentity.parse(part.public).fingerprint})"):
                raise AuditLogEdited(f"{where} names others than those who signed it")
            if not signature_is_good(sign_key, part.signature, Purpose.SIGN_AUDIT, raw):
                raise AuditLogEdited(f"{where} was changed after it was signed")
        return entry

    def _check_head(self, lines: list[bytes], data: bytes | None, manifest: Manifest, known: dict[str, bytes]) -> int:
        if data is None:
            if len(lines) > 1:
                raise AuditLogTruncated(f"{self._head} is missing, so cut entries cannot be detected")
            return 0
        try:
            signed = envelope.parse(HEAD, data, str(self._head))
            head = envelope.decode(signed.payload, _Head, str(self._head))
        except StoreError as error:
            raise AuditLogEdited(str(error)) from None
        if not set(signed.signers) <= set(known.values()) or head.dataset != manifest.dataset:
            raise AuditLogEdited(f"{self._head} is not of this dataset")
        if len(lines) < head.count:
            raise AuditLogTruncated(f"{self.path} has {counted(len(lines), 'entry')}; {head.count} were written")
        # After a crash between the two writes the log is one entry ahead of its head.
        if len(lines) > head.count + 1 or (head.count and digest(lines[head.count - 1]) != head.last):
            raise AuditLogEdited(f"{self.path} and {self._head} do not belong together")
        return head.count


def _signers(manifest: Manifest) -> dict[str, bytes]:
    """Return the Ed25519 keys of all whom the manifest names, by the text of their public keys."""
    texts = [manifest.owner, *(m.public for m in manifest.restorers), *(s.node for s in manifest.stores)]
    return {t: PublicIdentity.parse(t).sign_key for t in (*texts, *(d.public for d in manifest.dropped))}
