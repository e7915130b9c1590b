"""A tiny folder of pictures, and the images that a set of stores made of it holds."""

from pathlib import Path

import numpy as np
from PIL import Image

from psl_flower.data.store_set import StoreSet


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


def images_of(stores: StoreSet) -> np.ndarray:
    """Put the images (N, C, H, W) of a set together again from its stores."""
    manifest = stores.manifest
    count = manifest.num_samples
    patches = np.zeros((count, manifest.grid().num_patches, manifest.channels, *manifest.patch_size), np.uint8)
    for upper in range(manifest.num_uppers):
        store = stores.open(upper)
        assert store.meta.dataset == manifest.fingerprint
        patches[:, list(store.meta.positions)] = store.read(np.arange(count))
        store.close()
    return manifest.grid().merge(patches)


def listing(root: Path) -> list[str]:
    """Return the names of the sets in a folder, without the locks beside them."""
    return sorted(p.name for p in root.iterdir() if not p.name.endswith(".lock"))
