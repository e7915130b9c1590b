"""What is read of odd folders, and what is not: the account says all of it, or the error says what to do."""

import pytest

from psl_flower.data.sources import open_dataset
from psl_flower.errors import DataError
from tests.unit.accounts import passed_by, taken
from tests.unit.tiny_pictures import image_folder

TWO = {"cat": 5, "dog": 5}


SPLITS = [
    # As people and archives call them.
    ({"Train/cat": 3, "Train/dog": 2, "Test/cat": 1, "Test/dog": 1}, {"cat": 3, "dog": 2}, {"cat": 1, "dog": 1}),
    ({"TRAIN/cat": 3, "TRAIN/dog": 2, "VAL/cat": 1, "VAL/dog": 1}, {"cat": 3, "dog": 2}, {"cat": 1, "dog": 1}),
    ({"training/a": 3, "training/b": 2, "testing/a": 1, "testing/b": 1}, {"a": 3, "b": 2}, {"a": 1, "b": 1}),
    ({"train/a": 3, "train/b": 2, "valid/a": 1, "valid/b": 1}, {"a": 3, "b": 2}, {"a": 1, "b": 1}),
    ({"train/a": 3, "train/b": 2, "eval/a": 1, "eval/b": 1}, {"a": 3, "b": 2}, {"a": 1, "b": 1}),
    ({"train/a": 3, "train/b": 2, "dev/a": 1, "dev/b": 1}, {"a": 3, "b": 2}, {"a": 1, "b": 1}),
    ({"train2017/a": 3, "train2017/b": 2, "val2017/a": 1, "val2017/b": 1}, {"a": 3, "b": 2}, {"a": 1, "b": 1}),
    # In folders that say nothing, and doubled.
    ({"pets/v2/train/a": 3, "pets/v2/train/b": 2, "pets/v2/test/a": 1}, {"a": 3, "b": 2}, {"a": 1, "b": 0}),
    ({"x_train/x_train/a": 3, "x_train/x_train/b": 2, "x_test/x_test/a": 1}, {"a": 3, "b": 2}, {"a": 1, "b": 0}),
    ({"train/train/a": 3, "train/train/b": 2, "test/test/b": 1}, {"a": 3, "b": 2}, {"a": 0, "b": 1}),
    # Folders within a class that divide nothing.
    ({"train/a/images": 3, "train/b/images": 2, "test/a/x": 1, "test/b": 1}, {"a": 3, "b": 2}, {"a": 1, "b": 1}),
]


@pytest.mark.parametrize(("spec", "train", "test"), SPLITS, ids=[",".join(spec) for spec, _, _ in SPLITS])
def test_splits_are_known_by_their_names(tmp_path, spec, train, test):
    assert SPLITS
    account = open_dataset(image_folder(tmp_path / "set", spec)).account()
    assert taken(account) == {"train": train, "test": test}
    assert not account.left_out


CLASSES = [
    ({"cat": 8, "dog": 8}, ("cat", "dog")),
    ({"train": 5, "car": 5, "test tube": 5}, ("car", "test tube", "train")),
    ({"pets/cat": 8, "pets/dog": 8}, ("cat", "dog")),
    ({"train/cat": 8, "train/dog": 8}, ("cat", "dog")),
    ({"train station": 8, "train depot": 8}, ("train depot", "train station")),
]


@pytest.mark.parametrize(("spec", "names"), CLASSES, ids=[",".join(spec) for spec, _ in CLASSES])
def test_folders_without_a_split_beside_them_are_divided(tmp_path, spec, names):
    assert CLASSES
    account = open_dataset(image_folder(tmp_path / "set", spec)).account()
    train, test = account.splits
    assert tuple(train.classes) == names
    for name, count in zip(names, sorted(spec.values()), strict=True):
        assert train.classes[name] + test.classes[name] == count
    assert "held back" in test.source and f"all but {test.count}" in train.source
    assert not account.left_out


