"""psl inspect: the account and the contact sheet, before anything is sealed."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from psl_flower.cli.main import main
from tests.unit.tiny_pictures import colour, encode, image_folder


@pytest.fixture
def psl(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def run(*arguments):
        status = main([str(a) for a in arguments])
        return status, *capsys.readouterr()

    return run


def test_account_and_sheet(psl, tmp_path):
    name = image_folder(tmp_path / "pets", {"train/cat": 9, "train/dog": 3, "test/cat": 2})
    (tmp_path / "pets" / "train" / "cat" / "readme.txt").write_text("hello")
    status, out, err = psl("inspect", name)
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        f"{name}: read as images by class",
        "  train, from train: 12 images (cat: 9, dog: 3)",
        "  test, from test: 2 images (cat: 2)",
        "  left out: 1 .txt (not an image), such as train/cat/readme.txt",
        "decoded: 11 of 6x8x3 (--all decodes every image)",
        "contact sheet: inspect-pets.png",
    ]
    with Image.open("inspect-pets.png") as sheet:
        assert sheet.size == (10 * 108, 2 * 142)
        pixels = np.asarray(sheet)
    # The first image of each class has its own grey level, in its own row.
    assert (pixels[54, 54], pixels[142 + 54, 54]) == (pytest.approx([0] * 3), pytest.approx([10] * 3))
    assert (pixels[142 + 54, 9 * 108 + 54] == 255).all(), "three dogs, so the row ends with blanks"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inspect-pets.png", "pets"], "nothing else is made"
    status, out, _ = psl("inspect", name, "--json", "--all", "--out", "sheet.png")
    report = json.loads(out)
    assert (status, report["decoded"], report["sizes"], report["problems"]) == (0, 14, {"6x8x3": 14}, [])
    assert report["account"]["splits"][0]["classes"] == {"cat": 9, "dog": 3}
    assert report["account"]["left_out"] == [
        {"reason": "not an image", "ending": ".txt", "count": 1, "example": "train/cat/readme.txt"}
    ]
    assert report["sheet"] == "sheet.png" and Path("sheet.png").exists()


def test_settings_decide_and_errors_say_which(psl, tmp_path):
    name = image_folder(tmp_path / "pets", {"train/a": 2, "train/b": 2, "test/a": 1, "val/a": 1})
    status, out, err = psl("inspect", name)
    assert (status, out) == (1, "") and "train-split=train+val" in err
    status, out, _ = psl("inspect", name, "train-split=train+val", "--json")
    assert status == 0 and json.loads(out)["account"]["splits"][0]["source"] == "train+val"
    for words, match in (
        (["epochs=3"], "epochs: is no setting of how to read a dataset; these are image-column"),
        (["read-as=files"], "read-as: expected one of"),
        (["pixel-range"], "expected KEY=VALUE"),
    ):
        status, out, err = psl("inspect", name, *words)
        assert (status, out) == (1, "") and match in err


def test_what_cannot_be_decoded_is_crossed_out_and_named(psl, tmp_path):
    name = image_folder(tmp_path / "pets", {"train/a": 2, "train/b": 2, "test/a": 1})
    (tmp_path / "pets" / "train" / "b" / "1.png").write_bytes(b"nonsense")
    (tmp_path / "pets" / "train" / "a" / "1.png").write_bytes(encode(np.zeros((9, 9), np.uint8)))
    status, out, err = psl("inspect", name)
    assert status == 1
    both = "image train:0 (train/a/0.png) is 6x8x3, image train:1 (train/a/1.png) is 9x9x1"
    assert f"the images differ in size ({both}): image-size brings all of them to one" in out
    assert f"some images are grey and some are not ({both}): " in out
    assert "contact sheet: inspect-pets.png" in out
    assert err.startswith("error: image 3 of split 'train'") and err.count("\n") == 1
    status, out, _ = psl("inspect", name, "--json", "--all")
    assert status == 1 and len(json.loads(out)["problems"]) == 1


def test_images_are_shown_at_the_size_that_a_training_is_given(psl, tmp_path):
    name = image_folder(tmp_path / "pets", {"train/a": 2, "train/b": 2, "test/a": 1})
    (tmp_path / "pets" / "train" / "a" / "1.png").write_bytes(encode(np.zeros((9, 9, 3), np.uint8)))
    status, out, err = psl("inspect", name, "image-size=4x12")
    assert (status, err) == (0, "")
    assert "decoded: 4 of 6x8x3, 1 of 9x9x3" in out
    assert "image-size=4x12 brings all of them to one size, as the contact sheet shows" in out
    assert "differ in size" not in out
    sheet = (tmp_path / "inspect-pets.png").read_bytes()
    psl("inspect", name)
    assert (tmp_path / "inspect-pets.png").read_bytes() != sheet
    status, _, err = psl("inspect", name, "image-size=big")
    assert status == 1 and 'image-size: expected a size such as "16x16"' in err


def test_what_is_wrong_with_many_images_is_said_once(psl, tmp_path):
    name = image_folder(tmp_path / "set", {"train/a": 9, "train/b": 3, "test/a": 2})
    for number in range(5):
        (tmp_path / "set" / "train" / "a" / f"{number}.png").write_bytes(b"nonsense")
    (tmp_path / "set" / "train" / "b" / "0.png").write_bytes(b"")
    status, _, err = psl("inspect", name, "--all")
    broken, empty = err.splitlines()
    assert status == 1
    assert broken.startswith("error: image 0 of split 'train'") and broken.endswith(
        "leave-out=train/a/0.png (and 4 other images)"
    )
    assert empty.startswith("error: image 9 of split 'train'") and "is empty" in empty


def test_sealed_stores_and_files_that_are_there(psl, tmp_path):
    (tmp_path / "sealed").mkdir()
    (tmp_path / "sealed" / "manifest.psl").write_bytes(b"x")
    status, _, err = psl("inspect", tmp_path / "sealed")
    assert status == 1 and "holds sealed stores" in err
    (tmp_path / "mine.png").write_bytes(encode(colour(1)))
    status, _, err = psl("inspect", "digits", "--out", "mine.png")
    assert status == 1 and "mine.png exists already" in err and "--force" in err
    assert psl("inspect", "digits", "--out", "mine.png", "--force")[0] == 0
    status, _, err = psl("inspect", "digits", "--out", tmp_path / "no" / "such" / "sheet.png")
    assert status == 1 and "cannot be written" in err


def test_very_many_classes_fit_on_the_sheet(psl, tmp_path):
    name = image_folder(tmp_path / "many", {f"{k:03d}": 2 for k in range(20)})
    for k in range(20, 100):
        place = tmp_path / "many" / f"{k:03d}"
        place.mkdir()
        for i in range(2):
            (place / f"{i}.png").write_bytes(encode(colour(k)))
    status, out, _ = psl("inspect", name)
    assert status == 0 and "100 classes of 1 to 2" in out
    with Image.open("inspect-many.png") as sheet:
        assert sheet.size == (1080, 40 * 142)


def test_a_planted_link_is_replaced_and_not_followed(psl, tmp_path, monkeypatch):
    """The sheet's name can be guessed, and a link of that name may have come with the folder."""
    monkeypatch.chdir(tmp_path)
    victim, sheet = tmp_path / "victim", tmp_path / "inspect-digits.png"
    victim.write_text("precious")
    sheet.symlink_to(victim)
    psl("inspect", "digits")
    assert victim.read_text() == "precious"
    assert not sheet.is_symlink() and sheet.read_bytes().startswith(b"\x89PNG")
