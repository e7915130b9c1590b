"""ensure_stores: right patches, reuse, interruption, two processes at once, every bad input."""

import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from psl_flower.data import sources
from psl_flower.errors import ConfigError, CorruptImage, DataError, DatasetNotFound, GridError, StoreError
from psl_flower.patches import cutting
from psl_flower.stores import ingest, store_set
from psl_flower.stores.ingest import ensure_stores
from tests.paths import DATA, ROOT
from tests.unit.tiny_pictures import files_of, images_of, listing, request_for


def test_stores_hold_the_dataset(tmp_path, pictures):
    stores = ensure_stores(tmp_path / "root", request_for(pictures, stride=(2, 2), num_uppers=2))
    description, expected = stores.description, files_of(pictures)
    assert stores.created
    assert stores.folder.name == f"my-pictures-{description.fingerprint[:12]}"
    assert (description.num_uppers, description.grid().num_patches, description.channels) == (2, 9, 3)
    assert description.splits == {"train": ((0, 9),), "test": ((9, 12),)}
    assert description.class_names == ("a", "b")
    assert stores.labels.tolist() == [0] * 5 + [1] * 4 + [0, 0, 1]
    np.testing.assert_array_equal(images_of(stores), expected.transpose(0, 3, 1, 2))
    units = expected[:9].astype(np.float64) / 255
    np.testing.assert_allclose(description.mean, units.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(description.std, units.std(axis=(0, 1, 2)), rtol=1e-12)
    everything = {p.relative_to(stores.folder).as_posix() for p in stores.folder.rglob("*") if p.is_file()}
    uppers = {f"store-00{m}/{file}" for m in (0, 1) for file in ("meta.json", "patches.u8")}
    assert everything == {"account.json", "manifest.json", "lower/labels.npy"} | uppers


def test_chunks_and_progress(tmp_path, pictures, monkeypatch):
    monkeypatch.setattr(cutting, "_CHUNK_IMAGES", 4)
    calls = []
    stores = ensure_stores(tmp_path / "root", request_for(pictures), lambda *call: calls.append(call))
    assert calls == [("train", 4, 9), ("train", 8, 9), ("train", 9, 9), ("test", 3, 3)]
    np.testing.assert_array_equal(images_of(stores), files_of(pictures).transpose(0, 3, 1, 2))
    calls.clear()
    monkeypatch.setattr(cutting, "_CHUNK_BYTES", 2 * 8 * 8 * 3 + 1)
    ensure_stores(tmp_path / "other", request_for(pictures), lambda *call: calls.append(call))
    assert [done for stage, done, _ in calls if stage == "train"] == [2, 4, 6, 8, 9]


def test_every_setting_has_its_own_set(tmp_path, pictures):
    changes = [
        {}, {"stride": (2, 2)}, {"patch_size": (8, 8), "stride": (8, 8)}, {"num_uppers": 2}, {"max_train": 5},
        {"num_uppers": 2, "assignment": "round-robin"}, {"image_size": (12, 12)}, {"fit": "pad"},
        {"margin": 1}, {"margin": 2}, {"max_test": 2},
        {"seed": 1}, {"test_fraction": 0.3},
    ]  # fmt: skip
    folders = {ensure_stores(tmp_path / "root", request_for(pictures, **change)).folder for change in changes}
    assert len(folders) == len(changes)


def test_reuse_decodes_nothing(tmp_path, pictures, monkeypatch):
    first = ensure_stores(tmp_path / "root", request_for(pictures))

    def forbidden(*_, **__):
        raise AssertionError("opened the dataset again")

    monkeypatch.setattr(store_set, "open_dataset", forbidden)
    again = ensure_stores(tmp_path / "root", request_for(pictures))
    assert not again.created
    assert (again.folder, again.description) == (first.folder, first.description)
    np.testing.assert_array_equal(again.labels, first.labels)
    monkeypatch.undo()
    image = pictures / "train" / "a" / "0.png"
    Image.new("RGB", (8, 8), (1, 2, 3)).save(image)
    changed = ensure_stores(tmp_path / "root", request_for(pictures))
    assert changed.created and changed.folder != first.folder


def test_stores_are_made_anew_where_an_image_was_replaced_by_one_of_the_same_size_and_time(tmp_path, pictures):
    image, other = pictures / "train" / "a" / "0.png", tmp_path / "other.bmp"
    Image.new("RGB", (8, 8), (1, 2, 3)).save(image, "BMP")
    first, status = ensure_stores(tmp_path / "root", request_for(pictures)), image.stat()
    Image.new("RGB", (8, 8), (4, 5, 6)).save(other)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(image)
    assert (image.stat().st_size, image.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    second = ensure_stores(tmp_path / "root", request_for(pictures))
    assert second.created and second.folder != first.folder
    assert images_of(first)[0, :, 0, 0].tolist() == [1, 2, 3] and images_of(second)[0, :, 0, 0].tolist() == [4, 5, 6]


def test_digits_pad_and_one_upper_for_each_position(tmp_path):
    stores = ensure_stores(
        tmp_path, request_for("digits", patch_size=(5, 5), stride=(5, 5), fit="pad", max_train=20, max_test=5)
    )
    assert stores.folder.name.startswith("digits-")
    assert stores.description.num_uppers == 16
    source = sources.open_dataset("digits", max_train=20, max_test=5)
    expected = [image for split in ("train", "test") for image, _ in source.samples(split)]
    np.testing.assert_array_equal(images_of(stores), np.stack(expected).transpose(0, 3, 1, 2))


def test_image_size_resizes_and_crops(tmp_path, pictures):
    Image.new("RGB", (20, 10), (9, 8, 7)).save(pictures / "train" / "b" / "3.png")
    stores = ensure_stores(tmp_path / "root", request_for(pictures, image_size=(4, 8)))
    assert stores.description.image_size == (4, 8)
    plain = np.broadcast_to(np.array([9, 8, 7])[:, None, None], (3, 4, 8))
    np.testing.assert_array_equal(images_of(stores)[8], plain)


def test_images_of_different_sizes_are_refused(tmp_path, pictures):
    Image.new("RGB", (20, 10)).save(pictures / "test" / "b" / "0.png")
    with pytest.raises(
        DataError, match=r"image test:2 \(test/b/0\.png\) is 10x20x3 .*expected 8x8x3 .* set image-size"
    ):
        ensure_stores(tmp_path / "root", request_for(pictures))
    assert listing(tmp_path / "root") == []


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"patch_size": (16, 16), "stride": (16, 16)}, GridError, "larger than the image"),
        ({"patch_size": (3, 3), "stride": (3, 3)}, GridError, "do not tile"),
        ({"num_uppers": 5}, ConfigError, "cannot share 4"),
        ({"num_uppers": -1}, ConfigError, "cannot share 4"),
        ({"assignment": "random"}, ConfigError, "assignment"),
        ({"image_size": (0, 8)}, ConfigError, "image-size"),
        ({"image_size": (-8, 8)}, ConfigError, "image-size"),
        ({"seed": -1}, ConfigError, "seed"),
        ({"dataset": "/nowhere/at/all"}, DatasetNotFound, "no such folder"),
    ],
)
def test_bad_settings(tmp_path, pictures, changes, error, match):
    root = tmp_path / "root"
    with pytest.raises(error, match=match):
        ensure_stores(root, request_for(pictures, **changes))
    assert not root.exists() or listing(root) == []


