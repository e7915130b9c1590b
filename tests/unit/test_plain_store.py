"""Plain stores: what is written is read, every damage is refused, nothing half is visible."""

import resource
from pathlib import Path

import msgspec
import numpy as np
import pytest

from psl_flower.errors import StoreError
from psl_flower.patches.store import PatchStore, StoreMeta
from psl_flower.stores.opening import open_store
from psl_flower.stores.plain import PlainStore, PlainStoreWriter

META = StoreMeta(dataset="ab12", upper=1, positions=(1, 3), patch_shape=(3, 2, 4), num_samples=5)
RECORD = 2 * 3 * 2 * 4


def patches(count: int = 5) -> np.ndarray:
    return np.arange(count * RECORD, dtype=np.uint64).astype(np.uint8).reshape(count, 2, 3, 2, 4)


def write(path: Path, meta: StoreMeta = META, chunks: tuple[int, ...] = (2, 0, 3)) -> Path:
    writer = PlainStoreWriter(path, meta)
    done = 0
    for size in chunks:
        writer.append(patches()[done : done + size])
        done += size
    writer.finish()
    return path


def test_reads_what_was_written_in_the_order_asked_for(tmp_path):
    store = open_store(write(tmp_path / "a" / "store"))
    assert isinstance(store, PatchStore)
    assert store.meta == META
    assert len(store) == 5
    wanted = np.array([4, 0, 0, 3])
    np.testing.assert_array_equal(store.read(wanted), patches()[wanted])
    assert store.read(np.array([], np.int64)).shape == (0, 2, 3, 2, 4)


def test_what_is_read_is_a_copy(tmp_path):
    store = open_store(write(tmp_path / "store"))
    store.read(np.array([0]))[:] = 77
    np.testing.assert_array_equal(store.read(np.array([0])), patches()[:1])


def test_file_is_the_records_and_nothing_else(tmp_path):
    path = write(tmp_path / "store")
    assert (path / "patches.u8").read_bytes() == patches().tobytes()
    assert sorted(p.name for p in path.iterdir()) == ["meta.json", "patches.u8"]


def test_strided_patches_are_written_in_order(tmp_path):
    writer = PlainStoreWriter(tmp_path / "store", META)
    writer.append(np.asfortranarray(patches()))
    writer.finish()
    np.testing.assert_array_equal(open_store(tmp_path / "store").read(np.arange(5)), patches())


def test_store_is_invisible_until_finished(tmp_path):
    writer = PlainStoreWriter(tmp_path / "store", META)
    writer.append(patches())
    assert not (tmp_path / "store").exists()
    writer.finish()
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_abort_leaves_nothing_and_is_harmless_after_finish(tmp_path):
    writer = PlainStoreWriter(tmp_path / "store", META)
    writer.append(patches())
    writer.abort()
    writer.abort()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreError, match="finished or aborted"):
        writer.append(patches())
    done = PlainStoreWriter(tmp_path / "store", META)
    done.append(patches())
    done.finish()
    done.abort()
    assert len(open_store(tmp_path / "store")) == 5


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (patches().astype(np.float32), "float32"),
        (patches()[:, :1], r"\(5, 1, 3, 2, 4\)"),
        (patches()[0], r"got uint8 \(2, 3, 2, 4\)"),
        (patches(6), "expected 5 samples, got 6"),
    ],
    ids=["dtype", "positions", "dimensions", "too many"],
)
def test_writer_refuses_what_is_not_the_stores(tmp_path, bad, match):
    writer = PlainStoreWriter(tmp_path / "store", META)
    with pytest.raises(StoreError, match=match):
        writer.append(bad)
    writer.append(patches())
    writer.finish()
    np.testing.assert_array_equal(open_store(tmp_path / "store").read(np.arange(5)), patches())


