"""Tiny pictures: folders of them, requests to make stores of one, and the images that a set of stores holds."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from psl_flower.patches.store import read_all_positions
from psl_flower.stores.store_set import StoreRequest, StoreSet


def encode(pixels, mode=None, kind="PNG", **options):
    """Return pixels as the bytes of a picture file, converted to a mode of Pillow's first."""
    buffer = io.BytesIO()
    image = Image.fromarray(np.asarray(pixels))
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def colour(value, size=(6, 8)):
    """Return the pixels (H, W, 3) of a picture of one grey level."""
    return np.full((*size, 3), value, np.uint8)


def image_folder(root, spec, size=(6, 8)):
    """Write {folder of a class: number of images}; image i of folder f has the grey level 10 * f + i."""
    for f, (rel, count) in enumerate(spec.items()):
        (root / rel).mkdir(parents=True)
        for i in range(count):
            (root / rel / f"{i}.png").write_bytes(encode(colour(10 * f + i, size)))
    return str(root)


def levels(source, split):
    """Return the grey level and the label of each image of a split."""
    return [(int(image[0, 0, 0]), label) for image, label in source.samples(split)]


def make_pictures(folder: Path) -> Path:
    """Fill a folder with random 8x8 RGB pictures of two classes: 5 and 4 to train, 2 and 1 to test."""
    random = np.random.default_rng(3)
    for part, count in (("train/a", 5), ("train/b", 4), ("test/a", 2), ("test/b", 1)):
        (folder / part).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / part / f"{i}.png")
    return folder


def files_of(folder: Path) -> np.ndarray:
    """Return the pictures of such a folder, (N, H, W, C), in the order of their global indices."""
    paths = [folder / f"{split}/{c}" for split in ("train", "test") for c in "ab"]
    return np.stack([np.asarray(Image.open(f)) for path in paths for f in sorted(path.iterdir())])


def request_for(folder, **changes):
    """Return a request for stores of such a folder, in four patches unless the changes say otherwise."""
    return StoreRequest(**{"dataset": str(folder), "patch_size": (4, 4), "stride": (4, 4)} | changes)


def images_of(stores: StoreSet) -> np.ndarray:
    """Put the images (N, C, H, W) of a set together again from its stores."""
    description = stores.description
    opened = [stores.open(upper) for upper in range(description.num_uppers)]
    patches = read_all_positions(opened, np.arange(description.num_samples))
    for store in opened:
        assert store.meta.dataset == description.fingerprint
        store.close()
    return description.grid().merge(patches)


def listing(root: Path) -> list[str]:
    """Return the names of the sets in a folder, without the hidden files beside them."""
    return sorted(p.name for p in root.iterdir() if not p.name.startswith("."))


def all_levels(source):
    """Return (level, label) of all images of a source of plain colours, sorted."""
    return sorted(pair for split in ("train", "test") for pair in levels(source, split))