def test_corrupt_image_leaves_nothing(tmp_path, pictures):
    (pictures / "test" / "a" / "1.png").write_bytes(b"nonsense")
    with pytest.raises(CorruptImage, match="image 1 of split 'test'"):
        ensure_stores(tmp_path / "root", request_for(pictures))
    assert listing(tmp_path / "root") == []


def test_an_interruption_leaves_nothing(tmp_path, pictures):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_stores(tmp_path / "root", request_for(pictures), stop)
    assert listing(tmp_path / "root") == []
    assert ensure_stores(tmp_path / "root", request_for(pictures)).created


def run(program, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


KILLED = """
import os, sys; from pathlib import Path; from psl_flower.stores.ingest import *
r = StoreRequest(dataset=sys.argv[2], patch_size=(4, 4), stride=(4, 4))
ensure_stores(Path(sys.argv[1]), r, lambda stage, done, total: stage == "test" and os._exit(9))
"""


def test_what_a_killed_process_left_is_made_again(tmp_path, pictures):
    killed = run(KILLED, tmp_path / "root", pictures)
    killed.communicate(timeout=60)
    assert killed.returncode == 9
    (left,) = listing(tmp_path / "root")
    assert not (tmp_path / "root" / left / "manifest.json").exists()
    assert list((tmp_path / "root" / left).iterdir()) != []
    stores = ensure_stores(tmp_path / "root", request_for(pictures))
    assert stores.created and stores.folder.name == left
    assert sorted(p.name for p in stores.folder.iterdir()) == [
        "account.json", "lower", "manifest.json", *(f"store-00{m}" for m in range(4))
    ]  # fmt: skip
    np.testing.assert_array_equal(images_of(stores), files_of(pictures).transpose(0, 3, 1, 2))


# The progress callback meets the other process: the slower one starts while the faster one is in the middle.
TOGETHER = """
import sys, time; from pathlib import Path; from psl_flower.stores.ingest import *
r = StoreRequest(dataset=sys.argv[2], patch_size=(4, 4), stride=(4, 4))
Path(sys.argv[3]).touch()
while not Path(sys.argv[4]).exists(): time.sleep(0.01)
print(ensure_stores(Path(sys.argv[1]), r, lambda *_: time.sleep(0.3)).created)
"""


def test_two_processes_at_once_make_one_set(tmp_path, pictures):
    here = [tmp_path / "one-is-ready", tmp_path / "two-is-ready"]
    both = [run(TOGETHER, tmp_path / "root", pictures, *pair) for pair in (here, here[::-1])]
    said = sorted(process.communicate(timeout=60)[0].strip() for process in both)
    assert said == ["False", "True"]
    stores = ensure_stores(tmp_path / "root", request_for(pictures))
    assert not stores.created
    np.testing.assert_array_equal(images_of(stores), files_of(pictures).transpose(0, 3, 1, 2))


def test_waiting_for_another_process_ends(tmp_path, pictures, monkeypatch):
    stores = ensure_stores(tmp_path / "root", request_for(pictures))
    shutil.rmtree(stores.folder)
    monkeypatch.setattr(ingest, "_LOCK_TIMEOUT_S", 0.1)
    lock = FileLock(stores.folder.with_name(f".{stores.folder.name}.lock"), is_singleton=False)
    with lock, pytest.raises(StoreError, match="another process"):
        ensure_stores(tmp_path / "root", request_for(pictures))
    assert ensure_stores(tmp_path / "root", request_for(pictures)).created


def test_unwritable_root(tmp_path, pictures):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="root: cannot be made"):
        ensure_stores(tmp_path / "file" / "root", request_for(pictures))


