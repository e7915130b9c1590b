"""Sealed bundles: one store in one file that only its node's key opens, to be carried by any means.

    8 magic "PSLBUNDL" | u16 version | u16 zero | 16 dataset | 16 store | u32 generation | u32 epoch
    80 key box
    then chunks: 65536 bytes of content (the last one 0 to 65536), each encrypted, with its 16-byte tag

The key box is HPKE to the node. A chunk's nonce is its number (u64), three zero bytes, and 1 for the last
chunk, else 0; its associated data is the head. The content is a row of files: u16 name length, name, u64
size, bytes; ended by u16 0. Its owner is known by the signed manifest in it, against which
everything is checked on arrival.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from psl_flower.errors import BundleDamaged, StoreNotFound, UnknownFormat, UnknownVersion, WrongNodeKey
from psl_flower.sealed import manifest as manifests
from psl_flower.sealed.folders import LocalFolder
from psl_flower.sealed.identities import Identity, PublicIdentity, Role
from psl_flower.sealed.manifest import SignedManifest, StoreEntry, segment_file
from psl_flower.sealed.secret import Secret
from psl_flower.sealed.seen import SeenBook
from psl_flower.sealed.suite import TAG_BYTES, Purpose, context, derive
from psl_flower.sealed.verify import verify
from psl_flower.system.files import disk_errors, open_regular
from psl_flower.system.folders import NewFolder

MAGIC = b"PSLBUNDL"
VERSION = 1
_HEAD = struct.Struct("<8sHH16s16sII")
_BOX_BYTES = 80
_CHUNK = 65536
_NAME = re.compile(r"manifest\.psl|epoch-\d{4,10}-segment-\d{6,10}\.psl")


def pack(store: Path, entry: StoreEntry, signed: SignedManifest, target: Path) -> None:
    """Write a store's files into a bundle for its node; the bundle appears whole or not at all."""
    manifest = signed.manifest
    head = _HEAD.pack(MAGIC, VERSION, 0, manifest.dataset, entry.store, manifest.generation, manifest.epoch)
    with Secret.random() as key:
        node = PublicIdentity.parse(entry.node, Role.NODE)
        head += node.seal(key.reveal(), context(Purpose.BUNDLE_KEY, head))
        aead = _aead(key, head)
    names = [manifests.FILE, *(segment_file(manifest.epoch, part.segment) for part in entry.segments)]
    draft = LocalFolder(target.parent).draft(target.name)
    try:
        draft.write(head)
        waiting = bytearray()
        number = 0
        for data in _content(store, names):
            waiting += data
            while len(waiting) > _CHUNK:
                draft.write(aead.encrypt(_nonce(number, False), bytes(waiting[:_CHUNK]), head))
                del waiting[:_CHUNK]
                number += 1
        draft.write(aead.encrypt(_nonce(number, True), bytes(waiting), head))
        draft.commit()
    finally:
        draft.abort()


def receive(
    bundle: Path,
    node: Identity,
    target: Path,
    *,
    owner: PublicIdentity | None = None,
    seen: SeenBook | None = None,
) -> SignedManifest:
    """Open a bundle, check everything in it, and put the store into a new folder.

    Raises
    ------
    BundleDamaged
        If it was changed or cut, or bytes follow it, or it holds anything but a whole, correct store.
    WrongNodeKey
        If it was packed for another node.
    StoreExists
        If the target is not new.
    """
    with _open(bundle) as file, NewFolder(target) as folder:
        head, aead = _read_head(file, node, str(bundle))
        _unpack(_Reader(_chunks(file, aead, head, str(bundle)), str(bundle)), folder)
        signed = manifests.load(folder, owner)
        _, _, _, dataset, store, generation, epoch = _HEAD.unpack(head[: _HEAD.size])
        manifest = signed.manifest
        entry = next((e for e in manifest.stores if e.store == store and e.node == str(node.public)), None)
        if entry is None or (manifest.dataset, manifest.generation, manifest.epoch) != (
            dataset,
            generation,
            epoch,
        ):
            raise BundleDamaged(f"{bundle}: the manifest in it is not that of the store that it claims to hold")
        report = verify([folder], signed).stores[0]
        if report.problems or report.upper != entry.upper or report.strangers or report.remains:
            named = report.problems[0].message if report.problems else "it holds files that do not belong to it"
            raise BundleDamaged(f"{bundle}: {named.replace(str(folder), str(target))}")
        if seen is not None:
            seen.check(signed)
    return signed


