"""Folders of npy and npz files of MNIST-like arrays, good ones and bad."""

import os
import zipfile

import numpy as np
import pytest

from psl_flower.data.options import SourceOptions
from psl_flower.data.sources import local_fingerprint, open_dataset
from psl_flower.errors import DataError
from psl_flower.stores.ingest import ensure_stores
from tests.unit.accounts import passed_by, taken
from tests.unit.tiny_arrays import (
    CLASSES,
    KERAS,
    PAIR,
    RANDOM,
    TEST,
    TEST_LABELS,
    TRAIN,
    TRAIN_LABELS,
    check_mnist,
    npz,
)
from tests.unit.tiny_pictures import image_folder, images_of, request_for

ARRAYS = {
    "keras": KERAS,
    "medmnist": {
        "pathmnist.npz": {
            "train_images": TRAIN, "train_labels": TRAIN_LABELS[:, None], "test_images": TEST,
            "test_labels": TEST_LABELS[:, None],
        }
    },
    "kmnist": {
        "kmnist-train-imgs.npz": {"arr_0": TRAIN}, "kmnist-train-labels.npz": {"arr_0": TRAIN_LABELS},
        "kmnist-test-imgs.npz": {"arr_0": TEST}, "kmnist-test-labels.npz": {"arr_0": TEST_LABELS},
    },
    "a file for each split": {
        "train.npz": {"arr_0": TRAIN, "arr_1": TRAIN_LABELS}, "test.npz": {"arr_0": TEST, "arr_1": TEST_LABELS},
    },
    "flat": {
        "a.npz": {
            "trainX": TRAIN.reshape(20, 784), "trainY": TRAIN_LABELS, "testX": TEST.reshape(10, 784),
            "testY": TEST_LABELS,
        }
    },
    "texts": {
        "a.npz": {
            "x_train": TRAIN.astype(">i4"), "y_train": TRAIN_LABELS.astype("U"), "x_test": np.asfortranarray(TEST),
            "y_test": TEST_LABELS.astype("U"),
        }
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", ARRAYS)
def test_arrays_of_numpy(tmp_path, layout):
    source = open_dataset(npz(tmp_path / "set", ARRAYS[layout]))
    check_mnist(source)
    flat = "flat arrays of 784 numbers were read as images of 28x28, row by row"
    assert source.account().notes == ((flat,) if layout == "flat" else ())
    assert not source.account().left_out


def test_npy_files_and_what_else_lies_there(tmp_path):
    for name, values in {
        "x_train": TRAIN, "y_train": TRAIN_LABELS, "x_test": TEST, "y_test": TEST_LABELS, "ids": np.arange(20),
    }.items():  # fmt: skip
        np.save(tmp_path / f"{name}.npy", values)
    (tmp_path / "preview.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    source = open_dataset(str(tmp_path))
    check_mnist(source)
    assert passed_by(source.account()) == {
        ("array that is neither images nor labels", ".npy"): 1, ("in no class folder", ".png"): 1,
        ("table that lists no images", ".csv"): 1,
    }  # fmt: skip
    before = local_fingerprint(str(tmp_path), SourceOptions())
    status = (tmp_path / "x_train.npy").stat()
    np.save(tmp_path / "x_train.npy", TRAIN[::-1])
    os.utime(tmp_path / "x_train.npy", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert local_fingerprint(str(tmp_path), SourceOptions()) != before
    check_mnist(open_dataset(str(tmp_path)), train=TRAIN[::-1])


def test_validation_arrays_are_not_dropped(tmp_path):
    val = {"val_images": TEST[:4], "val_labels": TEST_LABELS[:4]}
    name = npz(tmp_path / "set", {"bloodmnist.npz": ARRAYS["medmnist"]["pathmnist.npz"] | val})
    with pytest.raises(DataError, match=r"4 labelled images of split 'val' .*train-split=train\+val"):
        open_dataset(name)
    account = open_dataset(name, train_split="train", test_split="test").account()
    assert taken(account) == CLASSES
    assert passed_by(account) == {("images of a split that is neither trained nor tested on", ".npz"): 4}
    account = open_dataset(name, train_split="train+val", test_split="test").account()
    assert [split.count for split in account.splits] == [24, 10] and not account.left_out


def test_one_pair_of_arrays_is_divided_and_colours_are_read_either_way(tmp_path):
    colours = RANDOM.integers(0, 256, (12, 8, 6, 3), np.uint8)
    for layout, values in (("last", colours), ("first", colours.transpose(0, 3, 1, 2))):
        source = open_dataset(npz(tmp_path / layout, {"a.npz": {"images": values, "labels": np.arange(12) % 2}}))
        assert [split.source.split(" (")[0] for split in source.account().splits] == ["train", "train"]
        found = [image for split in ("train", "test") for image, _ in source.samples(split)]
        assert sorted(image.tobytes() for image in found) == sorted(image.tobytes() for image in colours)


REFUSED = [
    ({"images": TRAIN}, r"no array holds labels by its name or shape; there are a\.npz:images \(20, 28, 28\); .*label-column"),
    ({"labels": TRAIN_LABELS}, r"no array holds images by its name or shape.*image-column"),
    (PAIR | {"data": TRAIN}, r"several arrays can be the images \(a\.npz:images, a\.npz:data\); choose one with image-column"),
    (PAIR | {"target": TRAIN_LABELS}, r"several arrays can be the labels \(a\.npz:labels, a\.npz:target\)"),
    ({"a": TRAIN, "b": TRAIN, "labels": TRAIN_LABELS}, r"several arrays can be the images \(a\.npz:a, a\.npz:b\)"),
    (PAIR | {"x_train": TRAIN}, r"a\.npz:images can be images and tells no split by its name"),
    (
        {"images": TRAIN, "y_train": TRAIN_LABELS, "y_test": TEST_LABELS},
        r"a\.npz:images can be images and tells no split by its name",
    ),
    (
        {"x_train": TRAIN, "x_test": TRAIN, "labels": TRAIN_LABELS},
        r"a\.npz:labels can be labels and tells no split by its name",
    ),
    (PAIR | {"labels": TRAIN_LABELS[:5]}, "holds 5 labels, and .*images 20 images"),
    (PAIR | {"labels": np.eye(20)}, r"labels holds float64 of shape \(20, 20\), not one class for each image"),
    (PAIR | {"labels": TRAIN_LABELS + 0.5}, "holds numbers such as 0.5, which are no classes"),
    (PAIR | {"images": TRAIN.reshape(20, 784)[:, :783]}, "783 numbers of type uint8 for each image, which are no square"),
    (PAIR | {"images": TRAIN.reshape(20, 784) / 255}, "784 numbers of type float64 for each image"),
    (PAIR | {"images": np.zeros((20, 3, 5, 3), np.uint8)}, r"shape \(3, 5, 3\) is no image in either order"),
    (PAIR | {"images": np.zeros((20, 5, 5, 2), np.uint8)}, r"shape \(5, 5, 2\) is no image"),
    (PAIR | {"images": TRAIN.astype("U")}, "which are no pixels"),
    (PAIR | {"images": np.zeros((20, 2, 2, 2, 2), np.uint8)}, r"a\.npz: has the shape \(20, 2, 2, 2, 2\)"),
]  # fmt: skip


@pytest.mark.parametrize(("arrays", "match"), REFUSED)
def test_arrays_that_can_be_read_in_two_ways_or_none_are_refused(tmp_path, arrays, match):
    assert REFUSED
    name = npz(tmp_path / "set", {"a.npz": arrays})
    with pytest.raises(DataError, match=match) as caught:
        open_dataset(name)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["patient_id", "age"])
def test_a_list_of_another_name_is_no_list_of_labels(tmp_path, name):
    folder = npz(tmp_path / "set", {"a.npz": {"images": TRAIN, name: TRAIN_LABELS}})
    with pytest.raises(
        DataError, match=rf"no array holds labels by its name; .*a\.npz:{name} \(20,\).*with label-column"
    ):
        open_dataset(folder)
    assert open_dataset(folder, label_column=name).class_names == ("0", "1", "2")


def test_a_list_without_a_name_that_numbers_images_is_refused(tmp_path):
    folder = npz(tmp_path / "set", {"a.npz": {"arr_0": TRAIN, "arr_1": np.arange(20)}})
    with pytest.raises(DataError, match=r"another value for each of its 20 images.*label-column=a\.npz:arr_1"):
        open_dataset(folder)
    with pytest.raises(DataError, match="too few images .* to .* train all classes"):  # Each is a class now.
        open_dataset(folder, label_column="a.npz:arr_1")


def test_images_and_labels_of_different_splits_are_no_pair(tmp_path):
    for name, values in (("x_train", TRAIN), ("y_test", TRAIN_LABELS)):
        np.save(tmp_path / f"{name}.npy", values)
    with pytest.raises(DataError, match=r"x_train\.npy and the labels y_test\.npy are of different splits"):
        open_dataset(str(tmp_path))
    named = open_dataset(str(tmp_path), image_column="x_train", label_column="y_test")
    assert sum(split.count for split in named.account().splits) == 20


def test_splits_of_labels_and_images_are_matched_by_what_they_mean(tmp_path):
    arrays = {"x_train": TRAIN, "y_train": TRAIN_LABELS, "x_val": TEST, "y_valid": TEST_LABELS}
    account = open_dataset(npz(tmp_path / "val", {"a.npz": arrays})).account()
    assert [split.count for split in account.splits] == [20, 10]
    lone = npz(tmp_path / "lone", {"a.npz": arrays | {"y_test": TEST_LABELS}})
    with pytest.raises(DataError, match=r"a\.npz:y_test holds labels of split 'test', of which there are no images"):
        open_dataset(lone)
    account = open_dataset(lone, train_split="train", test_split="val").account()
    assert passed_by(account) == {("labels of images that are not there", ".npz"): 1}


def test_settings_choose_among_arrays(tmp_path):
    other = {"data": TRAIN[::-1], "target": TRAIN_LABELS[::-1], "weights": np.ones(20)}
    name = npz(tmp_path / "set", {"a.npz": PAIR | other})
    for image, label, level in (("images", "labels", TRAIN), ("data", "target", TRAIN[::-1])):
        source = open_dataset(name, image_column=image, label_column=label, test_fraction=0.05)
        np.testing.assert_array_equal(next(source.samples("train"))[0][:, :, 0], level[0])
        assert passed_by(source.account()) == {("array that is neither images nor labels", ".npz"): 3}
    keras = npz(tmp_path / "keras", {"a.npz": KERAS["mnist.npz"] | {"images_train": TRAIN}})
    check_mnist(open_dataset(keras, image_column="x"))
    with pytest.raises(DataError, match="no array called 'z'"):
        open_dataset(keras, image_column="z")


def test_floats_and_numbers_beyond_8_bits_need_a_range(tmp_path):
    for values, stated in ((TRAIN / 255, "0..1"), (TRAIN.astype(np.int32) * 16, "0..4080")):
        name = npz(tmp_path / stated, {"a.npz": PAIR | {"images": values}})
        with pytest.raises(DataError, match=r"have no known range.*pixel-range"):
            list(open_dataset(name).samples("train"))
        source = open_dataset(name, pixel_range=stated)
        found = [image for split in ("train", "test") for image, _ in source.samples(split)]
        assert sorted(image.tobytes() for image in found) == sorted(image.tobytes() for image in TRAIN)


def test_pickled_objects_are_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "loaded"),)

    bombs = np.array([Bomb()] * 20, object)
    (tmp_path / "set").mkdir()
    np.savez(tmp_path / "set" / "a.npz", images=TRAIN, labels=bombs)
    with pytest.raises(DataError, match=r"labels holds object of shape \(20,\), not one class for each image"):
        open_dataset(str(tmp_path / "set"))
    np.savez(tmp_path / "set" / "a.npz", images=bombs, labels=TRAIN_LABELS)
    with pytest.raises(DataError, match="holds object, which are no pixels"):
        open_dataset(str(tmp_path / "set"))
    np.savez(tmp_path / "set" / "a.npz", images=TRAIN, labels=TRAIN_LABELS, extra=bombs)
    assert passed_by(open_dataset(str(tmp_path / "set")).account()) == {
        ("array that is neither images nor labels", ".npz"): 1
    }
    assert not (tmp_path / "loaded").exists()


def test_damaged_numpy_files_are_refused(tmp_path):
    for name, values in {"x": TRAIN, "y": TRAIN_LABELS}.items():
        np.save(tmp_path / f"{name}.npy", values)
    whole = (tmp_path / "x.npy").read_bytes()
    huge = whole.replace(b"(20, 28, 28)", b"(20, 28,999)")
    for content, match in (
        (whole[:-1], "its header tells"), (whole + b"x", "its header tells"), (huge, "its header tells"),
        (whole[:40], r"x\.npy: "), (b"", r"x\.npy: "),
        (whole.replace(b"(20, 28, 28)", b"(20,-28, 28)"), "has the shape"),
    ):  # fmt: skip
        (tmp_path / "x.npy").write_bytes(content)
        with pytest.raises(DataError, match=rf"x\.npy.*{match}" if "npy" not in match else match):
            open_dataset(str(tmp_path))
    bomb = tmp_path / "bomb"
    bomb.mkdir()
    with zipfile.ZipFile(bomb / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", huge)
        archive.write(tmp_path / "y.npy", "labels.npy")
    with pytest.raises(DataError, match=r"images\.npy has another size than its header tells"):
        open_dataset(str(bomb))
    (bomb / "a.npz").write_bytes((bomb / "a.npz").read_bytes()[:-40])
    with pytest.raises(DataError, match=r"a\.npz: File is not a zip file"):
        open_dataset(str(bomb))


def test_arrays_beside_other_images_are_refused_and_stray_ones_named(tmp_path):
    name = image_folder(tmp_path / "set", {"cat": 5, "dog": 5})
    np.savez(tmp_path / "set" / "a.npz", **PAIR)
    with pytest.raises(
        DataError, match=r"holds images by class and arrays with images and labels, such as a\.npz; choose"
    ):
        open_dataset(name)
    for options in ({"read_as": "folders"}, {"leave_out": "*.npz"}):
        account = open_dataset(name, **options).account()
        assert account.reader == "images by class"
        assert sum(passed_by(account).values()) == 1
    assert "arrays" in open_dataset(name, leave_out="cat,dog").account().reader
    np.savez(tmp_path / "set" / "a.npz", embeddings=np.ones((10, 512)))
    assert passed_by(open_dataset(name).account()) == {("array of numbers", ".npz"): 1}


def test_stores_hold_the_images_of_arrays(tmp_path):
    name = npz(tmp_path / "set", KERAS)
    stores = ensure_stores(tmp_path / "root", request_for(name, patch_size=(14, 14), stride=(14, 14)))
    np.testing.assert_array_equal(images_of(stores)[:, 0], np.concatenate([TRAIN, TEST]))
    assert stores.labels.tolist() == [*TRAIN_LABELS, *TEST_LABELS]
    assert not ensure_stores(tmp_path / "root", request_for(name, patch_size=(14, 14), stride=(14, 14))).created
