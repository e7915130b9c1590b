"""Tables that would give an image twice, or without some of their parts, are refused; equal rows are taken once."""

import shutil

import pytest

from psl_flower.data.sources import open_dataset
from psl_flower.errors import DataError
from tests.unit.test_split_columns import table
from tests.unit.tiny_pictures import all_levels, colour, encode

BOTH = "taken twice .*; leave one out, such as with leave-out="


def columns(first=0, count=4):
    return {"image": [encode(colour(first + k)) for k in range(count)], "label": [k % 2 for k in range(count)]}


def test_equal_rows_are_taken_once_and_counted(tmp_path):
    name = table(tmp_path / "set")
    with (tmp_path / "set" / "labels.csv").open("a") as file:
        file.write("images/0.png,a\nimages/1.png,b\n1.png,b\n")
    source = open_dataset(name)
    assert all_levels(source) == [(k, k % 2) for k in range(8)]
    assert source.account().notes == (
        "3 rows, such as row 8 of labels.csv, are the same as an earlier one and taken once",
    )


def test_rows_of_one_image_that_differ_are_refused(tmp_path):
    name = table(tmp_path / "set", box=list(range(8)))
    with (tmp_path / "set" / "labels.csv").open("a") as file:
        file.write("images/3.png,b,7\n")
    with pytest.raises(DataError, match=r"images/3\.png is listed twice \(row 3 of labels\.csv; row 8 of labels\.csv\), and the "
                       "rows differ in column 'box'"):  # fmt: skip
        open_dataset(name, label_column="label")


def test_two_tables_that_list_the_same_images_are_refused(tmp_path):
    name = table(tmp_path / "set")
    text = (tmp_path / "set" / "labels.csv").read_text().splitlines()
    (tmp_path / "set" / "labels_old.csv").write_text("\n".join(text[:5]))
    with pytest.raises(DataError, match=r"4 images, such as .*0\.png, are listed twice \(row 0 of labels\.csv; row 0 of "
                       r"labels_old\.csv\); keep one of the rows, or leave a table out with leave-out=labels_old\.csv"):  # fmt: skip
        open_dataset(name)
    source = open_dataset(name, leave_out="labels_old.csv")
    assert all_levels(source) == [(k, k % 2) for k in range(8)] and not source.account().notes


def test_an_image_that_two_splits_name_is_refused(tmp_path):
    table(tmp_path / "set", "train.csv")
    name = table(tmp_path / "set", "test.csv", first=6)
    with pytest.raises(DataError, match=r"2 images of split 'train', such as .*6\.png, are in split 'test', too \(row 6 "
                       r"of train\.csv; row 0 of test\.csv\); keep one of the rows, or .*leave-out=test\.csv"):  # fmt: skip
        open_dataset(name)
    name = table(tmp_path / "one", split=["train"] * 6 + ["test"] * 2)
    with (tmp_path / "one" / "labels.csv").open("a") as file:
        file.write("images/3.png,b,test\n")
    with pytest.raises(DataError, match=r"1 image of split 'train', such as .*3\.png, is in split 'test', too"):
        open_dataset(name)


def test_tables_with_images_of_their_own_are_joined_and_named(tmp_path):
    table(tmp_path / "set", "cats.csv")
    source = open_dataset(table(tmp_path / "set", "dogs.csv", first=8))
    assert len(all_levels(source)) == 16
    assert source.account().notes == ("split 'train' joins 2 tables: cats.csv, dogs.csv",)


def test_a_split_that_is_asked_for_twice_is_refused(parquet):
    name = parquet(train=columns(), test=columns(4))
    for options in ({"train_split": "train+Train"}, {"train_split": "train", "test_split": "test+test"}):
        with pytest.raises(DataError, match=r"-split: .* names split '(train|test)' twice"):
            open_dataset(name, **options)


