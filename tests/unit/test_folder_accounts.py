"""What is read of odd folders, and what is not: the account says all of it, or the error says what to do."""

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
from psl_flower.data.options import SourceOptions
from psl_flower.data.sources import local_fingerprint, open_dataset
from psl_flower.errors import CorruptImage, DataError, DatasetNotFound
from tests.paths import ROOT
from tests.unit.tiny_pictures import colour, encode, image_folder, levels

TWO = {"cat": 5, "dog": 5}


def taken(account: Account) -> dict[str, dict[str, int]]:
    """Return the images of each split by class."""
    return {split.name: split.classes for split in account.splits}


def passed_by(account: Account) -> dict[tuple[str, str], int]:
    """Return how many things were left out by reason and ending."""
    return {(entry.reason, entry.ending): entry.count for entry in account.left_out}


SPLITS = [
    # As people and archives call them.
    ({"Train/cat": 3, "Train/dog": 2, "Test/cat": 1, "Test/dog": 1}, {"cat": 3, "dog": 2}, {"cat": 1, "dog": 1}),
    ({"TRAIN/cat": 3, "TRAIN/dog": 2, "VAL/cat": 1, "VAL/dog": 1}, {"cat": 3, "dog": 2}, {"cat": 1, "dog": 1}),
    ({"training/a": 3, "training/b": 2, "testing/a": 1, "testing/b": 1}, {"a": 3, "b": 2}, {"a": 1, "b": 1}),
    ({"train/a": 3, "train/b": 2, "valid/a": 1, "valid/b": 1}, {"a": 3, "b": 2}, {"a": 1, "b": 1}),
    ({"train/a": 3, "train/b": 2, "eval/a": 1, "eval/b": 1}, {"a": 3, "b": 2}, {"a": 1, "b": 1}),
    ({"train/a": 3, "train/b": 2, "dev/a": 1, "dev/b": 1}, {"a": 3, "b": 2}, {"a": 1, "b": 1}),
    ({"train2017/a": 3, "train2017/b": 2, "val2017/a": 1, "val2017/b": 1}, {"a": 3, "b": 2}, {"a": 1, "b": 1}),
    # In folders that say nothing, and doubled.
    ({"pets/v2/train/a": 3, "pets/v2/train/b": 2, "pets/v2/test/a": 1}, {"a": 3, "b": 2}, {"a": 1, "b": 0}),
    ({"x_train/x_train/a": 3, "x_train/x_train/b": 2, "x_test/x_test/a": 1}, {"a": 3, "b": 2}, {"a": 1, "b": 0}),
    ({"train/train/a": 3, "train/train/b": 2, "test/test/b": 1}, {"a": 3, "b": 2}, {"a": 0, "b": 1}),
    # Folders within a class that divide nothing.
    ({"train/a/images": 3, "train/b/images": 2, "test/a/x": 1, "test/b": 1}, {"a": 3, "b": 2}, {"a": 1, "b": 1}),
]


@pytest.mark.parametrize(("spec", "train", "test"), SPLITS, ids=[",".join(spec) for spec, _, _ in SPLITS])
def test_splits_are_known_by_their_names(tmp_path, spec, train, test):
    assert SPLITS
    account = open_dataset(image_folder(tmp_path / "set", spec)).account()
    assert taken(account) == {"train": train, "test": test}
    assert not account.left_out


CLASSES = [
    ({"cat": 8, "dog": 8}, ("cat", "dog")),
    ({"train": 5, "car": 5, "test tube": 5}, ("car", "test tube", "train")),
    ({"pets/cat": 8, "pets/dog": 8}, ("cat", "dog")),
    ({"train/cat": 8, "train/dog": 8}, ("cat", "dog")),
    ({"train station": 8, "train depot": 8}, ("train depot", "train station")),
]


@pytest.mark.parametrize(("spec", "names"), CLASSES, ids=[",".join(spec) for spec, _ in CLASSES])
def test_folders_without_a_split_beside_them_are_divided(tmp_path, spec, names):
    assert CLASSES
    account = open_dataset(image_folder(tmp_path / "set", spec)).account()
    train, test = account.splits
    assert tuple(train.classes) == names
    for name, count in zip(names, sorted(spec.values()), strict=True):
        assert train.classes[name] + test.classes[name] == count
    assert "held back" in test.source and f"all but {test.count}" in train.source
    assert not account.left_out


