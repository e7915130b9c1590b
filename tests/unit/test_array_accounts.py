"""Folders of MNIST-like arrays: idx, npy and npz files and tables with a column for each pixel, good ones and bad."""

import gzip
import os
import struct
import zipfile

import numpy as np
import pytest

from psl_flower.data.options import SourceOptions
from psl_flower.data.sources import local_fingerprint, open_dataset
from psl_flower.errors import DataError
from psl_flower.stores.ingest import ensure_stores
from tests.unit.accounts import passed_by, taken
from tests.unit.tiny_pictures import image_folder, images_of, request_for

RANDOM = np.random.default_rng(5)
TRAIN, TEST = (RANDOM.integers(0, 256, (count, 28, 28), np.uint8) for count in (20, 10))
TRAIN_LABELS, TEST_LABELS = (np.arange(count, dtype=np.uint8) % 3 for count in (20, 10))
CLASSES = {"train": {"0": 7, "1": 7, "2": 6}, "test": {"0": 4, "1": 3, "2": 3}}


def idx(values, kind=0x08):
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, kind, values.ndim, *values.shape) + values.tobytes()


def idx_folder(root, names, pack=False):
    """Write MNIST's four files under these names: images and labels to train, then to test."""
    root.mkdir(parents=True, exist_ok=True)
    for name, values in zip(names, (TRAIN, TRAIN_LABELS, TEST, TEST_LABELS), strict=True):
        content = idx(values)
        (root / name).write_bytes(gzip.compress(content) if pack else content)
    return str(root)


def npz(root, files):
    root.mkdir(parents=True, exist_ok=True)
    for k, (file, arrays) in enumerate(files.items()):
        (np.savez if k % 2 else np.savez_compressed)(root / file, **arrays)
    return str(root)


def pixel_table(path, columns, images, labels=None, name="label"):
    """Write a table with a column for each pixel, and the labels' column before these."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = images.reshape(len(images), -1).tolist()
    head = [name] * (labels is not None) + columns
    lines = [[*([labels[k]] if labels is not None else []), *row] for k, row in enumerate(rows)]
    path.write_text("\n".join(",".join(map(str, line)) for line in [head, *lines]) + "\n")
    return str(path.parent)


def check_mnist(source, train=TRAIN, test=TEST):
    """Check that these are MNIST's images, each with its own class."""
    assert taken(source.account()) == CLASSES
    for split, images, labels in (("train", train, TRAIN_LABELS), ("test", test, TEST_LABELS)):
        found = list(source.samples(split))
        np.testing.assert_array_equal(np.stack([image[:, :, 0] for image, _ in found]), images)
        assert [source.class_names[label] for _, label in found] == list(map(str, labels))


# --- idx

IDX = {
    "mnist": "train-images-idx3-ubyte train-labels-idx1-ubyte t10k-images-idx3-ubyte t10k-labels-idx1-ubyte",
    "kaggle": "train-images.idx3-ubyte train-labels.idx1-ubyte t10k-images.idx3-ubyte t10k-labels.idx1-ubyte",
    "emnist": "emnist-letters-train-images-idx3-ubyte emnist-letters-train-labels-idx1-ubyte "
    "emnist-letters-test-images-idx3-ubyte emnist-letters-test-labels-idx1-ubyte",
}


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("names", IDX)
def test_pairs_of_idx_files(tmp_path, names, pack):
    files = [name + ".gz" * pack for name in IDX[names].split()]
    source = open_dataset(idx_folder(tmp_path / "set", files, pack))
    check_mnist(source)
    assert source.account().reader == f"arrays, images from '{files[0]}', classes from '{files[1]}'"
    assert not source.account().left_out


def test_packed_copies_and_other_files_are_named(tmp_path):
    names = IDX["mnist"].split()
    idx_folder(tmp_path / "MNIST" / "raw", names)
    idx_folder(tmp_path / "MNIST" / "raw", [f"{name}.gz" for name in names], pack=True)
    (tmp_path / "MNIST" / "raw" / "mapping.txt").write_text("0 48")
    source = open_dataset(str(tmp_path))
    check_mnist(source)
    assert passed_by(source.account()) == {("packed copy of the file beside it", ".gz"): 4, ("not an image", ".txt"): 1}
    packed = tmp_path / "MNIST" / "raw" / f"{names[0]}.gz"
    packed.write_bytes(gzip.compress(idx(TRAIN[:9])))
    with pytest.raises(DataError, match=r"several arrays can be the images of split 'train' \(.*\.gz.*leave-out"):
        open_dataset(str(tmp_path))
    check_mnist(open_dataset(str(tmp_path), leave_out="*.gz"))


