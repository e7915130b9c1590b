"""What a file holds decides, whatever its ending says: images called tables, pictures without endings, archives."""

import gzip
import io
import tarfile
import zipfile

import numpy as np
import pytest

from psl_flower.data.sources import open_dataset
from psl_flower.errors import DataError
from tests.unit.accounts import passed_by
from tests.unit.tiny_pictures import colour, encode, image_folder

TWO = {"cat": 5, "dog": 5}


def test_images_called_tables_archives_or_arrays_are_images(tmp_path):
    name = image_folder(tmp_path / "set", TWO)
    endings = [".csv", ".json", ".jsonl", ".parquet", ".zip", ".gz", ".tar", ".npy", ".npz"]
    for ending in endings:
        (tmp_path / "set" / "cat" / f"more{ending}").write_bytes(encode(colour(9)))
    account = open_dataset(name).account()
    assert account.reader == "images by class"
    assert sum(split.classes["cat"] for split in account.splits) == 5 + len(endings)
    assert not account.left_out


UNREADABLE = [
    b'<?xml version="1.0"?>\n<!-- drawn by hand -->\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    b"\xff\x0a" + bytes(64),
    b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(64),
    b"II*\0\x10\0\0\0CR\x02\0" + bytes(64),
    b"\0\0\0\x18ftypcrx " + bytes(64),
    b"\x76\x2f\x31\x01" + bytes(64),
    bytes(128) + b"DICM",
]


@pytest.mark.parametrize("content", UNREADABLE)
@pytest.mark.parametrize("file", ["scan", "scan.dat"])
def test_pictures_without_an_ending_that_cannot_be_decoded_are_refused(tmp_path, content, file):
    assert UNREADABLE
    name = image_folder(tmp_path / "set", TWO)
    (tmp_path / "set" / "cat" / file).write_bytes(content)
    left = "cat/scan" if file == "scan" else r"\*\.dat"
    match = rf"1 picture in class folders cannot be decoded, such as cat/{file}; .*leave-out={left}$"
    with pytest.raises(DataError, match=match):
        open_dataset(name)
    assert passed_by(open_dataset(name, leave_out=file).account())


@pytest.mark.parametrize("text", ["<annotation><name>cat</name></annotation>", "<html><svg/></html>", "IIxx", "a <svg"])
def test_texts_are_no_pictures(tmp_path, text):
    name = image_folder(tmp_path / "set", TWO)
    (tmp_path / "set" / "cat" / "notes").write_text(text)
    assert passed_by(open_dataset(name).account()) == {("not an image", ""): 1}


def archive(kind):
    """Return a small archive of images by class."""
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as packed:
            for path in ("cat/0.png", "cat/1.png", "dog/0.png"):
                packed.writestr(path, encode(colour(1)))
    elif kind == "tar":
        with tarfile.open(fileobj=file, mode="w") as packed:
            packed.addfile(tarfile.TarInfo("cat/0.png"))
    return file.getvalue()


ARCHIVES = [
    (
        "data.zip",
        archive("zip"),
        r"data\.zip is an archive, and nothing beside it holds images: unpack it \(3 images\)$",
    ),
    ("train.tar", archive("tar"), r"train\.tar is an archive.*unpack it$"),
    ("train.tar.gz", gzip.compress(archive("tar")), r"train\.tar\.gz is an archive.*unpack it$"),
    ("labels.csv.gz", gzip.compress(b"a,b\n1,2\n"), r"labels\.csv\.gz is an archive.*unpack it$"),
    ("all.7z", b"7z\xbc\xaf\x27\x1c", r"all\.7z is an archive.*unpack it$"),
]


@pytest.mark.parametrize(("file", "content", "match"), ARCHIVES, ids=[file for file, _, _ in ARCHIVES])
@pytest.mark.parametrize("beside", ["", "labels.csv"])
def test_of_archives_alone_it_is_said_that_they_are_to_be_unpacked(tmp_path, file, content, match, beside):
    assert ARCHIVES
    (tmp_path / file).write_bytes(content)
    if beside:
        (tmp_path / beside).write_text("name,label\n0,cat\n1,dog\n")
    with pytest.raises(DataError, match=match):
        open_dataset(str(tmp_path))


PACKED = [("a.png.gz", gzip.compress(encode(colour(1)))), ("b.jpg.xz", b"\xfd7zXZ"), ("more.tar", archive("tar"))]


@pytest.mark.parametrize(("file", "content"), PACKED, ids=[file for file, _ in PACKED])
def test_packed_images_in_class_folders_are_refused(tmp_path, file, content):
    assert PACKED
    name = image_folder(tmp_path / "set", TWO)
    (tmp_path / "set" / "cat" / file).write_bytes(content)
    with pytest.raises(DataError, match=rf"cat/{file} may hold images.*leave-out=cat/{file}"):
        open_dataset(name)


def test_arrays_and_tables_are_still_known_by_their_endings(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.arange(8 * 16, dtype=np.uint8).reshape(8, 4, 4), labels=np.arange(8) % 2)
    assert "arrays" in open_dataset(str(tmp_path)).account().reader
