"""Pictures that nothing here decodes, such as a camera's raw files: by their endings and by their first bytes."""

from __future__ import annotations

# Pictures all the same, so that none of them is passed by as if it were a text.
UNREADABLE_ENDINGS = frozenset({
    ".3fr", ".ai", ".arw", ".cr2", ".cr3", ".dcm", ".dicom", ".djvu", ".dng", ".emf", ".eps", ".erf", ".exr", ".hdr",
    ".jxl", ".jxr", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".sr2", ".srw", ".svg", ".svgz",
    ".wdp", ".wmf", ".xcf",
})  # fmt: skip
# Bytes at a place in the file: of cameras' raw files, JPEG XL and XR, OpenEXR, Radiance, GIMP, DjVu and metafiles.
_MARKS = (
    (0, b"\xff\x0a"), (0, b"\0\0\0\x0cJXL \r\n\x87\n"), (0, b"II\xbc"), (0, b"\x76\x2f\x31\x01"), (0, b"#?RADIANCE"),
    (0, b"#?RGBE"), (0, b"gimp xcf"), (0, b"AT&TFORM"), (0, b"FUJIFILMCCD-RAW"), (0, b"IIU\0"), (0, b"IIRO"),
    (0, b"IIRS"), (0, b"MMOR"), (0, b"%!PS-Adobe"), (0, b"\xd7\xcd\xc6\x9a"), (4, b"ftypcrx"), (8, b"CR\x02\0"),
    (40, b" EMF"), (128, b"DICM"),
)  # fmt: skip


def is_unreadable_picture(prefix: bytes) -> bool:
    """Check if a file begins as one of these pictures, or as an SVG; `prefix` is its first 1024 bytes."""
    if any(prefix.startswith(mark, place) for place, mark in _MARKS):
        return True
    text = prefix.removeprefix(b"\xef\xbb\xbf").lstrip()[:512].lower()
    return text.startswith(b"<") and b"<svg" in text and b"<html" not in text