REFUSED = [
    ({"test/cat": 2, "test/dog": 2, "val/cat": 2}, {}, r'no split is called "train".*test, val.*train-split=test'),
    ({"train/a": 2, "train/b": 2, "test/a": 1, "val/a": 1, "val/b": 1}, {}, r"2 labelled images of split 'val'.*train-split=train\+val.*train-split=train test-split=test"),
    ({"train/a": 2, "train/b": 2, "extra/a": 1}, {}, r"'train' looks like a split.*'extra'.*leave-out=extra"),
    ({"train": 4, "test": 2}, {}, r"neither images .*6 images.*in no class folder"),
    ({"x_train": 4, "x_test": 2}, {}, r"neither images .*6 images.*in no class folder"),
    ({"train": 4, "test": 2, "car": 3}, {}, r"'test' and 'train' look like splits.*rename"),
    ({"pictures": 5}, {}, "all of one class"),
    ({"train/a": 2, "train/b": 2, "test": 3}, {}, r"split 'test': its images lie in no class folders.*test-split=none"),
    ({"Train/a": 2, "Train/b": 2, "train/a": 3, "train/b": 1}, {}, r"2? ?labelled images of split 'Train'|several splits"),
    ({"animals/cat": 3, "animals/dog": 3, "things/car": 3}, {}, "class-folder=top or class-folder=leaf"),
    ({"train/a": 2, "train/b": 2, "val/images": 3}, {}, "'images'.*no test image of it could be recognised"),
    ({"train/Cat": 2, "train/dog": 2, "test/cat": 1, "test/dog": 1}, {}, "'cat' where 'train' has 'Cat'"),
    ({"train/cafe\u0301": 2, "train/b": 2, "test/caf\u00e9": 1, "test/b": 1}, {}, "one name in all splits"),
    ({"a": 3, "b": 3}, {"train_split": "learn"}, r"no folder 'learn' .*there are a, b"),
    ({"learn/a": 2, "learn/b": 2, "rest/a": 1}, {"train_split": "learn"}, r"images in rest/a/ would be in no split.*leave-out"),
    ({"train/a": 2, "train/b": 2}, {"train_split": "train", "test_split": "train"}, "cannot be trained and tested on"),
    ({"t/a": 2, "t/b": 2}, {"train_split": "t", "test_split": "t/a"}, "split 't/a' lies in split 't'"),
    ({"a": 3, "b": 3}, {"read_as": "tables"}, "neither images"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "options", "match"), REFUSED)
def test_what_can_be_read_in_two_ways_is_refused_with_the_way_out(tmp_path, spec, options, match):
    assert REFUSED
    with pytest.raises(DataError, match=match):
        open_dataset(image_folder(tmp_path / "set", spec), **options)


WAYS_OUT = [
    (
        {"train/a": 2, "train/b": 2, "test/a": 1, "val/a": 1, "val/b": 1},
        {"train_split": "train+val"},
        {"train": {"a": 3, "b": 3}, "test": {"a": 1, "b": 0}},
        {},
    ),
    (
        {"train/a": 2, "train/b": 2, "test/a": 1, "val/a": 1, "val/b": 1},
        {"train_split": "train", "test_split": "val"},
        {"train": {"a": 2, "b": 2}, "test": {"a": 1, "b": 1}},
        {("in no split asked for", ".png"): 1},
    ),
    (
        {"test/cat": 2, "test/dog": 3, "val/cat": 2},
        {"train_split": "Test", "test_split": "val"},
        {"train": {"cat": 2, "dog": 3}, "test": {"cat": 2, "dog": 0}},
        {},
    ),
    (
        {"pets/learn/a": 2, "pets/learn/b": 2, "pets/holdout/a": 1, "pets/rest/x": 4},
        {"train_split": "learn", "test_split": "pets/holdout"},
        {"train": {"a": 2, "b": 2}, "test": {"a": 1, "b": 0}},
        {("in no split asked for", ".png"): 4},
    ),
    (
        {"animals/cat": 5, "animals/dog": 5, "things/car": 5},
        {"class_folder": "leaf", "test_fraction": 0.2},
        {
            "train": {"animals/cat": 4, "animals/dog": 4, "things/car": 4},
            "test": {"animals/cat": 1, "animals/dog": 1, "things/car": 1},
        },
        {},
    ),
    (
        {"animals/cat": 5, "animals/dog": 5, "things/car": 5},
        {"class_folder": "top", "test_fraction": 0.2},
        {"train": {"animals": 8, "things": 4}, "test": {"animals": 2, "things": 1}},
        {},
    ),
    (
        {"train/a": 2, "train/b": 2, "extra/a": 3},
        {"leave_out": "extra, *.txt", "test_split": "none", "test_fraction": 0.5},
        {"train": {"a": 1, "b": 1}, "test": {"a": 1, "b": 1}},
        {("named by leave-out", ""): 3},
    ),
]


@pytest.mark.parametrize(("spec", "options", "expected", "left"), WAYS_OUT)
def test_settings_decide_what_is_read(tmp_path, spec, options, expected, left):
    assert WAYS_OUT
    account = open_dataset(image_folder(tmp_path / "set", spec), **options).account()
    assert taken(account) == expected
    assert passed_by(account) == left


def test_an_account_has_images_beyond_the_most_that_are_asked_for(tmp_path):
    name = image_folder(tmp_path / "set", {"train/a": 9, "train/b": 9, "test/a": 5, "test/b": 5})
    account = open_dataset(name, max_train=4, max_test=3).account()
    assert [split.count for split in account.splits] == [4, 3]
    assert passed_by(account) == {("beyond max-train or max-test", ""): 21}


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
