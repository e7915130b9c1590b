"""What the account notes of images: pages that are not taken, and how many images each note is about."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from psl_flower.data.pixels import Decoder
from psl_flower.data.sources import open_dataset
from psl_flower.errors import CorruptImage
from tests.unit.tiny_pictures import colour, encode


def two_classes(root, contents):
    """Write image k to class a or b in turn."""
    for k, content in enumerate(contents):
        place = root / "ab"[k % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{k}.png").write_bytes(content)
    return str(root)


# --- pages and frames

FRAMES = [("TIFF", {}), ("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("AVIF", {"quality": 100})]


@pytest.mark.parametrize(("kind", "options"), FRAMES, ids=[kind for kind, _ in FRAMES])
def test_of_several_pages_or_frames_the_first_is_taken_and_said_once(tmp_path, kind, options):
    assert FRAMES
    name = two_classes(tmp_path / "set", [encode(colour(20 * k), kind=kind, **options) for k in range(8)])
    for k in (0, 1, 2):
        pages = [Image.fromarray(colour(level)) for level in (10 * k, 250, 90)]
        pages[0].save(tmp_path / "set" / "b" / f"pages{k}.x", kind, save_all=True, append_images=pages[1:], **options)
    source = open_dataset(name)
    levels = [int(image[0, 0, 0]) for split in ("train", "test") for image, _ in source.samples(split)]
    assert max(levels) <= 142  # 20 * 7 and what lossy formats do to it
    (note,) = source.account().notes
    assert note.startswith("3 images, such as ") and "b/pages" in note
    assert note.endswith(": several pages or frames are in the file, of which the first was taken")


def test_an_empty_file_and_a_huge_picture_say_what_is_wrong(tmp_path, monkeypatch, recwarn):
    with pytest.raises(CorruptImage, match="here: is empty; replace"):
        Decoder().file(b"", "here")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    assert Decoder().file(encode(colour(3)), "here").shape == (6, 8, 3)  # 48 pixels, of which Pillow warns
    assert not recwarn
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(CorruptImage, match=r"here: has more than 0 million pixels; reduce"):
        Decoder().file(encode(colour(3)), "here")


def test_what_is_noted_counts_each_image_once_however_often_it_is_decoded(tmp_path):
    name = two_classes(tmp_path / "set", [encode(np.full((2, 2, 4), (k, 8, 7, 0), np.uint8)) for k in range(10)])
    source = open_dataset(name)
    for _ in range(2):
        for split in ("train", "test"):
            list(source.samples(split))
            list(source.spread(split, 5))
    assert [note.split(",")[0] for note in source.account().notes] == ["10 images"]


# --- the same image twice


def read_whole(source):
    """Decode every image, and return the account."""
    for split in ("train", "test"):
        list(source.samples(split))
    return source.account()


def split_folders(root, spec):
    """Write {path: grey level} as pictures."""
    for path, level in spec.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(encode(colour(level)))
    return str(root)


TWINS = [
    # Under two classes.
    (
        {"train/a/0.png": 1, "train/a/1.png": 2, "train/b/0.png": 3, "train/b/1.png": 1, "test/a/0.png": 5},
        [r"2 images of the same content as an image of another class, such as .*a/0\.png\) \(a\) and .*b/1\.png\) \(b\)"],
    ),
    # In both splits, one of them twice in the test split.
    (
        {"train/a/0.png": 1, "train/b/0.png": 2, "test/a/0.png": 1, "test/a/1.png": 1, "test/b/0.png": 4},
        [r"2 images to test on of the same content as an image to train on, such as .*train/a/0\.png\) .*test/a/0\.png"],
    ),
    # Both of it.
    (
        {"train/a/0.png": 1, "train/b/0.png": 2, "test/a/0.png": 2, "test/b/0.png": 1},
        [r"4 images of the same content .* another class", r"2 images to test on of the same content"],
    ),
    # Twice in one class of one split, and equal in size alone: nothing to say.
    ({"train/a/0.png": 1, "train/a/1.png": 1, "train/b/0.png": 2, "test/b/0.png": 3}, []),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "matches"), TWINS)
def test_the_same_image_in_two_classes_or_splits_is_said(tmp_path, spec, matches):
    assert TWINS
    source = open_dataset(split_folders(tmp_path / "set", spec))
    assert not source.account().notes, "nothing has been decoded yet"
    notes = read_whole(source).notes
    assert len(notes) == len(matches)
    for note, match in zip(notes, matches, strict=True):
        assert re.match(match, note)
    assert read_whole(source).notes == notes, "a second reading finds no more"


def test_a_linked_class_and_images_in_tables_are_compared_too(tmp_path):
    name = split_folders(tmp_path / "set", {f"kitten/{k}.png": k for k in range(10)})
    (tmp_path / "set" / "cat").symlink_to("kitten")
    assert any(note.startswith("20 images of the same content") for note in read_whole(open_dataset(name)).notes)
    cells = [{"bytes": encode(colour(k % 8)), "path": None} for k in range(10)]
    (tmp_path / "table").mkdir()
    pq.write_table(pa.table({"image": cells, "label": list("ab" * 4 + "bb")}), tmp_path / "table" / "train.parquet")
    notes = read_whole(open_dataset(str(tmp_path / "table"))).notes
    assert any(
        re.match(r"2 images of the same content as an image of another class, such as image \d", n) for n in notes
    )


def test_images_that_share_a_file_size_are_not_the_same(tmp_path):
    contents = [encode(colour(k), kind="BMP") for k in range(40)]
    assert len({len(content) for content in contents}) == 1
    assert not read_whole(open_dataset(two_classes(tmp_path / "set", contents))).notes