def test_two_datasets_in_one_folder_are_not_mixed(tmp_path):
    for place in ("MNIST/raw", "FashionMNIST/raw"):
        idx_folder(tmp_path / place, IDX["mnist"].split())
    with pytest.raises(
        DataError, match=r"several arrays can be the images of split 'test' \(FashionMNIST/raw/.*leave-out"
    ):
        open_dataset(str(tmp_path))
    check_mnist(open_dataset(str(tmp_path), leave_out="FashionMNIST"))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (idx(TRAIN)[:-1], r"has 15695 bytes, which does not fit the 20x28x28 1-byte values"),
        (idx(TRAIN) + b"x", r"has 15697 bytes"),
        (idx(TRAIN)[:10], "ends within its header"),
        (b"\0\0\x07\3" + idx(TRAIN)[4:], "is no idx file"),
        (b"\0\0\x08\xff" + idx(TRAIN)[4:], "is no idx file"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "does not fit the 4294967295x4294967295"),
        (b"", "is no idx file"),
    ],
)
@pytest.mark.parametrize("pack", [False, True])
def test_damaged_idx_files_are_refused_before_anything_is_allocated(tmp_path, content, match, pack):
    files = [name + ".gz" * pack for name in IDX["mnist"].split()]
    name = idx_folder(tmp_path / "set", files, pack)
    (tmp_path / "set" / files[0]).write_bytes(gzip.compress(content) if pack else content)
    if pack and content[:4] == idx(TRAIN)[:4] and len(content) in (15695, 15697):
        # How much a packed file holds is known once it is unpacked.
        with pytest.raises(DataError, match="unpacked it does not hold the 20x28x28 values"):
            list(open_dataset(name).samples("train"))
        return
    with pytest.raises(DataError, match=rf"{files[0]}: .*{match}.*leave-out={files[0]}"):
        open_dataset(name)


def test_counts_that_differ_are_refused(tmp_path):
    name = idx_folder(tmp_path / "set", IDX["mnist"].split())
    (tmp_path / "set" / "train-labels-idx1-ubyte").write_bytes(idx(TRAIN_LABELS[:19]))
    with pytest.raises(
        DataError, match=r"train-labels-idx1-ubyte holds 19 labels, and train-images-idx3-ubyte 20 images"
    ):
        open_dataset(name)


# --- npz and npy