class _Reader:
    def __init__(self, chunks: Iterator[bytes], where: str) -> None:
        self._chunks, self._where = chunks, where
        self._data = b""

    def some(self, most: int) -> bytes:
        """Return 1 to `most` bytes."""
        while not self._data:
            chunk = next(self._chunks, None)
            if chunk is None:
                raise BundleDamaged(f"{self._where}: its content ends too early")
            self._data = chunk
        part, self._data = self._data[:most], self._data[most:]
        return part

    def exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += self.some(count - len(data))
        return data

    def end(self) -> None:
        if self._data or any(self._chunks):
            raise BundleDamaged(f"{self._where}: something follows its content")

    def name(self) -> str:
        length = int.from_bytes(self.exactly(2), "little")
        name = self.exactly(length).decode("ascii", errors="replace")
        if name and not _NAME.fullmatch(name):
            raise BundleDamaged(f"{self._where}: it holds a file that no store has")
        return name


def _unpack(reader: _Reader, folder: Path) -> None:
    target = LocalFolder(folder)
    while name := reader.name():
        left = int.from_bytes(reader.exactly(8), "little")
        draft = target.draft(name)
        try:
            while left:
                part = reader.some(left)
                draft.write(part)
                left -= len(part)
            draft.commit()
        finally:
            draft.abort()
    reader.end()


def _content(store: Path, names: list[str]) -> Iterator[bytes]:
    for name in names:
        path = store / name
        with _open(path) as file:
            size = os.fstat(file.fileno()).st_size
            yield len(name).to_bytes(2, "little") + name.encode() + size.to_bytes(8, "little")
            while part := file.read(_CHUNK):
                yield part
    yield bytes(2)


def _open(bundle: Path) -> BinaryIO:
    with disk_errors(bundle, "read", StoreNotFound):
        return os.fdopen(open_regular(bundle), "rb")


def _read_head(file: BinaryIO, node: Identity, where: str) -> tuple[bytes, ChaCha20Poly1305]:
    fixed, box = file.read(_HEAD.size), file.read(_BOX_BYTES)
    if fixed[:8] != MAGIC[: len(fixed)]:
        raise UnknownFormat(f"{where} is not a sealed bundle")
    if len(box) < _BOX_BYTES:
        raise BundleDamaged(f"{where} ends within its head")
    _, version, zero, *_ = _HEAD.unpack(fixed)
    if version != VERSION or zero:
        raise UnknownVersion(f"{where}: bundle version {version} is unknown; this program knows {VERSION}")
    plain = node.expect(Role.NODE).open(box, context(Purpose.BUNDLE_KEY, fixed))
    if plain is None:
        raise WrongNodeKey(
            f"{where}: node {node.name!r} cannot open it: it is for another node, or its head was changed"
        )
    with Secret(plain) as key:
        return fixed + box, _aead(key, fixed + box)


def _chunks(file: BinaryIO, aead: ChaCha20Poly1305, head: bytes, where: str) -> Iterator[bytes]:
    number, data = 0, file.read(_CHUNK + TAG_BYTES)
    while True:
        following = file.read(_CHUNK + TAG_BYTES)
        try:
            yield aead.decrypt(_nonce(number, not following), data, head)
        except InvalidTag:
            raise BundleDamaged(f"{where}: it was changed or cut (chunk {number})") from None
        if not following:
            return
        number, data = number + 1, following


def _aead(key: Secret, head: bytes) -> ChaCha20Poly1305:
    with derive(key, b"", Purpose.BUNDLE_STREAM, head) as stream:
        return ChaCha20Poly1305(stream.reveal())


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(8, "little") + bytes(3) + bytes([last])
