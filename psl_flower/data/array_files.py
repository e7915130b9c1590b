"""Files of arrays of numbers: MNIST's idx, packed or not, and NumPy's npy and npz.

What a file holds is read from its headers alone, and held against its size before anything is allocated. Objects of
Python are never loaded.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from psl_flower.text import dims

IDX_NAME = re.compile(r"[-._]idx\d[-._]u?byte(\.gz)?$", re.IGNORECASE)
NUMPY_ENDINGS = frozenset({".npy", ".npz"})
# What reading a damaged file raises.
ARRAY_ERRORS = (OSError, ValueError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile)

_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MOST_AXES = 4
# Deflate packs no better.
_MOST_PACKED = 1032
_MOST_MEMBERS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredArray:
    """An array in a file."""

    path: str  #: Path of the file, relative to the dataset's folder.
    name: str  #: Name of the array in that file; empty if the file holds only one.
    shape: tuple[int, ...]  #: Size of each axis.
    dtype: np.dtype[Any]  #: Dtype of its values.
    alone: bool  #: Whether it is the only one in its file.
    #: Returns its values: mapped from the disk if the file is not compressed, else in memory. Raises one of
    #: `ARRAY_ERRORS`, for Python objects too.
    load: Callable[[], NDArray[Any]]

    @property
    def ending(self) -> str:
        """The extension of its file's name, in lower case."""
        return os.path.splitext(self.path)[1].lower()

    def __str__(self) -> str:
        """Return the file's path, and the array's name where it has one."""
        return f"{self.path}:{self.name}" if self.name else self.path


def is_array_name(path: str) -> bool:
    """Check if a file's name is that of a file of arrays."""
    return os.path.splitext(path)[1].lower() in NUMPY_ENDINGS or bool(IDX_NAME.search(path))


def stored_arrays(root: Path, path: str) -> list[StoredArray]:
    """Return the arrays in a file.

    Raises
    ------
    One of `ARRAY_ERRORS`
        If it cannot be read, or has another size than its header says.
    """
    place = root / path
    if IDX_NAME.search(path):
        return [_idx(place, path)]
    return list(_npz(place, path)) if path.lower().endswith(".npz") else [_npy(place, path)]


def _idx(place: Path, path: str) -> StoredArray:
    packed = path.lower().endswith(".gz")
    with _opened(place, packed=packed) as file:
        head = file.read(4)
        if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _IDX_TYPES or not 1 <= head[3] <= _MOST_AXES:
            raise ValueError("is no idx file")
        axes = file.read(4 * head[3])
        if len(axes) < 4 * head[3]:
            raise ValueError("ends within its header")
    shape, dtype, begin = struct.unpack(f">{head[3]}I", axes), np.dtype(_IDX_TYPES[head[2]]), 4 + len(axes)
    size, held = math.prod(shape) * dtype.itemsize, place.stat().st_size
    if (held * _MOST_PACKED < size) if packed else (held != begin + size):
        raise ValueError(
            f"has {held} bytes, which does not fit the {dims(shape)} {dtype.itemsize}-byte values it tells"
        )

    def load() -> NDArray[Any]:
        if not packed:
            return np.memmap(place, dtype, "r", begin, shape) if size else np.empty(shape, dtype)
        with _opened(place, packed=True) as file:
            content = file.read(begin + size + 1)
        if len(content) != begin + size:
            raise ValueError(f"unpacked it does not hold the {dims(shape)} values that it tells")
        return np.frombuffer(content, dtype, offset=begin).reshape(shape)

    return StoredArray(path=path, name="", shape=shape, dtype=dtype, alone=True, load=load)


def _opened(place: Path, *, packed: bool) -> gzip.GzipFile | BinaryIO:
    return gzip.open(place) if packed else place.open("rb")


def _npy(place: Path, path: str) -> StoredArray:
    with place.open("rb") as file:
        shape, dtype, begin = _header(file)
    size, held = math.prod(shape) * dtype.itemsize, place.stat().st_size
    if not dtype.hasobject and held != begin + size:
        raise ValueError(f"has {held} bytes, and its header tells {begin + size}")

    def load() -> NDArray[Any]:
        return np.asarray(np.load(place, mmap_mode="r" if size else None, allow_pickle=False))

    return StoredArray(path=path, name="", shape=shape, dtype=dtype, alone=True, load=load)


def _npz(place: Path, path: str) -> Iterator[StoredArray]:
    with zipfile.ZipFile(place) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
        if len(members) > _MOST_MEMBERS:
            raise ValueError(f"holds more than {_MOST_MEMBERS} arrays")
        if len({member.filename for member in members}) < len(members):
            raise ValueError("holds two arrays of one name")
        for member in members:
            with archive.open(member) as file:
                shape, dtype, begin = _header(file)
            size = math.prod(shape) * dtype.itemsize
            packed_too_well = member.compress_size * _MOST_PACKED + _MOST_PACKED < size
            if not dtype.hasobject and (member.file_size != begin + size or packed_too_well):
                raise ValueError(f"{member.filename} has another size than its header tells")
            name = member.filename.removesuffix(".npy")
            yield StoredArray(
                path=path,
                name=name,
                shape=shape,
                dtype=dtype,
                alone=len(members) == 1,
                load=_member(place, member.filename),
            )


def _member(place: Path, member: str) -> Callable[[], NDArray[Any]]:
    def load() -> NDArray[Any]:
        with zipfile.ZipFile(place) as archive, archive.open(member) as file:
            return np.asarray(npy.read_array(file, allow_pickle=False))

    return load


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Return the shape and type of a npy file's array, and where its values begin."""
    version = npy.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = npy.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = npy.read_array_header_2_0(file)
    else:
        raise ValueError(f"is of npy's version {version[0]}.{version[1]}, which is not known here")
    if len(shape) > _MOST_AXES or min(shape, default=0) < 0:
        raise ValueError(f"has the shape {shape}")
    return shape, dtype, file.tell()
