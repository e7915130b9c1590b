"""Tables that cannot be read are refused with their cause, never passed by; columns are those of all rows."""

import json

import pytest

from psl_flower.data.sources import open_dataset
from psl_flower.errors import DataError
from tests.unit.accounts import passed_by
from tests.unit.test_images_taken_once import columns
from tests.unit.test_split_columns import table
from tests.unit.tiny_pictures import all_levels, colour, encode, image_folder

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
DAMAGED = [
    (lambda whole: whole[: len(whole) // 2], r"cannot be read as a table \(ArrowInvalid\): Parquet magic bytes"),
    (lambda _: LFS, "is a git-lfs pointer, not the file that it stands for; fetch that with git lfs pull"),
    (lambda _: b"", "is empty, of 0 bytes"),
]


@pytest.mark.parametrize(("damage", "match"), DAMAGED, ids=["cut", "lfs", "empty"])
@pytest.mark.parametrize("file", ["test", "train-00001-of-00002"])
def test_damaged_parquet_is_refused_with_its_cause(parquet, tmp_path, file, damage, match):
    assert DAMAGED
    name = parquet(**{"train-00000-of-00002": columns(), "train-00001-of-00002": columns(20), "test": columns(40)})
    assert len(all_levels(open_dataset(name))) == 12
    place = tmp_path / "tables" / f"{file}.parquet"
    place.write_bytes(damage(place.read_bytes()))
    with pytest.raises(DataError, match=rf"{file}\.parquet {match}.*would be left out.*leave-out={file}\.parquet"):
        open_dataset(name)
    assert len(all_levels(open_dataset(name, leave_out=f"{file}.parquet"))) == 8


def test_damaged_parquet_beside_images_by_class_is_refused(tmp_path):
    name = image_folder(tmp_path / "set", {"a": 3, "b": 3})
    (tmp_path / "set" / "more.parquet").write_bytes(LFS)
    with pytest.raises(DataError, match=r"more\.parquet is a git-lfs pointer.*leave-out=more\.parquet"):
        open_dataset(name)
    assert passed_by(open_dataset(name, leave_out="more.parquet").account()) == {("named by leave-out", ".parquet"): 1}
    assert len(all_levels(open_dataset(name, read_as="folders"))) == 6


TEXTS = [
    ("test.csv", "file,label\nimages/0.png,caf\u00e9\n".encode("latin-1"), r"\(UnicodeDecodeError\); save it as UTF-8"),
    ("test.csv", LFS, "is a git-lfs pointer"),
    ("test.csv", b"", "is empty"),
    ("test.csv", b"file,label\nimages/0.png,a,b,c\n", r"\(ArrowInvalid\): CSV parse error: Expected 2 columns, got 4"),
    ("notes.jsonl", b'{"a": 1}\n{"a": \n', r"\(ArrowInvalid\): JSON parse error"),
]


@pytest.mark.parametrize(("file", "content", "match"), TEXTS)
def test_damaged_texts_beside_a_table_are_refused(tmp_path, file, content, match):
    assert TEXTS
    name = table(tmp_path / "set", "train.csv")
    (tmp_path / "set" / file).write_bytes(content)
    with pytest.raises(DataError, match=rf"{file} .*{match}.*leave-out={file}"):
        open_dataset(name)
    assert len(all_levels(open_dataset(name, leave_out=file))) == 8


@pytest.mark.parametrize("ending", ["json", "jsonl"])
@pytest.mark.parametrize("padding", ["", "x" * 20_000])
def test_columns_that_the_first_rows_lack_are_read(tmp_path, ending, padding):
    (tmp_path / "images").mkdir()
    rows = []
    for k in range(120 if padding else 8):
        (tmp_path / "images" / f"{k}.png").write_bytes(encode(colour(k)))
        rows.append({"file": f"images/{k}.png", "category": k % 3, "notes": padding, "label": "ab"[k % 2]})
    for row in rows[:-2]:
        del row["label"]
    text = json.dumps(rows) if ending == "json" else "\n".join(map(json.dumps, rows))
    (tmp_path / f"labels.{ending}").write_text(text)
    with pytest.raises(DataError, match=rf"{len(rows) - 2} of {len(rows)} images of split 'train' have no label"):
        open_dataset(str(tmp_path))
    assert "classes from 'category'" in open_dataset(str(tmp_path), label_column="category").account().reader


HEADLESS = ["images/0.png,a\n", "0.png,a\n", "0,a\n", "a,0\n"]


@pytest.mark.parametrize("first", HEADLESS)
def test_a_csv_file_without_names_is_refused(tmp_path, first):
    assert HEADLESS
    name = table(tmp_path / "set")
    lines = (tmp_path / "set" / "labels.csv").read_text().splitlines()[1:]
    swapped = [",".join(reversed(line.split(","))) if first.startswith("a") else line for line in lines[1:]]
    (tmp_path / "set" / "labels.csv").write_text(first + "\n".join(swapped))
    with pytest.raises(DataError, match=r"labels\.csv: has the image \S+ in its first row.*file,label above it"):
        open_dataset(name)


def test_columns_called_as_an_image_is_are_no_images(tmp_path):
    name = table(tmp_path / "set")
    for column in ("file", "label"):
        (tmp_path / "set" / "images" / f"{column}.png").write_bytes(encode(colour(99)))
    source = open_dataset(name)
    assert len(all_levels(source)) == 8
    assert passed_by(source.account()) == {("in no row that is taken", ".png"): 2}


@pytest.mark.parametrize("ending", ["\r", "\r\n", "\n"])
def test_line_ends_of_all_systems(tmp_path, ending):
    name = table(tmp_path / "set")
    text = (tmp_path / "set" / "labels.csv").read_text()
    (tmp_path / "set" / "labels.csv").write_bytes(text.replace("\n", ending).encode())
    assert all_levels(open_dataset(name)) == [(k, k % 2) for k in range(8)]


def test_labels_without_bounds_are_refused(parquet):
    name = parquet(train={**columns(), "label": [0.0, 1.0, float("inf"), 1.0]})
    with pytest.raises(DataError, match="column 'label' holds numbers such as inf, which are no classes"):
        open_dataset(name)
