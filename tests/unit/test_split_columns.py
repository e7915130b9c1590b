"""A column of splits in a table: its rows are divided by it, or it is refused; ordinary columns are let alone."""

import csv

import pytest

from psl_flower.data.sources import open_dataset
from psl_flower.errors import DataError
from tests.unit.accounts import passed_by, taken
from tests.unit.tiny_pictures import all_levels, colour, encode, levels

T, E = "train", "test"
HALVES = [T, T, T, T, E, E, E, E]


def table(folder, file="labels.csv", first=0, **columns):
    """Write a table of images with classes a and b in turn, and further columns; image k has the grey level k."""
    count = len(next(iter(columns.values()), HALVES))
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (folder / file).open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["file", "label", *columns])
        for k in range(count):
            number = first + k
            (folder / "images" / f"{number}.png").write_bytes(encode(colour(number)))
            writer.writerow([f"images/{number}.png", "ab"[k % 2], *(values[k] for values in columns.values())])
    return str(folder)


READ = [
    ({"split": HALVES}, "split"),
    ({"dataset_split": HALVES}, "dataset_split"),
    ({"phase": HALVES}, "phase"),
    ({"Split": ["Train "] * 4 + ["Test"] * 4}, "Split"),
    ({"fold": HALVES}, "fold"),
    ({"Usage": ["Training"] * 4 + ["PublicTest"] * 4}, "Usage"),
    ({"set": HALVES, "split": HALVES}, "set"),
    ({"split": HALVES, "is_test": [0] * 4 + [1] * 4}, "split"),
    ({"split": HALVES, "fold": [1, 2, 1, 2, 1, 2, 1, 2]}, "split"),
    ({"split": HALVES, "set": list("xyxyxyxy")}, "split"),
]


@pytest.mark.parametrize(("columns", "column"), READ)
def test_rows_are_divided_where_each_value_names_a_split(tmp_path, columns, column):
    assert READ
    source = open_dataset(table(tmp_path / "set", **columns))
    assert levels(source, "train") == [(k, k % 2) for k in range(4)]
    assert levels(source, "test") == [(k, k % 2) for k in range(4, 8)]
    assert f"splits were taken from column {column!r}" in source.account().notes
    unused = [name for name in columns if name in ("fold", "set") and name != column]
    assert [note for note in source.account().notes if "was not taken for splits" in note] == [
        f"column {name!r} ({shown}) was not taken for splits; split-column takes it"
        for name in unused
        for shown in ["'1', '2'" if name == "fold" else "'x', 'y'"]
    ]


REFUSED = [
    (
        {"split": [*HALVES[:7], ""]},
        r"1 row of 8, such as row 7 \(blank\), name none.*split-column=split train-split=tr",
    ),
    ({"split": [T] * 4 + ["holdout"] * 4}, r"4 rows of 8, such as row 4 \('holdout'\).*test-split=holdout"),
    ({"partition": [0] * 4 + [1] * 4}, "'partition' looks like one of splits.*train-split=0 test-split=1"),
    ({"is_test": [0] * 4 + [1] * 4}, "'is_test' looks.*split-column=is_test train-split=0 test-split=1"),
    ({"is_train": [False] * 4 + [True] * 4}, "split-column=is_train train-split=True test-split=False"),
    ({"fold": [1, 2, 3, 4] * 2}, r"'fold' looks like one of splits \('1', '2', '3' and 1 more\)"),
    ({"set": [1] * 4 + [2] * 4}, "'set' looks like one of splits"),
    ({"subset": [T] * 4 + ["extra"] * 4}, "'subset' looks like one of splits"),
    ({"phase": [*HALVES[:7], "?"]}, r"'phase' looks like one of splits.*row 7 \('\?'\)"),
    ({"split": HALVES, "set": HALVES[::-1]}, "columns 'split' .* and 'set' .* divide the rows differently.*column=set"),
    ({"split": HALVES, "is_test": [0, 1] * 4}, "columns 'split' .* and 'is_test' .* divide the rows differently"),
]


@pytest.mark.parametrize(("columns", "match"), REFUSED)
def test_columns_that_may_name_splits_are_refused_with_the_way_out(tmp_path, columns, match):
    assert REFUSED
    name = table(tmp_path / "set", **columns)
    with pytest.raises(DataError, match=match):
        open_dataset(name)
    source = open_dataset(name, split_column="none")
    assert all_levels(source) == [(k, k % 2) for k in range(8)]
    assert not any("splits were taken" in note for note in source.account().notes)


