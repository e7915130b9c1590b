"""Small tables that would fill the memory are refused before they are read; large honest ones are not."""

from __future__ import annotations

import resource
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from psl_flower.data import expansion
from psl_flower.data.expansion import check_expansion
from psl_flower.data.sources import open_dataset
from psl_flower.errors import DataError
from tests.unit.tiny_pictures import colour, encode

_ROWS = 200


def _write(path: Path, image: pa.Array, **options: object) -> Path:
    labels = pa.array([row % 2 for row in range(len(image))])
    parquet.write_table(pa.table({"image": image, "label": labels}), path, store_schema=False, **options)
    return path


def _repeated(cell: bytes) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([0] * _ROWS, pa.int32()), pa.array([cell]))


def test_one_large_cell_in_many_rows(tmp_path: Path) -> None:
    """Some kilobytes that take 20 GB: refused, in less than one."""
    _write(tmp_path / "train.parquet", _repeated(encode(colour(1)) + bytes(100_000_000)), compression="zstd")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"train\.parquet: would fill the memory: its column image takes .* GB or more"):
        open_dataset(str(tmp_path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expansion, "_EXPANDED_BYTES", 1 << 20)


CELL = bytes(20_000)


@pytest.mark.parametrize(
    "image",
    [
        _repeated(CELL),
        pa.array([CELL] * _ROWS),
        pa.array([{"bytes": CELL, "path": None}] * _ROWS),
        pa.array([[CELL, CELL]] * _ROWS),
        pa.array([CELL] * _ROWS, pa.binary(len(CELL))),
        pa.array([bytes([row]) * 10_000 for row in range(_ROWS)]),
    ],
    ids=["dictionary", "repeated", "struct", "list", "fixed length", "compressed"],
)
def test_wherever_the_bytes_come_from(tmp_path: Path, small_limits: None, image: pa.Array) -> None:
    path = _write(tmp_path / "bomb.parquet", image, compression="zstd")
    assert path.stat().st_size < 30_000
    with pytest.raises(DataError, match="would fill the memory"):
        check_expansion(path)


def test_honest_tables(tmp_path: Path, small_limits: None) -> None:
    """Pictures that do not compress, however many; and one of them in ten rows."""
    import random

    draw = random.Random(0)
    pictures = [draw.randbytes(20_000) for _ in range(_ROWS)]
    check_expansion(_write(tmp_path / "all.parquet", pa.array(pictures)))
    check_expansion(_write(tmp_path / "ten.parquet", pa.array([picture for picture in pictures for _ in range(10)])))
    # A bound by the longest cell would refuse this one: they are counted.
    check_expansion(_write(tmp_path / "one.parquet", pa.array([draw.randbytes(10**6), *[b"x"] * 10**5])))
    check_expansion(_write(tmp_path / "none.parquet", pa.array([], pa.binary())))
    check_expansion(_write(tmp_path / "missing.parquet", pa.array([None] * _ROWS, pa.binary())))
