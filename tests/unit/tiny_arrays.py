"""MNIST-like arrays, written as idx, npy and npz files and as tables with a column for each pixel."""

import gzip
import struct

import numpy as np

from tests.unit.accounts import taken

RANDOM = np.random.default_rng(5)
TRAIN, TEST = (RANDOM.integers(0, 256, (count, 28, 28), np.uint8) for count in (20, 10))
TRAIN_LABELS, TEST_LABELS = (np.arange(count, dtype=np.uint8) % 3 for count in (20, 10))
CLASSES = {"train": {"0": 7, "1": 7, "2": 6}, "test": {"0": 4, "1": 3, "2": 3}}


def idx(values, kind=0x08):
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, kind, values.ndim, *values.shape) + values.tobytes()


def idx_folder(root, names, pack=False):
    """Write MNIST's four files under these names: images and labels to train, then to test."""
    root.mkdir(parents=True, exist_ok=True)
    for name, values in zip(names, (TRAIN, TRAIN_LABELS, TEST, TEST_LABELS), strict=True):
        content = idx(values)
        (root / name).write_bytes(gzip.compress(content) if pack else content)
    return str(root)


def npz(root, files):
    root.mkdir(parents=True, exist_ok=True)
    for k, (file, arrays) in enumerate(files.items()):
        (np.savez if k % 2 else np.savez_compressed)(root / file, **arrays)
    return str(root)


def pixel_table(path, columns, images, labels=None, name="label"):
    """Write a table with a column for each pixel, and the labels' column before these."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = images.reshape(len(images), -1).tolist()
    head = [name] * (labels is not None) + columns
    lines = [[*([labels[k]] if labels is not None else []), *row] for k, row in enumerate(rows)]
    path.write_text("\n".join(",".join(map(str, line)) for line in [head, *lines]) + "\n")
    return str(path.parent)


def check_mnist(source, train=TRAIN, test=TEST):
    """Check that these are MNIST's images, each with its own class."""
    assert taken(source.account()) == CLASSES
    for split, images, labels in (("train", train, TRAIN_LABELS), ("test", test, TEST_LABELS)):
        found = list(source.samples(split))
        np.testing.assert_array_equal(np.stack([image[:, :, 0] for image, _ in found]), images)
        assert [source.class_names[label] for _, label in found] == list(map(str, labels))


PAIR = {"images": TRAIN, "labels": TRAIN_LABELS}
KERAS = {"mnist.npz": {"x_train": TRAIN, "y_train": TRAIN_LABELS, "x_test": TEST, "y_test": TEST_LABELS}}