def test_copies_and_a_whole_beside_its_parts_are_refused(parquet, tmp_path):
    folder = tmp_path / "tables"
    name = parquet(train=columns())
    shutil.copy(folder / "train.parquet", folder / "train (1).parquet")
    with pytest.raises(
        DataError, match=rf"train \(1\)\.parquet and train\.parquet would be {BOTH}train \(1\)\.parquet"
    ):
        open_dataset(name)
    assert len(all_levels(open_dataset(name, leave_out="train (1).parquet"))) == 4
    (folder / "train (1).parquet").unlink()
    parquet(**{"train-00000-of-00001": columns(20)})
    with pytest.raises(DataError, match=r"one is a part of the other by its name\).*leave-out=train\.parquet"):
        open_dataset(name)
    assert len(all_levels(open_dataset(name, leave_out="train.parquet"))) == 4
    (folder / "train.parquet").unlink()
    for other, why in (("train-00001-of-00002", "parts differently"), ("train-00000-of-00001-0a1b", "the same part")):
        parquet(**{other: columns(40)})
        with pytest.raises(DataError, match=why):
            open_dataset(name)
        (folder / f"{other}.parquet").unlink()


def test_parts_that_are_missing_are_refused_unless_named(parquet):
    name = parquet(**{f"train-0000{k}-of-00004": columns(10 * k) for k in (0, 2)})
    with pytest.raises(DataError, match=r"2 parts of 4, such as train-00001-of-00004\.parquet, are missing beside train-00000.*"
                       r"leave-out=train-00001-of-00004\.parquet,train-00003-of-00004\.parquet"):  # fmt: skip
        open_dataset(name)
    with pytest.raises(DataError, match=r"1 part of 4, such as train-00003-of-00004\.parquet, is missing"):
        open_dataset(name, leave_out="train-00001-of-00004.parquet")
    source = open_dataset(name, leave_out="train-00001-of-00004.parquet,train-00003-of-*")
    assert len(all_levels(source)) == 8
    with pytest.raises(DataError, match="leave-out=test-00001-of-00004.parquet matches nothing"):
        open_dataset(name, leave_out="test-00001-of-00004.parquet")
    whole = parquet(**{f"train-0000{k}-of-00004": columns(10 * k) for k in (1, 3)})
    source = open_dataset(whole)
    assert len(all_levels(source)) == 16 and not source.account().notes


def test_parts_numbered_from_one_are_whole(parquet):
    name = parquet(**{f"train-0000{k}-of-00002": columns(10 * k) for k in (1, 2)})
    assert len(all_levels(open_dataset(name))) == 8


def test_one_split_in_the_folders_of_two_languages_is_refused(parquet, tmp_path):
    folder = tmp_path / "tables"
    parquet(english=columns(), french=columns(10))
    for language in ("english", "french"):
        for below in ("train-00000-of-00001.parquet", "train/0000.parquet"):
            (folder / language / below).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / f"{language}.parquet", folder / language / below)
        (folder / f"{language}.parquet").unlink()
    for below in ("train-00000-of-00001.parquet", "train"):
        with pytest.raises(
            DataError, match="english/train.* and french/train.* lie in different folders and both hold split 'tr"
        ):
            open_dataset(str(folder), leave_out=f"english/{below},french/{below}")
    source = open_dataset(str(folder), leave_out="french,english/train")
    assert [level for level, _ in all_levels(source)] == [0, 1, 2, 3]


def test_tables_beside_the_images_of_each_folder_are_joined(tmp_path):
    for k, place in enumerate(("london", "paris")):
        table(tmp_path / "set" / place, "labels.csv", first=8 * k)
    assert len(all_levels(open_dataset(str(tmp_path / "set"), read_as="tables"))) == 16


def test_a_test_split_that_is_the_training_split_is_refused(parquet):
    name = parquet(train=columns(), test=columns())
    with pytest.raises(DataError, match=rf"test\.parquet and train\.parquet would be {BOTH}test\.parquet"):
        open_dataset(name)
    assert len(all_levels(open_dataset(name, leave_out="test.parquet"))) == 4


def test_parts_that_a_dataset_card_takes_are_whole_and_no_copies(parquet, tmp_path):
    name = parquet(**{f"train-0000{k}-of-00003": columns(10 * k) for k in range(3)}, test=columns(40))
    card = "".join(f"  - split: {split}\n    path: {split}*\n" for split in ("train", "test"))
    (tmp_path / "tables" / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{card}---\n")
    assert len(all_levels(open_dataset(name))) == 16
    (tmp_path / "tables" / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(DataError, match=r"1 part of 3, such as train-00001-of-00003\.parquet, is missing"):
        open_dataset(name)
    name = parquet(**{"train-00001-of-00003": columns(), "train-00000-of-00003": columns()})
    with pytest.raises(DataError, match="taken twice .they are the same, byte for byte"):
        open_dataset(name)
