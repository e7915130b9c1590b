"""Folders that hold no image where a split or a class is expected, and patterns of leave-out that match nothing."""

from pathlib import Path

import numpy as np
import pytest

from psl_flower.data.options import SourceOptions
from psl_flower.data.sources import local_fingerprint, open_dataset
from psl_flower.errors import DataError
from tests.unit.accounts import passed_by, taken
from tests.unit.tiny_pictures import image_folder

CLASSES = {"cat": 5, "dog": 5}
SPLIT = {"train/cat": 5, "train/dog": 5}


def fill(root: Path, path: str, kind: str) -> None:
    """Make an empty folder, a dead link, or a folder with a text, a table or arrays."""
    place = root / path
    if kind == "dead link":
        place.symlink_to(root.parent / "nowhere")
        return
    place.mkdir(parents=True)
    if kind == "text":
        (place / "readme.txt").write_text("to come")
    elif kind == "table":
        (place / "list.csv").write_text("a,b\n1,2\n")
    elif kind == "arrays":
        for number in range(3):
            np.save(place / f"{number}.npy", np.zeros((4, 4)))
    elif kind == "films":
        (place / "0.mp4").write_bytes(b"\0\0\0\x18ftypmp42")


REFUSED = [
    # An empty test split, for which a part of the training images would stand in.
    (SPLIT, "test", "empty", r"folder test is called as a split and holds no file.*leave-out=test"),
    (SPLIT, "Val", "empty", r"folder Val is called as a split.*leave-out=Val"),
    (SPLIT, "test/cat", "text", r"folder test .* no readable image, only 1 other file, such as test/cat/readme\.txt"),
    ({**SPLIT, "test/cat": 2, "test/dog": 1}, "validation", "empty", "validation is called as a split"),
    ({"x_train/a": 5, "x_train/b": 5}, "x_test", "empty", "folder x_test is called as a split"),
    ({"pets/train/a": 5, "pets/train/b": 5}, "pets/test", "empty", r"leave-out=pets/test"),
    ({"pets/train/a": 5, "pets/train/b": 5}, "test", "empty", r"folder test is called as a split"),
    (CLASSES, "test", "empty", "folder test is called as a split"),
    (SPLIT, "test", "dead link", r"test, where the folder of a split .* link to nothing; mend it, .*leave-out=test"),
    (CLASSES, "bird", "dead link", r"bird, where .* link to nothing.*leave-out=bird"),
    (SPLIT, "train/bird v1.0 old", "dead link", "link to nothing"),
    # A class in a format that is not read.
    (CLASSES, "bird", "arrays", r"bird lies beside class folders and holds .*3 other files, such as bird/0\.npy: convert"),
    (CLASSES, "bird", "films", r"bird lies beside class folders .*1 other file, such as bird/0\.mp4.*leave-out=bird"),
    (SPLIT, "train/bird", "arrays", r"leave-out=train/bird"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "path", "kind", "match"), REFUSED)
def test_a_split_or_class_that_would_be_lost_is_refused_with_the_way_out(tmp_path, spec, path, kind, match):
    assert REFUSED
    name = image_folder(tmp_path / "set", spec)
    whole = taken(open_dataset(name).account())
    fill(tmp_path / "set", path, kind)
    with pytest.raises(DataError, match=match):
        open_dataset(name)
    left = path.split("/")[0] if path == "test/cat" else path
    account = open_dataset(name, leave_out=left).account()
    assert taken(account) == whole
    assert all(reason == "named by leave-out" for reason, _ in passed_by(account))


SAID = [
    (CLASSES, "notes", "text", {("not an image", ".txt"): 1}, ""),
    (CLASSES, "notes", "table", {("table", ".csv"): 1}, ""),
    (CLASSES, "bird", "empty", {}, "1 empty folder beside the class folders, such as bird: no class"),
    (CLASSES, "cat/old", "empty", {}, ""),
    (SPLIT, "weights", "films", {("not an image", ".mp4"): 1}, ""),
    (CLASSES, "gone.png", "dead link", {("link to nothing", ".png"): 1}, ""),
    (CLASSES, "cat/gone", "dead link", {("link to nothing", ""): 1}, ""),
]


@pytest.mark.parametrize(("spec", "path", "kind", "left", "note"), SAID)
def test_what_is_no_split_and_no_class_is_said_in_the_account(tmp_path, spec, path, kind, left, note):
    assert SAID
    name = image_folder(tmp_path / "set", spec)
    fill(tmp_path / "set", path, kind)
    account = open_dataset(name).account()
    assert sum(split.count for split in account.splits) == 10
    assert passed_by(account) == left
    assert account.notes == ((note,) if note else ())


def test_where_the_splits_are_stated_no_other_is_missed(tmp_path):
    name = image_folder(tmp_path / "set", SPLIT)
    fill(tmp_path / "set", "test", "empty")
    account = open_dataset(name, train_split="train", test_split="none").account()
    assert sum(split.count for split in account.splits) == 10


# --- leave-out


UNMATCHED = [
    ("*.tiff", r"leave-out=\*\.tiff matches nothing in the folder, which holds "),
    ("Cat", r"leave-out=Cat matches nothing in the folder; did you mean cat\?"),
    ("cat, dgo", r"leave-out=dgo matches nothing in the folder; did you mean dog\?"),
    ("*.PNG", r"did you mean \*\.png\?"),
    ("cat/", r"leave-out=cat/ matches nothing in the folder: folders are named without a slash.*mean cat\?"),
    ("cat/7.png", r"leave-out=cat/7\.png matches nothing"),
]


@pytest.mark.parametrize(("patterns", "match"), UNMATCHED)
def test_a_pattern_that_matches_nothing_is_refused(tmp_path, patterns, match):
    assert UNMATCHED
    name = image_folder(tmp_path / "set", {**CLASSES, "bird": 3})
    with pytest.raises(DataError, match=match):
        open_dataset(name, leave_out=patterns)
    with pytest.raises(DataError, match="matches nothing"):
        local_fingerprint(name, SourceOptions(leave_out=patterns))


@pytest.mark.parametrize("patterns", ["cat/[01].png", "old,old/x/*", "old,*.txt", "@eaDir", "cat/*.png, dog/1.png"])
def test_patterns_match_also_within_what_is_passed_by(tmp_path, patterns):
    name = image_folder(tmp_path / "set", {**CLASSES, "bird": 3, "old/x": 1, "@eaDir": 1})
    (tmp_path / "set" / "old" / "x" / "notes.txt").write_text("text")
    options = SourceOptions(leave_out=patterns, class_folder="leaf")
    assert open_dataset(name, options).account().left_out


def test_only_a_folder_has_files_to_leave_out():
    with pytest.raises(DataError, match="digits: is no folder .*leave leave-out empty"):
        open_dataset("digits", leave_out="*.png")
