"""What is read of odd tables: columns, splits, paths and labels as they are named, or an error that says what to do."""

import datetime
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from psl_flower.data.sources import open_dataset
from psl_flower.errors import CorruptImage, DataError
from tests.unit.accounts import passed_by, taken
from tests.unit.tiny_pictures import all_levels, colour, encode, image_folder, levels

SAME = [encode(colour(v), kind="BMP") for v in (1, 2, 3, 4)]
BYTES = [encode(colour(v)) for v in (1, 2, 3, 4)]
CELLS = [{"bytes": content, "path": None} for content in BYTES]


def declared(datasets, names, labels, images=CELLS, **more):
    """Return a table with the library's notes: images and classes with these names."""
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=names), **{key: kind for key, (kind, _) in more.items()}
    )
    columns = {"image": images, "label": labels} | {key: values for key, (_, values) in more.items()}
    return datasets.Dataset.from_dict(columns, features=features).data.table


# --- how images lie in columns

ARRAYS = np.stack([np.full((8, 8), 50 * k, np.uint8) for k in (1, 2, 3, 4)])
HOLDERS = [
    ("encoded images", BYTES),
    ("image files", CELLS),
    ("arrays of pixels", [a.tolist() for a in ARRAYS]),
    ("arrays of pixels", [np.repeat(a[:, :, None], 3, axis=2).tolist() for a in ARRAYS]),
    ("arrays of pixels", [np.repeat(a[None], 3, axis=0).tolist() for a in ARRAYS]),
    ("flat lists of pixels", [a.ravel().tolist() for a in ARRAYS]),
]


@pytest.mark.parametrize(("kind", "cells"), HOLDERS)
def test_images_in_columns_without_notes(parquet, kind, cells):
    assert HOLDERS
    source = open_dataset(parquet(train={"x": cells, "label": ["a", "b", "a", "b"]}), test_fraction=0.5)
    account = source.account()
    assert f"images from column 'x' ({kind})" in account.reader
    assert taken(account) == {"train": {"a": 1, "b": 1}, "test": {"a": 1, "b": 1}}
    scale = 50 if "pixels" in kind else 1
    found = [pair for split in ("train", "test") for pair in levels(source, split)]
    assert sorted(found) == [(scale, 0), (2 * scale, 1), (3 * scale, 0), (4 * scale, 1)]
    assert ("flat lists of 64 numbers were read as images of 8x8, row by row" in account.notes) == kind.startswith(
        "flat"
    )


def test_mnist_like_tables_of_flat_lists(parquet):
    random = np.random.default_rng(0).integers(0, 256, (40, 784))
    name = parquet(
        train={"image": random[:30].tolist(), "label": [k % 10 for k in range(30)]},
        test={"image": random[30:].tolist(), "label": [k % 10 for k in range(10)]},
    )
    source = open_dataset(name)
    assert [split.count for split in source.account().splits] == [30, 10]
    images = np.stack([image for image, _ in source.samples("train")])
    np.testing.assert_array_equal(images, random[:30].reshape(30, 28, 28, 1))


@pytest.mark.parametrize(
    ("cells", "match"),
    [
        ([[1.0] * 64] * 4, "no column holds images; the columns are x, label"),
        ([[1] * 63] * 4, "no column holds images"),
        ([[1] * 4] * 4, "no column holds images"),
        ([b"text"] * 4, "no column holds images"),
        (["nowhere.png"] * 4, "no column holds images"),
    ],
)
def test_columns_that_hold_no_images(parquet, cells, match):
    with pytest.raises(DataError, match=match):
        open_dataset(parquet(train={"x": cells, "label": [0, 1, 0, 1]}))


def test_ragged_arrays_and_missing_images_are_named(parquet):
    name = parquet(train={"x": [ARRAYS[0].tolist()] * 3 + [[[1, 2], [3]]], "label": [0, 1, 0, 1]})
    source = open_dataset(name, test_fraction=0.25)
    with pytest.raises(CorruptImage, match=r"image 3 of split 'train'"):
        for split in ("train", "test"):
            list(source.samples(split))
    missing = open_dataset(parquet(train={"x": [*BYTES[:3], None], "label": [0, 1, 0, 1]}), test_fraction=0.25)
    with pytest.raises(CorruptImage, match="there is no image"):
        for split in ("train", "test"):
            list(missing.samples(split))