ARRAYS = {
    "keras": {"mnist.npz": {"x_train": TRAIN, "y_train": TRAIN_LABELS, "x_test": TEST, "y_test": TEST_LABELS}},
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


PAIR = {"images": TRAIN, "labels": TRAIN_LABELS}
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
    keras = npz(tmp_path / "keras", {"a.npz": ARRAYS["keras"]["mnist.npz"] | {"images_train": TRAIN}})
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


# --- tables with a column for each pixel

NUMBERED = [f"pixel{k}" for k in range(784)]
HEADERS = {
    "kaggle": NUMBERED,
    "fashion": [f"pixel{k}" for k in range(1, 785)],
    "mnist_train": [f"{y}x{x}" for y in range(1, 29) for x in range(1, 29)],
    "hmnist": [f"pixel{k:04}" for k in range(784)],
}


@pytest.mark.parametrize("header", HEADERS)
def test_tables_with_a_column_for_each_pixel(tmp_path, header):
    pixel_table(tmp_path / "set" / "fashion-mnist_train.csv", HEADERS[header], TRAIN, TRAIN_LABELS)
    name = pixel_table(tmp_path / "set" / "fashion-mnist_test.csv", HEADERS[header], TEST, TEST_LABELS)
    source = open_dataset(name)
    check_mnist(source)
    assert (
        "images from column 'pixels'" in source.account().reader and "classes from 'label'" in source.account().reader
    )
    square = "flat lists of 784 numbers were read as images of 28x28, row by row"
    assert source.account().notes == (() if header == "mnist_train" else (square,))


def test_kaggles_digits_have_no_labels_to_test_on(tmp_path):
    pixel_table(tmp_path / "set" / "train.csv", NUMBERED, TRAIN, TRAIN_LABELS)
    name = pixel_table(tmp_path / "set" / "test.csv", NUMBERED, TEST)
    (tmp_path / "set" / "sample_submission.csv").write_text("ImageId,Label\n1,0\n2,0\n")
    with pytest.raises(DataError, match=r"split 'test' has no column 'label'.*test-split=none"):
        open_dataset(name)
    account = open_dataset(name, test_split="none").account()
    assert sum(split.count for split in account.splits) == 20
    assert passed_by(account) == {
        ("table that lists no images", ".csv"): 1, ("rows of a split that is neither trained nor tested on", ""): 10,
    }  # fmt: skip


def test_columns_out_of_order_are_put_in_order_by_their_numbers(tmp_path):
    order = RANDOM.permutation(784)
    pixel_table(
        tmp_path / "set" / "train.csv", [NUMBERED[k] for k in order], TRAIN.reshape(20, 784)[:, order], TRAIN_LABELS
    )
    name = pixel_table(tmp_path / "set" / "test.csv", NUMBERED, TEST, TEST_LABELS)
    check_mnist(open_dataset(name))


def test_images_that_are_no_squares_are_read_where_the_columns_say_their_size(tmp_path):
    images = RANDOM.integers(0, 256, (20, 8, 10), np.uint8)
    name = pixel_table(tmp_path / "a.csv", [f"{y}x{x}" for y in range(8) for x in range(10)], images, TRAIN_LABELS)
    found = [image for split in ("train", "test") for image, _ in open_dataset(name).samples(split)]
    assert sorted(image.tobytes() for image in found) == sorted(image.tobytes() for image in images)


CROSSED = [f"{y}x{x}" for x in range(1, 29) for y in range(1, 29)]
FLAT = TRAIN.reshape(20, 784)
WRONG = [
    (NUMBERED[:783], FLAT[:, :783], "783 columns for pixels, which is no square.*call them 1x1, 1x2"),
    ([*NUMBERED[:783], "pixel784"], FLAT, "784 columns for pixels, pixel0 to pixel784, of which some are missing"),
    ([*NUMBERED[2:], "pixel784", "pixel785"], FLAT, "some are missing"),
    ([*NUMBERED[:783], "pixel00"], FLAT, "some are missing or there twice"),
    (CROSSED, FLAT, "do not go through the image row by row"),
    (NUMBERED, FLAT / 255, "has a column 'pixel0' for pixels with something else than whole numbers"),
    ([f"pixel{k}" for k in range(2352)], np.zeros((20, 2352), int), "2352 columns for pixels, which is no square"),
    ([str(k) for k in range(784)], FLAT, "no column holds images; the columns are label, 0, .* and 765 more"),
]


@pytest.mark.parametrize(("columns", "values", "match"), WRONG)
def test_columns_of_pixels_that_can_be_read_in_two_ways_are_refused(tmp_path, columns, values, match):
    assert WRONG
    name = pixel_table(tmp_path / "train.csv", columns, values, TRAIN_LABELS)
    with pytest.raises(DataError, match=match) as caught:
        open_dataset(name)
    assert name in str(caught.value) and "train.csv" in str(caught.value) and len(str(caught.value)) < 700


def test_a_table_without_names_of_its_columns_says_so(tmp_path):
    name = pixel_table(tmp_path / "mnist_train.csv", [str(k % 9) for k in range(784)], TRAIN, TRAIN_LABELS, name="5")
    with pytest.raises(
        DataError, match=r"mnist_train\.csv: has numbers in its first row, not names of columns; put those"
    ):
        open_dataset(name)
    (tmp_path / "mnist_train.csv").write_text(
        (tmp_path / "mnist_train.csv").read_text().replace("5,0,1", "label,0,1", 1)
    )
    with pytest.raises(DataError, match=r"cannot be read as a table"):
        open_dataset(name)


def test_empty_cells_beyond_the_first_rows_are_said(tmp_path):
    many = np.tile(FLAT, (30, 1))
    name = pixel_table(tmp_path / "train.csv", NUMBERED, many, np.tile(TRAIN_LABELS, 30))
    text = (tmp_path / "train.csv").read_text()
    (tmp_path / "train.csv").write_text(text.rstrip().rpartition(",")[0] + ",\n")
    with pytest.raises(DataError, match=r"train\.csv has a column 'pixel783' for pixels with something else"):
        open_dataset(name)


def test_stores_hold_the_images_of_arrays(tmp_path):
    name = npz(tmp_path / "set", ARRAYS["keras"])
    stores = ensure_stores(tmp_path / "root", request_for(name, patch_size=(14, 14), stride=(14, 14)))
    np.testing.assert_array_equal(images_of(stores)[:, 0], np.concatenate([TRAIN, TEST]))
    assert stores.labels.tolist() == [*TRAIN_LABELS, *TEST_LABELS]
    assert not ensure_stores(tmp_path / "root", request_for(name, patch_size=(14, 14), stride=(14, 14))).created