def test_finish_refuses_missing_samples(tmp_path):
    writer = PlainStoreWriter(tmp_path / "store", META)
    writer.append(patches(4))
    with pytest.raises(StoreError, match="expected 5 samples, got 4"):
        writer.finish()
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_a_store_is_never_overwritten(tmp_path):
    write(tmp_path / "store")
    with pytest.raises(StoreError, match="exists already"):
        PlainStoreWriter(tmp_path / "store", META)


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": ()},
        {"positions": (3, 1)},
        {"positions": (1, 1)},
        {"positions": (-1, 1)},
        {"patch_shape": (3, 0, 4)},
        {"num_samples": -1},
        {"upper": -1},
    ],
)
def test_writer_refuses_a_description_that_contradicts_itself(tmp_path, changes):
    with pytest.raises(StoreError, match="expected"):
        PlainStoreWriter(tmp_path / "store", msgspec.structs.replace(META, **changes))
    assert list(tmp_path.iterdir()) == []


def cut(path, by):
    path.write_bytes(path.read_bytes()[:by])


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda s: cut(s / "patches.u8", -1), f"expected {5 * RECORD} bytes .* found {5 * RECORD - 1}"),
        (lambda s: cut(s / "patches.u8", 0), "found 0"),
        (lambda s: (s / "patches.u8").write_bytes(patches().tobytes() + b"x"), f"found {5 * RECORD + 1}"),
        (lambda s: (s / "patches.u8").unlink(), "holds no patch store"),
        (lambda s: (s / "meta.json").unlink(), r"meta\.json: cannot be read"),
        (lambda s: cut(s / "meta.json", -1), r"meta\.json: .*damaged"),
        (lambda s: replace(s / "meta.json", b"ab12", b"\xff"), "damaged"),
        (
            lambda s: replace(s / "meta.json", b'"num_samples":5', b'"num_samples":"5"'),
            "damaged.*num_samples",
        ),
        (lambda s: replace(s / "meta.json", b'"num_samples":5', b'"num_samples":-5'), "-5 samples"),
        (lambda s: replace(s / "meta.json", b"[1,3]", b"[3,1]"), "ascending"),
        (lambda s: replace(s / "meta.json", b'"upper":1,', b""), "damaged.*upper"),
    ],
)
def test_damage_is_refused_on_opening(tmp_path, damage, match):
    path = write(tmp_path / "store")
    damage(path)
    with pytest.raises(StoreError, match=match) as caught:
        open_store(path)
    assert str(path) in str(caught.value)


def replace(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))


def test_no_folder_and_an_empty_folder_are_no_stores(tmp_path):
    with pytest.raises(StoreError, match="no such patch store"):
        open_store(tmp_path / "absent")
    with pytest.raises(StoreError, match="holds no patch store"):
        open_store(tmp_path)


@pytest.mark.parametrize(
    ("samples", "match"),
    [
        (np.array([0, 5]), "sample 5 is outside the 5"),
        (np.array([-1]), "sample -1"),
        (np.array([0.0]), "float64"),
        (np.array([True]), "bool"),
        (np.array([[0]]), r"\(1, 1\)"),
    ],
)
def test_read_refuses_bad_indices(tmp_path, samples, match):
    store = PlainStore(write(tmp_path / "store"))
    with pytest.raises(StoreError, match=match):
        store.read(samples)


def test_reading_a_closed_store_is_refused(tmp_path):
    store = open_store(write(tmp_path / "store"))
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.read(np.array([0]))


def test_unwritable_place_is_a_store_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot be written"):
        PlainStoreWriter(tmp_path / "file" / "store", META)


def test_full_disk_is_a_store_error_and_abort_cleans_up(tmp_path):
    big = msgspec.structs.replace(META, num_samples=100_000)
    writer = PlainStoreWriter(tmp_path / "store", big)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(StoreError, match="cannot be written"):
            writer.append(np.zeros((100_000, 2, 3, 2, 4), np.uint8))
        writer.abort()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