def test_numbers_that_are_nearly_black_or_beyond_8_bits_need_a_range(parquet):
    dark = parquet(train={"x": (ARRAYS // 50).tolist(), "label": [0, 1, 0, 1]})
    with pytest.raises(DataError, match=r"nearly black.*no pixel is above 4 of 255.*pixel-range=dataset"):
        list(open_dataset(dark, test_fraction=0.5).samples("train"))
    source = open_dataset(dark, test_fraction=0.5, pixel_range="dataset")
    found = sorted(level for split in ("train", "test") for level, _ in levels(source, split))
    assert found == [64, 128, 191, 255]
    assert source.account().pixel_range == (0.0, 4.0)
    beyond = parquet(train={"x": (ARRAYS.astype(np.int64) * 20).tolist(), "label": [0, 1, 0, 1]})
    with pytest.raises(DataError, match=r"beyond 0\.\.255.*such as pixel-range=0\.\.\d+"):
        list(open_dataset(beyond, test_fraction=0.5).samples("train"))
    floats = parquet(train={"x": (ARRAYS / 255).tolist(), "label": [0, 1, 0, 1]})
    with pytest.raises(DataError, match=r"floating point.*such as pixel-range=0\.\.1"):
        list(open_dataset(floats, test_fraction=0.5).samples("train"))
    source = open_dataset(floats, test_fraction=0.5, pixel_range="0..1")
    assert sorted(level for split in ("train", "test") for level, _ in levels(source, split)) == [50, 100, 150, 200]


# --- which column

LABELS = [
    ([True, False, True, False], ("False", "True"), [1, 0, 1, 0]),
    ([1.0, 0.0, 1.0, 0.0], ("0", "1"), [1, 0, 1, 0]),
    (pa.array(["b", "a", "b", "a"], pa.large_string()), ("a", "b"), [1, 0, 1, 0]),
    (pa.array(["b", "a", "b", "a"]).dictionary_encode(), ("a", "b"), [1, 0, 1, 0]),
    ([7, 3, 7, 3], ("3", "7"), [1, 0, 1, 0]),
]


@pytest.mark.parametrize(("labels", "names", "expected"), LABELS)
def test_the_column_called_label_wins_whatever_its_type(parquet, labels, names, expected):
    assert LABELS
    source = open_dataset(parquet(train={"id": [10, 11, 12, 13], "x": BYTES, "label": labels}), test_fraction=0.5)
    assert source.class_names == names
    found = sorted(pair for split in ("train", "test") for pair in levels(source, split))
    assert [label for _, label in found] == expected


@pytest.mark.parametrize(
    "labels",
    [
        [[0], [1], [0], [1]],
        [datetime.date(2020, 1, k) for k in (1, 2, 1, 2)],
        [datetime.datetime(2020, 1, k) for k in (1, 2, 1, 2)],
        [{"a": 1}, {"a": 2}, {"a": 1}, {"a": 2}],
        [b"a", b"b", b"a", b"b"],
    ],
    ids=["list", "date", "time", "struct", "binary"],
)
def test_a_label_that_cannot_be_a_class_is_refused_and_not_passed_over(parquet, labels):
    name = parquet(train={"id": [10, 11, 12, 13], "kind": [0, 1, 0, 1], "x": CELLS, "label": labels})
    with pytest.raises(DataError, match=r"column 'label' holds .*another one with label-column \(id, kind\)"):
        open_dataset(name)
    assert open_dataset(name, label_column="kind", test_fraction=0.5).class_names == ("0", "1")


def test_labels_that_are_measurements_are_refused(parquet):
    with pytest.raises(DataError, match=r"holds numbers such as 0\.5, which are no classes"):
        open_dataset(parquet(train={"x": BYTES, "label": [0.5, 1.0, 0.5, 1.0]}))


def test_an_id_is_no_class(parquet):
    name = parquet(train={"x": BYTES, "id": [10, 11, 12, 13]})
    with pytest.raises(
        DataError, match=r"'id' has another value for each of its 4 images, as an id has.*label-column=id"
    ):
        open_dataset(name)
    with pytest.raises(DataError, match=r"too few images \(4\) to set some aside"):
        open_dataset(name, label_column="id")


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"age": [0, 1, 0, 1], "sex": ["f", "m", "f", "m"]}, r"several columns can be the label \(age, sex\); choose one with label-column"),
        ({"class": [0, 1, 0, 1], "target": [1, 0, 1, 0]}, r"several columns can be the label \(class, target\)"),
        ({"front": CELLS, "label": [0, 1, 0, 1]}, r"several columns can be the images \(x, front\); choose one with image-column"),
        ({"image": CELLS, "img": CELLS, "label": [0, 1, 0, 1]}, None),
        ({"picture": CELLS, "front": CELLS, "label": [0, 1, 0, 1]}, None),
        ({"picture": CELLS, "photo": CELLS, "label": [0, 1, 0, 1]}, r"several columns can be the images \(picture, photo\)"),
    ],
)  # fmt: skip
def test_of_several_columns_none_is_taken_unless_its_name_says_so(parquet, columns, match):
    name = parquet(train={"x": CELLS, **columns})
    if match is None:
        assert f"'{next(iter(columns))}'" in open_dataset(name, test_fraction=0.5).account().reader
        return
    with pytest.raises(DataError, match=match):
        open_dataset(name)