def test_full_disk(tmp_path, pictures):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(StoreError, match="File too large"):
            ensure_stores(tmp_path / "root", request_for(pictures))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert listing(tmp_path / "root") == []
    assert ensure_stores(tmp_path / "root", request_for(pictures)).created


def np_save(path, array):
    with path.open("wb") as file:
        np.save(file, array)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda f: (f / "manifest.json").write_bytes(b"{"), r"manifest\.json: damaged"),
        (lambda f: (f / "lower/labels.npy").unlink(), "labels.npy: cannot be read"),
        (lambda f: (f / "lower/labels.npy").write_bytes(b"nonsense"), "labels are damaged"),
        (lambda f: (f / "lower/labels.npy").write_bytes(b""), "labels are damaged"),
        (lambda f: np_save(f / "lower/labels.npy", np.zeros(11, np.int64)), r"\(12,\), found int64 \(11,"),
        (lambda f: np_save(f / "lower/labels.npy", np.zeros(12)), "found float64"),
        (lambda f: np_save(f / "lower/labels.npy", np.full(12, 2)), "outside the 2 classes"),
        (lambda f: np_save(f / "lower/labels.npy", np.full(12, -1)), "outside the 2 classes"),
        (lambda f: shutil.rmtree(f / "store-002"), "store-002: no such patch store"),
        (lambda f: (f / "store-002/patches.u8").write_bytes(b""), "found 0"),
        (lambda f: swap(f / "store-001", f / "store-002"), "holds upper 2, expected 1 for Upper 1"),
    ],
)  # fmt: skip
def test_a_damaged_set_is_refused_saying_what_to_delete(tmp_path, pictures, damage, match):
    stores = ensure_stores(tmp_path / "root", request_for(pictures))
    damage(stores.folder)
    with pytest.raises(StoreError, match=match) as caught:
        ensure_stores(tmp_path / "root", request_for(pictures))
    assert f"delete {stores.folder} to have it made again" in str(caught.value)


def swap(a, b):
    a.rename(a.with_name("aside"))
    b.rename(a)
    a.with_name("aside").rename(b)


def test_another_sets_manifest_is_refused(tmp_path, pictures):
    one = ensure_stores(tmp_path / "root", request_for(pictures))
    two = ensure_stores(tmp_path / "root", request_for(pictures, seed=1))
    shutil.rmtree(two.folder)
    one.folder.rename(two.folder)
    with pytest.raises(StoreError, match="is of other stores"):
        ensure_stores(tmp_path / "root", request_for(pictures, seed=1))


def test_there_is_no_such_upper(tmp_path, pictures):
    stores = ensure_stores(tmp_path / "root", request_for(pictures))
    for upper in (-1, 4):
        with pytest.raises(ConfigError, match="0 to 3"):
            stores.store_path(upper)


def test_real_data(tmp_path):
    folder = DATA / "cifar10"
    if not folder.is_dir():
        pytest.skip(f"no {folder}; set PSL_DATA")
    small = {"patch_size": (16, 16), "stride": (8, 8), "num_uppers": 4, "max_train": 300, "max_test": 50}
    stores = ensure_stores(tmp_path, request_for(folder, **small))
    assert stores.description.num_classes == 10
    source = sources.open_dataset(str(folder), max_train=300, max_test=50)
    expected = [sample for split in ("train", "test") for sample in source.samples(split)]
    np.testing.assert_array_equal(images_of(stores), np.stack([i for i, _ in expected]).transpose(0, 3, 1, 2))
    assert stores.labels.tolist() == [label for _, label in expected]