def test_the_setting_divides_by_any_column_and_drops_no_row_unsaid(tmp_path):
    name = table(tmp_path / "set", split=[T, T, T, T, E, E, "", ""], weather=["dry"] * 2 + ["wet"] * 6)
    with pytest.raises(
        DataError, match="2 labelled images of split 'blank' would be left out.*train-split=train.blank"
    ):
        open_dataset(name, split_column="split")
    source = open_dataset(name, split_column="split", train_split="train+blank", test_split="test")
    assert taken(source.account()) == {"train": {"a": 3, "b": 3}, "test": {"a": 1, "b": 1}}
    account = open_dataset(name, split_column="split", train_split="train", test_split="test").account()
    assert passed_by(account) == {
        ("rows of a split that is neither trained nor tested on", ""): 2,
        ("in no row that is taken", ".png"): 2,
    }
    source = open_dataset(name, split_column="weather", train_split="wet", test_split="dry")
    assert [level for level, _ in levels(source, "test")] == [0, 1]
    for column, match in (
        ("gone", "split-column: no column 'gone'; there are file, label, split, weather"),
        ("label", "split-column: 'label' is taken for the images or the classes"),
    ):
        with pytest.raises(DataError, match=match):
            open_dataset(name, split_column=column)


ORDINARY = [
    {"caption": [E, *"abcdefg"]},
    {"vehicle": [T, "bus", "car", "bus"] * 2},
    {"vehicle": [T, "bus", "car", E] + ["bus"] * 4},
    {"split": [T] * 8},
    {"is_test": [0] * 8},
    {"fold": [1] * 8},
    {"split": [""] * 8},
    {"settings": list("ababbaab")},
    {"offset": [1, 2] * 4},
]


@pytest.mark.parametrize("columns", ORDINARY)
def test_ordinary_columns_are_no_splits(tmp_path, columns):
    assert ORDINARY
    source = open_dataset(table(tmp_path / "set", **columns), label_column="label")
    assert all_levels(source) == [(k, k % 2) for k in range(8)]
    assert not any("refuse" in note or "not taken" in note for note in source.account().notes)


def test_a_loose_name_with_other_values_is_only_noted(tmp_path):
    notes = open_dataset(table(tmp_path / "set", set=list("xyxyxyxy"))).account().notes
    assert notes == ("column 'set' ('x', 'y') was not taken for splits; split-column takes it",)


def test_classes_called_as_splits_are_stay_classes(tmp_path):
    folder = tmp_path / "set"
    table(folder)
    text = (folder / "labels.csv").read_text()
    (folder / "labels.csv").write_text(text.replace(",a", ",train").replace(",b", ",test"))
    source = open_dataset(str(folder))
    assert source.class_names == ("test", "train") and sum(map(source.num_samples, ("train", "test"))) == 8
    (folder / "labels.csv").write_text(text.replace(",a", ",train").replace(",b", ",test").replace("label", "split"))
    with pytest.raises(DataError, match="no column holds labels: 'split' names splits.*label-column=split"):
        open_dataset(str(folder))
    assert open_dataset(str(folder), label_column="split").class_names == ("test", "train")


def test_a_column_against_the_files_that_name_the_splits(tmp_path):
    folder = tmp_path / "set"
    table(folder, "train.csv", split=HALVES)
    name = table(folder, "test.csv", first=8, split=[E] * 4)
    with pytest.raises(DataError, match=r"'split' \('train', 'test'\) of split 'train' divides it.*split-column=none"):
        open_dataset(name)
    account = open_dataset(name, split_column="none").account()
    assert taken(account) == {"train": {"a": 4, "b": 4}, "test": {"a": 2, "b": 2}}
    options = {"train_split": "train/train", "test_split": "train/test+test/test"}
    account = open_dataset(name, split_column="split", **options).account()
    assert taken(account) == {"train": {"a": 2, "b": 2}, "test": {"a": 4, "b": 4}}
    table(folder, "train.csv", split=[T] * 8, fold=[1, 2] * 4)
    source = open_dataset(name)
    assert [source.num_samples(split) for split in ("train", "test")] == [8, 4]
    assert source.account().notes == ("column 'fold' ('1', '2') was not taken for splits; split-column takes it",)
    table(folder, "train.csv", split=[E] * 8)
    with pytest.raises(DataError, match="names another split than the file does"):
        open_dataset(name)


def test_parquet_columns_of_numbers_classes_and_nulls(parquet, datasets):
    cells = [encode(colour(k)) for k in range(8)]
    labels = [0, 1] * 4
    name = parquet(data={"image": cells, "label": labels, "split": [*HALVES[:7], None]})
    with pytest.raises(DataError, match=r"row 7 \(blank\), name none"):
        open_dataset(name)
    source = open_dataset(parquet(data={"image": cells, "label": labels, "split": [0.0] * 4 + [1.0] * 4}),
                          split_column="split", train_split="0.0", test_split="1.0")  # fmt: skip
    assert [level for level, _ in levels(source, "test")] == [4, 5, 6, 7]
