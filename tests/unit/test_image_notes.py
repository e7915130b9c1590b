"""What the account notes of images: pages that are not taken, and how many images each note is about."""

import numpy as np
import pytest
from PIL import Image

from psl_flower.data.sources import open_dataset
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


def test_what_is_noted_counts_each_image_once_however_often_it_is_decoded(tmp_path):
    name = two_classes(tmp_path / "set", [encode(np.full((2, 2, 4), (k, 8, 7, 0), np.uint8)) for k in range(10)])
    source = open_dataset(name)
    for _ in range(2):
        for split in ("train", "test"):
            list(source.samples(split))
            list(source.spread(split, 5))
    assert [note.split(",")[0] for note in source.account().notes] == ["10 images"]
