"""The account of tables that list images, and of real layouts."""

import csv
import json
import os

import pyarrow.parquet as pq
import pytest

from psl_flower.data.sources import open_dataset
from psl_flower.errors import DataError
from tests.unit.accounts import passed_by, taken
from tests.unit.tiny_pictures import all_levels, colour, encode, image_folder, levels

SAME = [encode(colour(v), kind="BMP") for v in (1, 2, 3, 4)]
BYTES = [encode(colour(v)) for v in (1, 2, 3, 4)]
CELLS = [{"bytes": content, "path": None} for content in BYTES]


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
    with pytest.raises(DataError, match=r"row 3 of split 'train' names no existing image: images/3\.png"):
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


def test_a_named_pipe_in_a_table_is_not_waited_for(tmp_path):
    name = listed(tmp_path / "set", {f"images/{k}.png": "ab"[k % 2] for k in range(4)})
    (tmp_path / "set" / "images" / "1.png").unlink()
    os.mkfifo(tmp_path / "set" / "images" / "1.png")
    with pytest.raises(DataError, match=r"row 1 of split 'train' names no existing image"):
        open_dataset(name)


def test_parquet_files_beside_pictures_of_a_readme(parquet, tmp_path):
    name = parquet(train={"x": BYTES, "label": [0, 1, 0, 1]}, test={"x": BYTES, "label": [1, 0, 1, 0]})
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


def test_a_dataset_card_cannot_join_files_that_number_their_classes_differently(tmp_path, datasets, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    for file, names in {"first": ["cat", "dog"], "second": ["dog", "cat"]}.items():
        features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
        table = datasets.Dataset.from_dict({"image": CELLS, "label": [0, 1, 0, 1]}, features=features)
        pq.write_table(table.data.table, tmp_path / "set" / f"{file}.parquet")
    configs = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: first.parquet\n"
    card = tmp_path / "set" / "README.md"
    card.write_text(f"---\n{configs}  - split: test\n    path: second.parquet\n---\n")
    with pytest.raises(DataError, match=r"number the classes of column 'label' differently \(0 is cat; 0 is dog\)"):
        open_dataset(str(tmp_path / "set"))
    # The card itself may call the classes of its files otherwise; then the account says so.
    label = "  - name: label\n    dtype:\n      class_label:\n        names:\n          '0': fox\n          '1': owl\n"
    info = f"dataset_info:\n  features:\n  - name: image\n    dtype: image\n{label}"
    card.write_text(f"---\n{configs}{info}---\n")
    source = open_dataset(str(tmp_path / "set"), test_fraction=0.5)
    assert source.class_names == ("fox", "owl")
    (note,) = source.account().notes
    assert "card numbers the classes of column 'label' otherwise than its files do (0 is fox; 0 is cat)" in note


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
