"""HEIC and HEIF images, which Pillow reads with the help of pillow-heif, the extra "heif"."""

from __future__ import annotations

from functools import cache

HEIF_ENDINGS = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})
_BRANDS = frozenset({b"heic", b"heim", b"heis", b"heix", b"hevc", b"hevm", b"hevs", b"hevx", b"mif1", b"mif2", b"msf1"})


def is_heif(encoded: bytes) -> bool:
    """Tell by its first 12 bytes whether a file is a HEIF image; AVIF, which Pillow reads itself, has other brands."""
    return encoded[4:8] == b"ftyp" and encoded[8:12] in _BRANDS


@cache
def can_read_heif() -> bool:
    """Teach Pillow to read HEIF images; False if pillow-heif is not installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True
