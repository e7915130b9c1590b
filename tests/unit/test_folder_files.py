"""The files of a folder of images: links, which files are images, what lies beside them, and files that change."""

import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from psl_flower.data.account import Account
from psl_flower.data.files import decodable
from psl_flower.data.options import SourceOptions
from psl_flower.data.sources import local_fingerprint, open_dataset
from psl_flower.errors import CorruptImage, DataError, DatasetNotFound
from tests.paths import ROOT
from tests.unit.accounts import passed_by, taken
from tests.unit.tiny_pictures import colour, encode, image_folder, levels

TWO = {"cat": 5, "dog": 5}


# --- links


def test_linked_class_and_split_folders_are_followed(tmp_path):
    real = image_folder(tmp_path / "real", {"cats": 4, "held/cat": 1, "held/dog": 2})
    name = image_folder(tmp_path / "set", {"train/dog": 3})
    (tmp_path / "set" / "train" / "cat").symlink_to(Path(real, "cats"))
    (tmp_path / "set" / "test").symlink_to(Path(real, "held"), target_is_directory=True)
    account = open_dataset(name).account()
    assert taken(account) == {"train": {"cat": 4, "dog": 3}, "test": {"cat": 1, "dog": 2}}


def test_links_to_nothing_and_in_circles_are_named(tmp_path):
    name = image_folder(tmp_path / "set", TWO)
    (tmp_path / "set" / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "set" / "cat" / "round").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "dog" / "self.png").symlink_to("self.png")
    account = open_dataset(name).account()
    assert sum(split.count for split in account.splits) == 10
    assert passed_by(account) == {
        ("link to nothing", ".png"): 1,
        ("link to a folder that holds it", ""): 1,
        ("link to a folder that holds it", ".png"): 1,
    }


# --- which files are images


def test_images_are_known_by_their_content(tmp_path):
    name = image_folder(tmp_path / "set", TWO)
    endings = {".jfif": "JPEG", ".jpe": "JPEG", ".jp2": "JPEG2000", ".avif": "AVIF", ".PNG": "PNG", "": "PNG",
               ".bin": "WEBP", ".tga": "TGA", ".ico": "ICO", ".qoi": "QOI", ".dat": "GIF"}  # fmt: skip
    for ending, kind in endings.items():
        (tmp_path / "set" / "cat" / f"more{ending}").write_bytes(encode(colour(9, (8, 8)), kind=kind))
    account = open_dataset(name).account()
    assert sum(split.count for split in account.splits) == 10 + len(endings)
    assert not account.left_out


