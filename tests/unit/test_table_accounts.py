"""What is read of odd tables: columns, splits, paths and labels as they are named, or an error that says what to do."""

import csv
import datetime
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from psl_flower.data.sources import open_dataset
from psl_flower.errors import CorruptImage, DataError
from tests.unit.test_folder_accounts import passed_by, taken
from tests.unit.tiny_pictures import colour, encode, image_folder, levels

SAME = [encode(colour(v), kind="BMP") for v in (1, 2, 3, 4)]
BYTES = [encode(colour(v)) for v in (1, 2, 3, 4)]
CELLS = [{"bytes": content, "path": None} for content in BYTES]


@pytest.fixture
def parquet(tmp_path, datasets, monkeypatch):
    """Return a writer of plain parquet files, without the library's notes on columns: parquet(train={...})."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(**splits):
        folder = tmp_path / "tables"
        folder.mkdir(exist_ok=True)
        for split, columns in splits.items():
            pq.write_table(pa.table(columns), folder / f"{split}.parquet", compression="none")
        return str(folder)

    return write


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
    with pytest.raises(DataError, match="too few to set some aside"):
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
    assert "splits were told by column 'split'" in source.account().notes


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


# --- tables that list images


def listed(folder, spec, file="labels.csv", columns=("file", "label"), delimiter=","):
    """Write images and a table that lists them: {path: label}; image k has the grey level k."""
    for k, path in enumerate(spec):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(encode(colour(k)))
    with (folder / file).open("w", newline="") as table:
        writer = csv.writer(table, delimiter=delimiter)
        writer.writerow(columns)
        writer.writerows(spec.items())
    return str(folder)


def all_levels(source):
    return sorted(pair for split in ("train", "test") for pair in levels(source, split))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_coco_like_folder_of_images_with_a_table(tmp_path, monkeypatch, delimiter):
    spec = {f"images/{k}.png": "ab"[k % 2] for k in range(6)}
    name = listed(tmp_path / "set", spec, delimiter=delimiter)
    (tmp_path / "set" / "images" / "extra.png").write_bytes(encode(colour(99)))
    (tmp_path / "set" / "captions.json").write_text(json.dumps({"images": [], "annotations": []}))
    monkeypatch.chdir("/")  # paths are the dataset's, wherever one stands
    source = open_dataset(name)
    assert source.class_names == ("a", "b")
    assert all_levels(source) == [(k, k % 2) for k in range(6)]
    account = source.account()
    assert "images from column 'file' (paths of images), classes from 'label'" in account.reader
    assert passed_by(account) == {
        ("in no row that is taken", ".png"): 1,
        ("table that lists no images", ".json"): 1,
    }


def test_names_alone_and_names_in_other_folders_are_found(tmp_path):
    spec = {f"pictures/{k % 2}/{k}.png": "ab"[k % 2] for k in range(6)}
    name = listed(tmp_path / "set", spec)
    text = (tmp_path / "set" / "labels.csv").read_text().replace("pictures/0/", "").replace("pictures/1/", "")
    (tmp_path / "set" / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=r"images by class, and labels\.csv lists images.*read-as=tables"):
        open_dataset(name)
    assert all_levels(open_dataset(name, read_as="tables")) == [(k, k % 2) for k in range(6)]


def test_metadata_beside_the_images_of_each_split(tmp_path):
    for split, base in (("train", 0), ("test", 10)):
        folder = tmp_path / "set" / split
        folder.mkdir(parents=True)
        rows = []
        for k in range(4):
            (folder / f"{k}.png").write_bytes(encode(colour(base + k)))
            rows.append(json.dumps({"file_name": f"{k}.png", "label": "ab"[k % 2]}))
        (folder / "metadata.jsonl").write_text("\n".join(rows))
    source = open_dataset(str(tmp_path / "set"))
    assert levels(source, "train") == [(k, k % 2) for k in range(4)]
    assert levels(source, "test") == [(10 + k, k % 2) for k in range(4)]


def test_rows_without_an_image_and_images_with_two_classes_are_refused(tmp_path):
    name = listed(tmp_path / "set", {f"images/{k}.png": "ab"[k % 2] for k in range(6)})
    (tmp_path / "set" / "images" / "3.png").unlink()
    with pytest.raises(DataError, match=r"row 3 of split 'train' names no image that is there: images/3\.png"):
        open_dataset(name)
    with (tmp_path / "set" / "labels.csv").open("a") as table:
        table.write("images/0.png,b\n")
    (tmp_path / "set" / "images" / "3.png").write_bytes(encode(colour(3)))
    with pytest.raises(DataError, match=r"images/0\.png is in the table with two classes"):
        open_dataset(name)


def test_tables_of_several_kinds_and_of_no_split_are_refused(tmp_path):
    name = listed(tmp_path / "set", {f"images/{k}.png": "ab"[k % 2] for k in range(6)}, "train.csv")
    (tmp_path / "set" / "more.jsonl").write_text('{"file": "images/1.png", "label": "b"}\n')
    with pytest.raises(DataError, match=r"several kinds of tables list images \(more\.jsonl, train\.csv\)"):
        open_dataset(name)
    assert len(all_levels(open_dataset(name, leave_out="more.jsonl"))) == 6
    (tmp_path / "set" / "more.jsonl").unlink()
    (tmp_path / "set" / "more.csv").write_text("file,label\nimages/1.png,b\n")
    with pytest.raises(DataError, match=r"more\.csv lists images and tells no split by its name, unlike train\.csv"):
        open_dataset(name)


def test_a_table_in_another_encoding_is_said(tmp_path):
    name = listed(tmp_path / "set", {f"images/{k}.png": "ab"[k % 2] for k in range(4)})
    table = tmp_path / "set" / "labels.csv"
    table.write_bytes(table.read_bytes() + "images/0.png,caf\u00e9\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"labels\.csv: cannot be read as a table \(UnicodeDecodeError\)"):
        open_dataset(name)
    table.write_bytes(b"\xef\xbb\xbf" + b"file,label\r\nimages/0.png,a\r\nimages/1.png,b\r\nimages/2.png,a\r\n")
    account = open_dataset(name).account()
    assert passed_by(account) == {("in no row that is taken", ".png"): 1}


def test_paths_within_embedded_cells_are_the_datasets_own(parquet, datasets, tmp_path, monkeypatch):
    image_folder(tmp_path / "tables" / "pictures", {"p": 4})
    cells = [{"bytes": None, "path": f"pictures/p/{k}.png"} for k in range(4)]
    pq.write_table(declared(datasets, ["a", "b"], [0, 1, 0, 1], cells), tmp_path / "tables" / "train.parquet")
    monkeypatch.chdir(tmp_path)
    source = open_dataset(str(tmp_path / "tables"), test_fraction=0.5)
    assert all_levels(source) == [(0, 0), (1, 1), (2, 0), (3, 1)]


def test_a_named_pipe_in_a_table_is_not_waited_for(tmp_path):
    name = listed(tmp_path / "set", {f"images/{k}.png": "ab"[k % 2] for k in range(4)})
    (tmp_path / "set" / "images" / "1.png").unlink()
    os.mkfifo(tmp_path / "set" / "images" / "1.png")
    with pytest.raises(DataError, match=r"row 1 of split 'train' names no image"):
        open_dataset(name)


def test_parquet_files_beside_pictures_of_a_readme(parquet, tmp_path):
    name = parquet(train={"x": BYTES, "label": [0, 1, 0, 1]}, test={"x": BYTES, "label": [0, 1, 0, 1]})
    image_folder(tmp_path / "tables" / "assets", {"figures": 3})
    (tmp_path / "tables" / "README.md").write_text("# Pictures\n")
    account = open_dataset(name).account()
    assert taken(account) == {"train": {"0": 2, "1": 2}, "test": {"0": 2, "1": 2}}
    assert passed_by(account) == {("in no row that is taken", ".png"): 3, ("not an image", ".md"): 1}


def test_a_dataset_card_says_which_files_belong_to_which_split(parquet, tmp_path):
    name = parquet(
        first={"x": CELLS, "label": [0, 1, 0, 1]}, second={"x": CELLS, "label": [0, 1, 1, 1]}, other={"y": [1]}
    )
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: first.parquet\n  - split: test\n    path: second.parquet\n---\n"
    (tmp_path / "tables" / "README.md").write_text(card)
    account = open_dataset(name).account()
    assert taken(account) == {"train": {"0": 2, "1": 2}, "test": {"0": 1, "1": 3}}
    assert passed_by(account) == {("table", ".parquet"): 1, ("not an image", ".md"): 1}


# --- real layouts


def test_an_imagenet_like_tree(tmp_path):
    spec = {f"train/n{k:08d}": 4 for k in range(3)} | {f"val/n{k:08d}": 2 for k in range(3)}
    name = image_folder(tmp_path / "set", spec)
    for path in (tmp_path / "set").rglob("*.png"):
        path.rename(path.with_suffix(".JPEG"))
    (tmp_path / "set" / "LOC_synset_mapping.txt").write_text("n00000000 tench\n")
    (tmp_path / "set" / "LOC_train_solution.csv").write_text("ImageId,PredictionString\nn00000000_7,n00000000 1 2\n")
    account = open_dataset(name).account()
    assert [(split.source, split.count) for split in account.splits] == [("train", 12), ("val", 6)]
    assert passed_by(account) == {("not an image", ".txt"): 1, ("table", ".csv"): 1}
    flat = image_folder(tmp_path / "flat", {**{f"Data/CLS-LOC/train/n{k}": 5 for k in range(3)}, "Data/CLS-LOC/val": 4})
    with pytest.raises(DataError, match="split 'val': its images lie in no class folders; test-split=none"):
        open_dataset(flat)
    account = open_dataset(flat, test_split="none").account()
    assert passed_by(account) == {("in no class folder", ".png"): 4}
    assert sum(split.count for split in account.splits) == 15


def test_a_tree_that_only_lists_the_test_images(tmp_path):
    name = image_folder(tmp_path / "set", {"train/n1/images": 3, "train/n2/images": 3, "val/images": 4})
    (tmp_path / "set" / "val" / "val_annotations.txt").write_text("0.png\tn1\n")
    with pytest.raises(DataError, match="split 'val' has a class 'images' where 'train' has 'n1'"):
        open_dataset(name)


def test_annotations_of_objects_are_no_table_of_classes(tmp_path):
    name = image_folder(tmp_path / "set", {"train2017": 4, "val2017": 2})
    (tmp_path / "set" / "annotations").mkdir()
    document = {"images": [{"id": 1, "file_name": "0.png"}], "annotations": [], "categories": []}
    (tmp_path / "set" / "annotations" / "instances.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"6 images.*in no class folder; annotations/instances\.json: holds no table"):
        open_dataset(name)


def test_ids_without_endings_and_with_leading_zeros(tmp_path):
    spec = {f"train_images/{k:06x}.png": k % 2 for k in range(8)}
    name = listed(tmp_path / "set", spec, "train.csv", ("id_code", "diagnosis"))
    text = (tmp_path / "set" / "train.csv").read_text().replace("train_images/", "").replace(".png", "")
    (tmp_path / "set" / "train.csv").write_text(text)
    assert "000003,1" in text
    assert all_levels(open_dataset(name)) == [(k, k % 2) for k in range(8)]
    (tmp_path / "set" / "test.csv").write_text("id_code\n000001\n")
    with pytest.raises(DataError, match=r"split 'test' has no column 'diagnosis'; it has id_code; test-split=none"):
        open_dataset(name)
    assert len(all_levels(open_dataset(name, test_split="none"))) == 8


def test_classes_are_as_they_are_written(tmp_path):
    name = listed(tmp_path / "set", {f"images/{k}.png": ["007", "7", "NA", "1.0"][k % 4] for k in range(16)})
    assert open_dataset(name).class_names == ("007", "1.0", "7", "NA")
    (tmp_path / "set" / "labels.csv").write_text("file,label,label\nimages/0.png,a,b\nimages/1.png,b,a\n")
    with pytest.raises(DataError, match="one class folder, and no table lists them: labels.csv: cannot be read"):
        open_dataset(name)
    (tmp_path / "set" / "labels.csv").write_text("file,label\nimages/0.png,a\nimages/1.png,b\nimages/2.png,\n")
    with pytest.raises(DataError, match="1 of 3 images of split 'train' have no label"):
        open_dataset(name)


def test_columns_of_pixels_say_how_many_there_are(tmp_path):
    (tmp_path / "set").mkdir()
    header = ",".join(["label", *(f"pixel{k}" for k in range(784))])
    (tmp_path / "set" / "train.csv").write_text(f"{header}\n{','.join(['1'] * 785)}\n")
    with pytest.raises(DataError, match="label, pixel0, .* and 765 more") as caught:
        open_dataset(str(tmp_path / "set"))
    assert len(str(caught.value)) < 700
