"""Whatever is done to a sealed dataset's segments is detected, each kind of change by an error of its own.

`verify` needs no key; what it reports is checked against where the change was made. Readers with keys must
refuse as well.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from psl_flower import errors
from psl_flower.errors import PslError
from psl_flower.sealed.header import SegmentHeader
from psl_flower.sealed.rotate import Changes, rotate
from tests.security.sealed_bytes import (
    COUNT,
    HEADER,
    RECORD,
    SEGMENT,
    SOURCE,
    TABLE,
    problems,
    reader_refuses,
    records,
    swap,
)
from tests.vectors.sealed_support import ArraySource, World

# Where a byte is changed (offset in the header) -> what `verify` calls it.
HEADER_ERRORS = {
    range(0, 8): "UnknownFormat",
    range(8, 12): "UnknownVersion",
    range(12, 16): "HeaderDamaged",
    range(16, 32): "WrongDataset",
    range(32, 48): "WrongStore",
    range(48, 52): "WrongEpoch",
    range(52, 60): "WrongSegment",
    range(60, 64): "WrongStore",
    range(64, 72): "WrongSegment",
    range(72, 128): "HeaderDamaged",
    range(128, 136): "WrongStore",
    range(136, 168): "HeaderDamaged",
}


def test_every_byte_of_a_segment(world: World) -> None:
    path = world.place(0) / SEGMENT
    whole = path.read_bytes()
    assert len(whole) == TABLE + COUNT * 32
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        expected = {next((e for span, e in HEADER_ERRORS.items() if at in span), "")}
        if at >= HEADER:
            expected = {"RecordDamaged"} if at < TABLE else {"DigestTableDamaged"}
        elif 128 <= at < 136:
            expected |= {"HeaderDamaged"}  # positions that do not ascend are no positions
        found = problems(world)
        assert len(found) == 1 and found[0] in expected, (at, found)
        if at < TABLE:
            reader_refuses(world)
        else:
            world.open(0).read(np.arange(COUNT))  # the digests are for `verify` alone


def test_every_truncation_and_extension_of_a_segment(world: World) -> None:
    path = world.place(0) / SEGMENT
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert problems(world) == ["TruncatedFile"], length
        reader_refuses(world)
    for more in (1, 31, 32, RECORD, RECORD + 32):
        path.write_bytes(whole + bytes(more))
        assert problems(world) == ["TrailingBytes"]
        reader_refuses(world)
    path.unlink()
    assert problems(world) == ["StoreNotFound"]
    reader_refuses(world)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda data: swap(data, 0, 3), ["RecordSwapped"]),
        (lambda data: swap(swap(data, 0, 1), 1, 2), ["RecordsReordered"]),
        (
            lambda data: data[: HEADER + RECORD] + data[HEADER : HEADER + RECORD] + data[HEADER + 2 * RECORD :],
            ["RecordDuplicated"],
        ),
        (
            lambda data: data[:HEADER] + bytes(RECORD) + data[HEADER + RECORD : -1] + bytes([data[-1] ^ 1]),
            ["SegmentDamaged"],
        ),
    ],
)
def test_moved_records(world: World, change: Callable[[bytes], bytes], expected: list[str]) -> None:
    path = world.place(0) / SEGMENT
    path.write_bytes(change(path.read_bytes()))
    assert problems(world) == expected
    reader_refuses(world)


def test_moved_records_with_their_digests(world: World) -> None:
    """Whoever moves the digests along leaves a root that was not signed."""
    path = world.place(0) / SEGMENT
    data = swap(path.read_bytes(), 0, 1)
    path.write_bytes(data[:TABLE] + data[TABLE + 32 : TABLE + 64] + data[TABLE : TABLE + 32] + data[TABLE + 64 :])
    assert problems(world) == ["SegmentDamaged"]
    reader_refuses(world)


def test_reader_names_what_it_finds(world: World) -> None:
    path = world.place(0) / SEGMENT
    whole = path.read_bytes()
    foreign = records((world.place(1) / SEGMENT).read_bytes())[0]
    damaged_id = bytes([records(whole)[0][0] ^ 1]) + records(whole)[0][1:]
    for first, error in (
        (records(whole)[1], errors.RecordDuplicated),
        (foreign, errors.RecordForeign),
        (records(whole)[0][:-1] + bytes([records(whole)[0][-1] ^ 1]), errors.RecordDamaged),
        (damaged_id, errors.RecordDamaged),
    ):
        path.write_bytes(whole[:HEADER] + first + whole[HEADER + RECORD :])
        with pytest.raises(error):
            world.open(0).read(np.arange(COUNT))


def test_a_segment_exchanged_for_another_stores_is_named(world: World) -> None:
    path, other = world.place(0) / SEGMENT, world.place(1) / SEGMENT
    other.write_bytes(path.read_bytes())
    with pytest.raises(errors.StoreExists) as caught:
        problems(world)
    told = f"the store of Upper 0 is given twice: {path} and {other} are both of it; "
    assert str(caught.value) == told + "name each folder once, or put back the file that was exchanged"


def test_record_of_another_store(world: World) -> None:
    path, other = world.place(0) / SEGMENT, world.place(1) / SEGMENT
    data = path.read_bytes()
    path.write_bytes(data[:HEADER] + records(other.read_bytes())[2] + data[HEADER + RECORD :])
    assert problems(world) == ["RecordForeign"]
    reader_refuses(world)


def test_record_ids_moved_along_do_not_help(world: World) -> None:
    """A record put in another's place under the other's id fails by its associated data."""
    path = world.place(0) / SEGMENT
    data = path.read_bytes()
    first, second = records(data)[:2]
    path.write_bytes(data[:HEADER] + first[:16] + second[16:] + data[HEADER + RECORD :])
    with pytest.raises(errors.RecordDamaged):
        world.open(0).read(np.arange(COUNT))


def exchanged(world: World, other: World, upper: int = 0) -> None:
    shutil.copy(other.place(upper) / SEGMENT, world.place(0) / SEGMENT)


def test_segments_of_elsewhere(world: World, tmp_path: Path) -> None:
    exchanged(world, world, upper=1)
    with pytest.raises(errors.WrongStore):
        world.open(0)
    other = world.at(tmp_path / "other")
    other.seal(SOURCE)
    exchanged(world, other)
    assert problems(world) == ["WrongDataset"]
    with pytest.raises(errors.WrongDataset):
        world.open(0)


def test_segments_of_another_generation_place_and_epoch(world: World) -> None:
    before = (world.place(0) / SEGMENT).read_bytes()
    world.seal(ArraySource(train=1, test=0, seed=9), append=True)
    added = world.place(0) / "epoch-0001-segment-000001.psl"
    appended = added.read_bytes()
    added.write_bytes(before)
    assert problems(world) == ["WrongSegment"]
    added.write_bytes(appended)
    rotate(world.out, world.owner, world.places, Changes())
    (world.place(0) / "epoch-0002-segment-000000.psl").write_bytes(before)
    assert problems(world) == ["WrongEpoch"]
    with pytest.raises(errors.WrongEpoch):
        world.open(0)


def test_errors_have_classes_of_their_own() -> None:
    """Tests of tampering tell kinds apart by class; here, that no class is the parent of another kind's."""
    kinds: list[type[PslError]] = [
        errors.RecordDamaged,
        errors.RecordSwapped,
        errors.RecordsReordered,
        errors.RecordDuplicated,
    ]
    kinds += [errors.RecordForeign, errors.DigestTableDamaged, errors.SegmentDamaged, errors.HeaderDamaged]
    kinds += [
        errors.WrongDataset,
        errors.WrongStore,
        errors.WrongEpoch,
        errors.WrongSegment,
        errors.TruncatedFile,
    ]
    kinds += [
        errors.TrailingBytes,
        errors.UnknownVersion,
        errors.UnknownFormat,
        errors.WrongNodeKey,
        errors.WrongShare,
    ]
    kinds += [
        errors.TooFewShares,
        errors.StaleManifest,
        errors.MixedGenerations,
        errors.SignatureInvalid,
        errors.WeakKey,
    ]
    assert not any(a is not b and issubclass(a, b) for a in kinds for b in kinds)


def test_unknown_version_of_a_segment_is_not_read(world: World) -> None:
    path = world.place(0) / SEGMENT
    data = bytearray(path.read_bytes())
    data[8] = 2
    with pytest.raises(errors.UnknownVersion):
        SegmentHeader.parse(bytes(data[:HEADER]), 2, "it")