REFUSED = [
    ({"test/cat": 2, "test/dog": 2, "val/cat": 2}, {}, r'no split is called "train".*test, val.*train-split=test'),
    ({"train/a": 2, "train/b": 2, "test/a": 1, "val/a": 1, "val/b": 1}, {}, r"2 labelled images of split 'val'.*train-split=train\+val.*train-split=train test-split=test"),
    ({"train/a": 2, "train/b": 2, "extra/a": 1}, {}, r"'train' looks like a split.*'extra'.*leave-out=extra"),
    ({"train": 4, "test": 2}, {}, r"neither images .*6 images.*in no class folder"),
    ({"x_train": 4, "x_test": 2}, {}, r"neither images .*6 images.*in no class folder"),
    ({"train": 4, "test": 2, "car": 3}, {}, r"'test' and 'train' look like splits.*rename"),
    ({"pictures": 5}, {}, "all of one class"),
    ({"train/a": 2, "train/b": 2, "test": 3}, {}, r"split 'test': its images lie in no class folders.*test-split=none"),
    ({"Train/a": 2, "Train/b": 2, "train/a": 3, "train/b": 1}, {}, r"4 labelled images of split 'Train' would be left out: add them with train-split=train\+Train"),
    ({"animals/cat": 3, "animals/dog": 3, "things/car": 3}, {}, "class-folder=top or class-folder=leaf"),
    ({"train/a": 2, "train/b": 2, "val/images": 3}, {}, "'images'.*no test image of it could be recognised"),
    ({"train/Cat": 2, "train/dog": 2, "test/cat": 1, "test/dog": 1}, {}, "'cat' where 'train' has 'Cat'"),
    ({"train/cafe\u0301": 2, "train/b": 2, "test/caf\u00e9": 1, "test/b": 1}, {}, "one name in all splits"),
    ({"a": 3, "b": 3}, {"train_split": "learn"}, r"no folder 'learn' .*there are a, b"),
    ({"learn/a": 2, "learn/b": 2, "rest/a": 1}, {"train_split": "learn"}, r"images in rest/a/ would be in no split.*leave-out"),
    ({"train/a": 2, "train/b": 2}, {"train_split": "train", "test_split": "train"}, "cannot be trained and tested on"),
    ({"t/a": 2, "t/b": 2}, {"train_split": "t", "test_split": "t/a"}, "split 't/a' lies in split 't'"),
    ({"a": 3, "b": 3}, {"read_as": "tables"}, "neither images"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "options", "match"), REFUSED)
def test_what_can_be_read_in_two_ways_is_refused_with_the_way_out(tmp_path, spec, options, match):
    assert REFUSED
    with pytest.raises(DataError, match=match):
        open_dataset(image_folder(tmp_path / "set", spec), **options)


WAYS_OUT = [
    (
        {"train/a": 2, "train/b": 2, "test/a": 1, "val/a": 1, "val/b": 1},
        {"train_split": "train+val"},
        {"train": {"a": 3, "b": 3}, "test": {"a": 1, "b": 0}},
        {},
    ),
    (
        {"train/a": 2, "train/b": 2, "test/a": 1, "val/a": 1, "val/b": 1},
        {"train_split": "train", "test_split": "val"},
        {"train": {"a": 2, "b": 2}, "test": {"a": 1, "b": 1}},
        {("in no split asked for", ".png"): 1},
    ),
    (
        {"test/cat": 2, "test/dog": 3, "val/cat": 2},
        {"train_split": "Test", "test_split": "val"},
        {"train": {"cat": 2, "dog": 3}, "test": {"cat": 2, "dog": 0}},
        {},
    ),
    (
        {"pets/learn/a": 2, "pets/learn/b": 2, "pets/holdout/a": 1, "pets/rest/x": 4},
        {"train_split": "learn", "test_split": "pets/holdout"},
        {"train": {"a": 2, "b": 2}, "test": {"a": 1, "b": 0}},
        {("in no split asked for", ".png"): 4},
    ),
    (
        {"animals/cat": 5, "animals/dog": 5, "things/car": 5},
        {"class_folder": "leaf", "test_fraction": 0.2},
        {
            "train": {"animals/cat": 4, "animals/dog": 4, "things/car": 4},
            "test": {"animals/cat": 1, "animals/dog": 1, "things/car": 1},
        },
        {},
    ),
    (
        {"animals/cat": 5, "animals/dog": 5, "things/car": 5},
        {"class_folder": "top", "test_fraction": 0.2},
        {"train": {"animals": 8, "things": 4}, "test": {"animals": 2, "things": 1}},
        {},
    ),
    (
        {"train/a": 2, "train/b": 2, "extra/a": 3},
        {"leave_out": "extra, extra/a/*", "test_split": "none", "test_fraction": 0.5},
        {"train": {"a": 1, "b": 1}, "test": {"a": 1, "b": 1}},
        {("named by leave-out", ""): 3},
    ),
]


@pytest.mark.parametrize(("spec", "options", "expected", "left"), WAYS_OUT)
def test_settings_decide_what_is_read(tmp_path, spec, options, expected, left):
    assert WAYS_OUT
    account = open_dataset(image_folder(tmp_path / "set", spec), **options).account()
    assert taken(account) == expected
    assert passed_by(account) == left


def test_an_account_has_images_beyond_the_most_that_are_asked_for(tmp_path):
    name = image_folder(tmp_path / "set", {"train/a": 9, "train/b": 9, "test/a": 5, "test/b": 5})
    account = open_dataset(name, max_train=4, max_test=3).account()
    assert [split.count for split in account.splits] == [4, 3]
    assert passed_by(account) == {("beyond max-train or max-test", ""): 21}
