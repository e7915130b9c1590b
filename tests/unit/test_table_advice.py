"""What errors and notes say of tables that come near to being read: they name the row, and the way out."""

import unicodedata

import pytest

from psl_flower.data.sources import open_dataset
from psl_flower.errors import DataError
from tests.unit.test_split_columns import table
from tests.unit.tiny_pictures import image_folder

NEAR = [
    (lambda path: path.split("/")[1].removesuffix(".png"), "names 0 of the first 8 images: row 0 .0. is a number; write"),
    (str.upper, r"row 0 \(IMAGES/0\.PNG\) is spelt otherwise than images/0\.png"),
    (lambda path: "/" + path, r"row 0 \(/images/0\.png\) is not the path of images/0\.png within the dataset"),
    (lambda path: path if path < "images/2" else "gone" + path[6:], r"names 2 of the first 8 images: row 2 \(gone/2\.png\) is not"),
    (lambda path: path if path < "images/2" else "x" + path[6:].replace(".", "0."), r"names 2 of .*row 2 .* names no existing image"),
]  # fmt: skip


@pytest.mark.parametrize(("spell", "match"), NEAR)
def test_the_row_that_names_no_image_is_named(tmp_path, spell, match):
    assert NEAR
    name = table(tmp_path / "set")
    head, *lines = (tmp_path / "set" / "labels.csv").read_text().splitlines()
    rows = [f"{spell(path)},{label}" for path, label in (line.split(",") for line in lines)]
    (tmp_path / "set" / "labels.csv").write_text("\n".join([head, *rows]))
    with pytest.raises(
        DataError, match=rf"labels\.csv: no column holds images; .*column 'file' {match}|column 'file' .*{match}"
    ):
        open_dataset(name)


def test_accents_in_another_coding_and_names_of_two_images_are_said(tmp_path):
    name = table(tmp_path / "set")
    folder = tmp_path / "set" / "images"
    for k in range(8):
        (folder / f"{k}.png").rename(folder / unicodedata.normalize("NFD", f"\u00e9{k}.png"))
    text = "file,label\n" + "\n".join(f"images/\u00e9{k}.png,{'ab'[k % 2]}" for k in range(8))
    (tmp_path / "set" / "labels.csv").write_text(text)
    with pytest.raises(DataError, match="is spelt otherwise than .*accents' coding"):
        open_dataset(name)
    image_folder(tmp_path / "two", {"x/one": 4, "y/one": 4})
    (tmp_path / "two" / "labels.csv").write_text("file,label\n0.png,a\n1.png,b\n")
    with pytest.raises(DataError, match=r"row 0 \(0\.png\) may be x/one/0\.png or y/one/0\.png; write paths"):
        open_dataset(str(tmp_path / "two"), read_as="tables")


@pytest.mark.parametrize("file", ["labels.txt", "labels.ndjson", "labels.xlsx"])
def test_a_file_of_classes_that_is_not_read_is_named(tmp_path, file):
    name = image_folder(tmp_path / "set", {"images": 4})
    (tmp_path / "set" / file).write_bytes(b"0.png a\n")
    with pytest.raises(DataError, match=f"in one class folder, and {file} is not read.*: save these as csv"):
        open_dataset(name)


def test_columns_that_are_a_class_each_are_not_to_be_chosen_from(tmp_path):
    name = table(tmp_path / "set", cat=[0, 1] * 4, dog=[1, 0] * 4)
    text = (tmp_path / "set" / "labels.csv").read_text()
    (tmp_path / "set" / "labels.csv").write_text(
        "\n".join(",".join(line.split(",")[:1] + line.split(",")[2:]) for line in text.splitlines())
    )
    with pytest.raises(DataError, match=r"cat and dog may be a class each \(one-hot\).*write one column"):
        open_dataset(name)
    assert open_dataset(name, label_column="cat").class_names == ("0", "1")


def test_one_number_written_in_two_ways_is_said(tmp_path):
    name = table(tmp_path / "set")
    text = (tmp_path / "set" / "labels.csv").read_text()
    (tmp_path / "set" / "labels.csv").write_text(text.replace(",a", ",1").replace(",b", ",1.0"))
    source = open_dataset(name)
    assert source.class_names == ("1", "1.0")
    assert source.account().notes == (
        "classes '1' and '1.0' are one number written in two ways, and were taken for two classes",
    )
