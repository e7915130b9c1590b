"""Folders of MNIST's idx files, good ones and bad."""

import gzip
import struct

import pytest

from psl_flower.data.sources import open_dataset
from psl_flower.errors import DataError
from tests.unit.accounts import passed_by
from tests.unit.tiny_arrays import TRAIN, TRAIN_LABELS, check_mnist, idx, idx_folder

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
