"""Signed documents: a length-bounded payload and one or more Ed25519 signatures over it.

    8 magic | u16 version | u16 number of signatures n | u32 payload length | payload
    n x (32 key | 64 signature)

Integers are little-endian. A signature covers purpose, magic, version and payload. Nothing of a payload is
decoded before its signatures are checked.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from psl_flower.errors import SignatureInvalid, TrailingBytes, TruncatedFile, UnknownFormat, UnknownVersion
from psl_flower.sealed.identities import Identity, PublicIdentity, signature_is_good
from psl_flower.sealed.suite import Purpose, digest, equal

VERSION = 1
MAX_PAYLOAD_BYTES = 256 << 20
MAX_SIGNATURES = 255
MAX_BYTES = MAX_PAYLOAD_BYTES + 16 + 96 * MAX_SIGNATURES
_HEAD = struct.Struct("<8sHHI")
_SIGNATURE_BYTES = 96
_Document = TypeVar("_Document", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class DocumentKind:
    """A kind of signed document."""

    magic: bytes  #: Its first 8 bytes.
    purpose: Purpose  #: Purpose of its signatures.
    name: str  #: Name for messages.


@dataclass(frozen=True, slots=True)
class Envelope:
    """A parsed signed document; `payload` may be trusted as far as the signers are."""

    payload: bytes  #: Signed content.
    signers: tuple[bytes, ...]  #: Ed25519 public keys whose signatures were checked and found good.
    digest: bytes  #: SHA-256 of the whole file.

    def signed_by(self, public: PublicIdentity) -> bool:
        """Check if this identity is among the signers."""
        return any(equal(signer, public.sign_key) for signer in self.signers)


def encode(document: msgspec.Struct) -> bytes:
    """Encode a document as JSON; binary fields become base64."""
    return msgspec.json.encode(document)


def decode(payload: bytes, kind: type[_Document], where: str) -> _Document:
    """Decode a payload whose signatures were checked.

    Raises
    ------
    UnknownVersion
        If a field is unknown, missing or mistyped: it was signed, so a newer program wrote it.
    """
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnknownVersion(f"{where}: signed, but its fields are not those of version {VERSION}: {error}") from None


def now() -> str:
    """Return the time in UTC, to the second, as signed documents state it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def sign(kind: DocumentKind, payload: bytes, signers: Sequence[Identity]) -> bytes:
    """Return the signed document."""
    body = b"".join(s.public.sign_key + s.sign(kind.purpose, _signed(kind, payload)) for s in signers)
    return _HEAD.pack(kind.magic, VERSION, len(signers), len(payload)) + payload + body


def add_signature(kind: DocumentKind, data: bytes, signer: Identity, where: str) -> bytes:
    """Return the document with one more signature, after checking those it has."""
    envelope = parse(kind, data, where)
    old = data[_HEAD.size + len(envelope.payload) :]
    new = signer.public.sign_key + signer.sign(kind.purpose, _signed(kind, envelope.payload))
    head = _HEAD.pack(kind.magic, VERSION, len(envelope.signers) + 1, len(envelope.payload))
    return head + envelope.payload + old + new


def parse(kind: DocumentKind, data: bytes, where: str) -> Envelope:
    """Check form and signatures.

    Raises
    ------
    UnknownFormat, UnknownVersion, TruncatedFile, TrailingBytes
        If the form is not that of the kind.
    SignatureInvalid
        If it has no signature, or one that is wrong.
    """
    magic, version, count, length = _HEAD.unpack(data[: _HEAD.size].ljust(_HEAD.size, b"\0"))
    if magic[: len(data)] != kind.magic[: len(data)]:
        raise UnknownFormat(f"{where} is not a {kind.name}")
    if len(data) < _HEAD.size:
        raise TruncatedFile(f"{where}: the {kind.name} ends after {len(data)} bytes")
    if version != VERSION:
        raise UnknownVersion(f"{where}: {kind.name} version {version} is unknown; this program knows {VERSION}")
    total = _HEAD.size + length + count * _SIGNATURE_BYTES
    if len(data) < total:
        raise TruncatedFile(f"{where}: the {kind.name} has {len(data)} bytes of {total}")
    if len(data) > total:
        raise TrailingBytes(f"{where}: {len(data) - total} bytes follow the {kind.name}")
    payload = data[_HEAD.size : _HEAD.size + length]
    if count not in range(1, MAX_SIGNATURES + 1):
        raise SignatureInvalid(f"{where}: the {kind.name} is not signed")
    signers = []
    for start in range(_HEAD.size + length, total, _SIGNATURE_BYTES):
        key, signature = data[start : start + 32], data[start + 32 : start + _SIGNATURE_BYTES]
        if not signature_is_good(key, signature, kind.purpose, _signed(kind, payload)):
            raise SignatureInvalid(f"{where}: a signature of the {kind.name} is wrong: it was changed after signing")
        signers.append(key)
    if len(set(signers)) != len(signers):
        raise SignatureInvalid(f"{where}: the {kind.name} carries the same signer twice")
    return Envelope(payload, tuple(signers), digest(data))


def _signed(kind: DocumentKind, payload: bytes) -> bytes:
    return kind.magic + VERSION.to_bytes(2, "little") + payload
