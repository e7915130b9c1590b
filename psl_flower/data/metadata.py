"""Strips metadata from image files, for files whose metadata is damaged."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator

PNG = b"\x89PNG\r\n\x1a\n"
# PNG chunks that decide what the pixels are; the others may be lost.
_PNG_CHUNKS = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"sRGB", b"cHRM"})
_JPEG = b"\xff\xd8"
_SCAN, _COMMENT = 0xDA, 0xFE
# Of a JPEG's 16 application segments those of JFIF and of Adobe decide on colours.
_APPLICATION, _JFIF, _ADOBE = range(0xE0, 0xF0), 0xE0, 0xEE


def without_metadata(encoded: bytes) -> bytes | None:
    """Return a PNG or JPEG file without its metadata; None if it is neither, or has none."""
    with contextlib.suppress(struct.error, IndexError):
        if encoded.startswith(PNG):
            kept = b"".join(chunk for kind, chunk in _png_chunks(encoded) if kind in _PNG_CHUNKS)
            return PNG + kept if len(kept) + len(PNG) < len(encoded) else None
        if encoded.startswith(_JPEG):
            return _jpeg_without_metadata(encoded)
    return None


def _png_chunks(encoded: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = len(PNG)
    while place + 12 <= len(encoded):
        (length,) = struct.unpack_from(">I", encoded, place)
        yield encoded[place + 4 : place + 8], encoded[place : place + 12 + length]
        place += 12 + length


def _jpeg_without_metadata(encoded: bytes) -> bytes | None:
    place, kept = len(_JPEG), [_JPEG]
    while encoded[place] == 0xFF and encoded[place + 1] != _SCAN:
        marker, (length,) = encoded[place + 1], struct.unpack_from(">H", encoded, place + 2)
        if marker != _COMMENT and (marker not in _APPLICATION or marker in (_JFIF, _ADOBE)):
            kept.append(encoded[place : place + 2 + length])
        place += 2 + length
    bare = b"".join((*kept, encoded[place:]))
    return bare if len(bare) < len(encoded) else None
