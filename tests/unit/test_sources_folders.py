"""open_dataset: folders of images by class, good ones and bad."""

import subprocess
import sys

import numpy as np
import pytest

from psl_flower.data.sources import open_dataset
from psl_flower.errors import CorruptImage, DataError
from tests.paths import ROOT
from tests.unit.tiny_pictures import encode, image_folder, levels


def test_train_and_test_folders(tmp_path):
    name = image_folder(tmp_path / "set", {"train/dog": 2, "train/cat": 1, "test/cat": 1, "test/dog": 1, "notes/x": 1})
    with pytest.raises(DataError, match=r"'train' looks like a split.*'notes' like a class.*leave-out=notes"):
        open_dataset(name)
    source = open_dataset(name, leave_out="notes")
    assert source.class_names == ("cat", "dog")
    assert levels(source, "train") == [(10, 0), (0, 1), (1, 1)]
    assert levels(source, "test") == [(20, 0), (30, 1)]


def test_val_folder_serves_as_test(tmp_path):
    source = open_dataset(image_folder(tmp_path / "set", {"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1}))
    assert (source.num_samples("train"), source.num_samples("test")) == (4, 2)


def test_class_folders_called_like_splits_are_classes(tmp_path):
    name = image_folder(tmp_path / "set", {"train": 5, "car": 5, "test tube": 5})
    assert open_dataset(name).class_names == ("car", "test tube", "train")


def test_other_files_and_deeper_folders(tmp_path):
    name = image_folder(tmp_path / "set", {"cat/indoors": 3, "cat/outdoors": 3, "dog": 3, ".hidden": 2})
    for stray in ("Thumbs.db", "cat/readme.txt", "top.png"):
        (tmp_path / "set" / stray).write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"is its class 'cat' or 'cat/\w+'\? .*class-folder=top or class-folder=leaf"):
        open_dataset(name)
    source = open_dataset(name, class_folder="top")
    assert source.class_names == ("cat", "dog")
    assert source.num_samples("train") + source.num_samples("test") == 9
    assert open_dataset(name, class_folder="leaf").class_names == ("cat/indoors", "cat/outdoors", "dog")


def test_local_folder_does_not_need_the_datasets_library(tmp_path):
    name = image_folder(tmp_path / "set", {"cat": 3, "dog": 3})
    program = (
        "import sys; from psl_flower.data.sources import open_dataset;"
        f"s = open_dataset({name!r}); print(s.fingerprint, 'datasets' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == [open_dataset(name).fingerprint, "False"]


def test_no_columns_to_choose_from(tmp_path):
    name = image_folder(tmp_path / "set", {"cat": 3, "dog": 3})
    with pytest.raises(DataError, match="no columns to choose from"):
        open_dataset(name, label_column="label")


def test_broken_and_vanished_files_are_named(tmp_path):
    name = image_folder(tmp_path / "set", {"train/cat": 2, "train/dog": 2, "test/cat": 1, "test/dog": 1})
    source = open_dataset(name)
    broken = tmp_path / "set" / "train" / "dog" / "0.png"
    broken.write_bytes(b"nonsense")
    with pytest.raises(CorruptImage, match=rf"image 2 of split 'train' \({broken}\)"):
        list(source.samples("train"))
    broken.unlink()
    with pytest.raises(CorruptImage, match=rf"{broken}\): cannot be read"):
        list(source.samples("train"))


@pytest.mark.parametrize("name", ["img[1].png", "img, copy.png", "why?.png", "*.png", "a[!b]*?,.png"])
def test_the_setting_that_skips_a_broken_image_works_as_it_is_printed(tmp_path, name):
    folder = image_folder(tmp_path / "set", {"train/cat": 3, "train/dog": 3, "test/cat": 1, "test/dog": 1})
    (tmp_path / "set" / "train" / "cat" / name).write_bytes(b"nonsense")
    with pytest.raises(CorruptImage) as error:
        list(open_dataset(folder).samples("train"))
    _, _, setting = str(error.value).rpartition("leave-out=")
    assert len(list(open_dataset(folder, leave_out=setting).samples("train"))) == 6


def test_channels_must_agree_across_splits(tmp_path):
    name = image_folder(tmp_path / "set", {"train/cat": 2, "train/dog": 2, "test/cat": 1, "test/dog": 1})
    (tmp_path / "set" / "test" / "dog" / "0.png").write_bytes(encode(np.zeros((6, 8), np.uint8)))
    source = open_dataset(name)
    assert len(list(source.samples("train"))) == 4
    with pytest.raises(
        DataError,
        match=r"image 1 of split 'test' \(test/dog/0\.png\) has 1 channel, image 0 .*\(train/cat/0\.png\) has 3",
    ):
        list(source.samples("test"))