def test_heic_images_are_read(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    assert "PNG" in decodable()  # asked before pillow-heif is loaded, as where other images come first
    name = image_folder(tmp_path / "set", TWO, size=(64, 64))
    for file in ("phone.HEIC", "phone"):
        heif.from_pillow(Image.fromarray(colour(77, (64, 64)))).save(tmp_path / "set" / "dog" / file, format="HEIF")
    source = open_dataset(name)
    found = [label for split in ("train", "test") for _, label in source.samples(split)]
    assert sorted(found) == [0] * 5 + [1] * 7


def test_without_pillow_heif_heic_images_say_what_to_install(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    name = image_folder(tmp_path / "set", TWO, size=(64, 64))
    heif.from_pillow(Image.fromarray(colour(77, (64, 64)))).save(tmp_path / "set" / "dog" / "a.heic", format="HEIF")
    program = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "from psl_flower.data.sources import open_dataset\n"
        f"try: open_dataset({name!r})\nexcept Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert "DataError" in done.stdout and "psl-flower[heif]" in done.stdout


def test_pictures_that_cannot_be_decoded_are_refused_in_class_folders_and_named_beside_them(tmp_path):
    name = image_folder(tmp_path / "set", TWO)
    (tmp_path / "set" / "cat" / "raw.NEF").write_bytes(encode(colour(1), kind="TIFF"))
    (tmp_path / "set" / "logo.svg").write_bytes(b"<svg/>")
    with pytest.raises(
        DataError, match=r"1 picture in class folders cannot be decoded, such as cat/raw\.NEF; .*leave-out=\*\.NEF"
    ):
        open_dataset(name)
    account = open_dataset(name, leave_out="*.NEF").account()
    assert passed_by(account) == {("named by leave-out", ".nef"): 1, ("in no class folder", ".svg"): 1}
    (tmp_path / "set" / "dog" / "scan").write_bytes(bytes(128) + b"DICM" + bytes(64))
    with pytest.raises(DataError, match=r"dog/scan; convert them"):
        open_dataset(name, leave_out="*.NEF")


def test_text_that_begins_like_an_image_is_none(tmp_path):
    name = image_folder(tmp_path / "set", TWO)
    for file, text in {
        "a.txt": "BMW and others",
        "b.txt": "P5",
        "c": "Python",
        "d.h": "#define X 1",
        "e.md": "",
    }.items():
        (tmp_path / "set" / "cat" / file).write_text(text)
    account = open_dataset(name).account()
    assert passed_by(account) == {
        ("not an image", ending): n for ending, n in ((".txt", 2), ("", 1), (".h", 1), (".md", 1))
    }
    assert next(entry.example for entry in account.left_out if entry.ending == ".md") == "cat/e.md"


# --- what lies beside the images


@pytest.mark.parametrize(
    "stray", ["notes.csv", "info.json", "log.jsonl", "cat/list.csv", "docs.zip", "broken.zip", "words.csv.gz"]
)
def test_stray_tables_and_archives_do_not_change_the_reading(tmp_path, stray):
    name = image_folder(tmp_path / "set", TWO)
    place = tmp_path / "set" / stray
    place.write_text('{"a": 1, "label": "x"}\n' if "json" in stray else "number,label\n1,x\n2,y\n")
    if stray == "docs.zip":
        with zipfile.ZipFile(place, "w") as archive:
            archive.writestr("readme.txt", "no image")
    account = open_dataset(name).account()
    assert account.reader == "images by class"
    assert [tuple(split.classes) for split in account.splits] == [("cat", "dog")] * 2
    (entry,) = account.left_out
    assert (entry.count, entry.example, entry.ending) == (1, stray, place.suffix)
    assert entry.reason in ("table", "archive")


def test_a_table_or_archive_of_images_beside_class_folders_is_refused(tmp_path):
    name = image_folder(tmp_path / "set", TWO)
    (tmp_path / "set" / "captions.csv").write_text("file,label\ncat/0.png,nice\ndog/1.png,ugly\n")
    with pytest.raises(
        DataError, match=r"images by class, and captions\.csv lists images.*read-as=folders or read-as=tables"
    ):
        open_dataset(name)
    assert open_dataset(name, read_as="folders").class_names == ("cat", "dog")
    assert open_dataset(name, leave_out="captions.csv").class_names == ("cat", "dog")
    (tmp_path / "set" / "captions.csv").unlink()
    with zipfile.ZipFile(tmp_path / "set" / "more.zip", "w") as archive:
        archive.writestr("cat/9.png", encode(colour(1)))
    with pytest.raises(DataError, match=r"more\.zip may hold images.*leave-out=more\.zip"):
        open_dataset(name)
    assert passed_by(open_dataset(name, read_as="folders").account()) == {("archive", ".zip"): 1}


def test_loose_images_and_droppings_are_named(tmp_path):
    name = image_folder(tmp_path / "set", {**TWO, "@eaDir/cat": 3, "cat/@eaDir": 2, "__MACOSX/dog": 1, ".thumbs": 2,
                                           "#recycle": 1, "dog/.AppleDouble": 1})  # fmt: skip
    for file in ("loose.png", "cat/._0.png", "Thumbs.db", "dog/desktop.ini"):
        (tmp_path / "set" / file).write_bytes(encode(colour(3)))
    account = open_dataset(name).account()
    assert taken(account)["train"].keys() == {"cat", "dog"}
    assert sum(split.count for split in account.splits) == 10
    counts: dict[str, int] = {}
    for entry in account.left_out:
        counts[entry.reason] = counts.get(entry.reason, 0) + entry.count
    assert counts == {"left by an operating system or a NAS": 9, "hidden": 4, "in no class folder": 1}


# --- what is no file, and names that are no text


def test_what_is_no_file_is_not_waited_for(tmp_path):
    name = image_folder(tmp_path / "set", TWO)
    os.mkfifo(tmp_path / "set" / "cat" / "x.png")
    with socket.socket(socket.AF_UNIX) as sock:
        os.chdir(tmp_path / "set" / "dog")
        sock.bind("y.png")
        os.chdir(ROOT)
    account = open_dataset(name).account()
    assert passed_by(account) == {("neither a file nor a folder", ".png"): 2}
    assert sum(split.count for split in account.splits) == 10


def test_names_that_are_not_utf8(tmp_path):
    name = image_folder(tmp_path / "set", TWO)
    folder = os.fsencode(tmp_path / "set")
    Path(os.fsdecode(folder + b"/cat/caf\xe9.png")).write_bytes(encode(colour(5)))
    Path(os.fsdecode(folder + b"/dog/br\xfcder.txt")).write_bytes(b"text")
    account = open_dataset(name).account()
    assert sum(split.count for split in account.splits) == 11
    (entry,) = account.left_out
    assert entry.example == "dog/br\\udcfcder.txt"
    "\n".join(account.lines()).encode("utf-8")
    broken = Path(os.fsdecode(folder + b"/cat/caf\xe9.png"))
    broken.write_bytes(b"nonsense")
    source = open_dataset(name)
    with pytest.raises(CorruptImage, match=r"caf\\udce9\.png"):
        for split in ("train", "test"):
            list(source.samples(split))
    os.rename(folder + b"/cat", folder + b"/ch\xe2t")
    with pytest.raises(DataError, match=r"class folder ch\\udce2t has a name that is not UTF-8.*rename"):
        open_dataset(name)
    os.rename(folder, folder + b"\xff")
    with pytest.raises(DatasetNotFound, match="not UTF-8"):
        open_dataset(os.fsdecode(folder + b"\xff"))


# --- dividing, and files that change


def test_every_class_is_trained_after_dividing(tmp_path):
    name = image_folder(tmp_path / "set", {"cat": 9, "dog": 1})
    for seed in range(12):
        account = open_dataset(name, seed=seed).account()
        assert taken(account)["train"]["dog"] == 1
        assert account.splits[1].count >= 1
    one = image_folder(tmp_path / "one", {"train/a": 60, "train/b": 1, "test/a": 1})
    with pytest.raises(DataError, match="all of one class; raise max-train"):
        open_dataset(one, max_train=2)


def test_other_images_of_the_same_size_and_time_are_other_images(tmp_path):
    name = image_folder(tmp_path / "set", TWO)
    file = tmp_path / "set" / "cat" / "0.png"
    file.write_bytes(encode(colour(5), kind="BMP"))
    before, status = local_fingerprint(name, SourceOptions()), file.stat()
    other = tmp_path / "other"
    other.write_bytes(encode(colour(6), kind="BMP"))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(file)
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert local_fingerprint(name, SourceOptions()) != before
    assert local_fingerprint(name, SourceOptions()) == open_dataset(name).fingerprint


def test_a_linked_class_counts_in_the_fingerprint(tmp_path):
    real = Path(image_folder(tmp_path / "real", {"cats": 4}), "cats")
    name = image_folder(tmp_path / "set", {"dog": 3})
    (tmp_path / "set" / "cat").symlink_to(real)
    before = open_dataset(name).fingerprint
    (real / "0.png").write_bytes(encode(colour(200)))
    assert open_dataset(name).fingerprint != before


def test_every_image_is_of_its_own_class(tmp_path):
    """Grey level 10 * f + i is image i of folder f, so that a mixed-up label shows."""
    name = image_folder(tmp_path / "set", {"Train/b": 2, "Train/a": 2, "Val/a": 1, "Val/b": 2})
    source = open_dataset(name)
    assert levels(source, "train") == [(10, 0), (11, 0), (0, 1), (1, 1)]
    assert levels(source, "test") == [(20, 0), (30, 1), (31, 1)]


def test_the_account_in_lines_and_in_json(tmp_path):
    name = image_folder(tmp_path / "set", {"train/a": 2, "train/b": 3, "test/a": 1})
    (tmp_path / "set" / "train" / "a" / "readme.txt").write_text("hello")
    account = open_dataset(name).account()
    assert list(account.lines()) == [
        f"{name}: read as images by class",
        "  train, from train: 5 images (a: 2, b: 3)",
        "  test, from test: 1 image (a: 1)",
        "  left out: 1 .txt (not an image), such as train/a/readme.txt",
    ]
    account.save(tmp_path / "account.json")
    assert Account.load(tmp_path / "account.json") == account
    assert Account.load(tmp_path / "none.json") is None
    many = image_folder(
        tmp_path / "many", {f"{split}/{k:02d}": 1 + k % 2 for split in ("train", "test") for k in range(12)}
    )
    assert "12 classes of 1 to 2" in "\n".join(open_dataset(many).account().lines())


def test_notes_on_classes_that_look_alike(tmp_path):
    name = image_folder(
        tmp_path / "set", {"train/a": 2, "train/A": 2, "train/b": 2, "test/a": 1, "test/c": 1, "test/b": 1}
    )
    notes = open_dataset(name).account().notes
    assert any("'A' and 'a' differ only" in note for note in notes)
    assert any("class 'c' has test images only" in note for note in notes)


def test_pixels_of_a_folder_are_as_numpy_reads_them(tmp_path):
    random = np.random.default_rng(5).integers(0, 256, (4, 8, 8, 3), np.uint8)
    for k, pixels in enumerate(random):
        place = tmp_path / "set" / "train" / "ab"[k % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{k}.png")
    source = open_dataset(str(tmp_path / "set"), test_fraction=0.5)
    found = [image for split in ("train", "test") for image, _ in source.samples(split)]
    assert {image.tobytes() for image in found} == {pixels.tobytes() for pixels in random}