def test_two_declared_label_columns_are_refused(parquet, datasets, tmp_path):
    classes = datasets.ClassLabel(names=["x", "y"])
    table = declared(datasets, ["a", "b"], [0, 1, 0, 1], mood=(classes, [1, 0, 1, 0]))
    folder = tmp_path / "tables"
    folder.mkdir()
    pq.write_table(table.rename_columns(["image", "breed", "mood"]).replace_schema_metadata({
        b"huggingface": table.schema.metadata[b"huggingface"].replace(b'"label"', b'"breed"')
    }), folder / "train.parquet")  # fmt: skip
    with pytest.raises(DataError, match=r"several columns can be the label \(breed, mood\)"):
        open_dataset(str(folder))


# --- splits


def test_splits_that_number_their_classes_differently_are_refused(parquet, datasets, tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    pq.write_table(declared(datasets, ["cat", "dog"], [0, 1, 0, 1]), folder / "train.parquet")
    pq.write_table(declared(datasets, ["dog", "cat"], [0, 1, 0, 1]), folder / "test.parquet")
    with pytest.raises(DataError, match=r"train\.parquet.*number the classes of column 'label' differently"):
        open_dataset(str(folder))


def test_an_unlabelled_or_third_split_is_left_out_by_a_setting(parquet, datasets, tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    for split, labels in {"train": [0, 1, 0, 1], "validation": [1, 0, 1, 0], "test": [-1] * 4}.items():
        pq.write_table(declared(datasets, ["a", "b"], labels), folder / f"{split}.parquet")
    with pytest.raises(DataError, match=r"4 labelled images of split 'validation'.*train-split=train\+validation"):
        open_dataset(str(folder))
    account = open_dataset(str(folder), test_split="validation").account()
    assert [split.source for split in account.splits] == ["train", "validation"]
    assert passed_by(account) == {("rows of a split that is neither trained nor tested on", ""): 4}
    account = open_dataset(str(folder), train_split="train+validation", test_split="none").account()
    assert sum(split.count for split in account.splits) == 8
    with pytest.raises(DataError, match=r"4 of 4 images of split 'test' have no label; .*test-split"):
        open_dataset(str(folder), train_split="train", test_split="test")
    with pytest.raises(DataError, match="train-split: no split 'learn'; there are test, train, validation"):
        open_dataset(str(folder), train_split="learn")


def test_a_column_that_names_splits_divides_the_rows(parquet):
    name = parquet(data={"x": BYTES, "label": [0, 1, 0, 1], "split": ["train", "train", "test", "test"]})
    source = open_dataset(name)
    assert levels(source, "train") == [(1, 0), (2, 1)] and levels(source, "test") == [(3, 0), (4, 1)]
    assert "splits were taken from column 'split'" in source.account().notes


def test_other_tables_of_the_same_size_and_time_are_read_anew(parquet, tmp_path):
    name = parquet(train={"x": SAME, "label": ["a", "b", "a", "b"]})
    file = tmp_path / "tables" / "train.parquet"
    status, before = file.stat(), open_dataset(name)
    parquet(train={"x": SAME[::-1], "label": ["a", "b", "a", "b"]})
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size
    after = open_dataset(name)
    assert after.fingerprint != before.fingerprint
    found = sorted(pair for split in ("train", "test") for pair in levels(after, split))
    assert found == [(1, 1), (2, 0), (3, 1), (4, 0)]


def test_paths_within_embedded_cells_are_the_datasets_own(parquet, datasets, tmp_path, monkeypatch):
    image_folder(tmp_path / "tables" / "pictures", {"p": 4})
    cells = [{"bytes": None, "path": f"pictures/p/{k}.png"} for k in range(4)]
    pq.write_table(declared(datasets, ["a", "b"], [0, 1, 0, 1], cells), tmp_path / "tables" / "train.parquet")
    monkeypatch.chdir(tmp_path)
    source = open_dataset(str(tmp_path / "tables"), test_fraction=0.5)
    assert all_levels(source) == [(0, 0), (1, 1), (2, 0), (3, 1)]
