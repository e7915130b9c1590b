"""Any dataset as two streams of images and labels, "train" and "test".

Shape suffixes: N samples of a split, H and W pixels, C channels.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from psl_flower.config import EMBEDDED
from psl_flower.data.hub import load_tables
from psl_flower.data.image_folder import load_image_folder, walk_files
from psl_flower.data.images import RawDataset, RawSplit
from psl_flower.errors import ConfigError, DataError, DatasetNotFound
from psl_flower.text import expanded

_DIGITS_SIZE = (16, 16)
_DIGITS_LEVELS = 16
# Change it with anything that changes the images or labels made from the same files.
_FINGERPRINT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """What decides, besides the dataset itself, which samples and labels there are.

    Attributes
    ----------
    image_column, label_column : str
        Columns to take; empty: found by their types.
    test_fraction : float
        Part of the training images, above 0 and below 1, to test on where the dataset has no test split.
    seed : int
        Of that division and of the selection by max_train and max_test, 0 to 2**32 - 1.
    max_train, max_test : int
        Take only that many images, drawn at random; 0 takes all.

    Raises
    ------
    ConfigError
        If a number is out of its range.
    """

    image_column: str = ""
    label_column: str = ""
    test_fraction: float = 0.2
    seed: int = 0
    max_train: int = 0
    max_test: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.test_fraction < 1:
            raise ConfigError(f"test-fraction: expected above 0 and below 1, got {self.test_fraction}")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed: expected 0 to {2**32 - 1}, got {self.seed}")
        if min(self.max_train, self.max_test) < 0:
            raise ConfigError(f"max-train, max-test: expected 0 or more, got {self.max_train} and {self.max_test}")


@dataclass(slots=True)
class _Part:
    raw: RawSplit
    rows_N: NDArray[np.int64]


class ImageSource:
    """A dataset's images and labels, streamed; made by `open_dataset`.

    Attributes
    ----------
    name : str
        As the user gave it.
    class_names : tuple[str, ...]
        Label k -> name.
    fingerprint : str
        Hex digits, stable across processes, of the dataset's content and the options.
    """

    def __init__(self, name: str, class_names: tuple[str, ...], fingerprint: str, parts: Mapping[str, _Part]) -> None:
        self.name = name
        self.class_names = class_names
        self.fingerprint = fingerprint
        self._parts = parts
        self._first: tuple[int, str] | None = None

    def num_samples(self, split: str) -> int:
        """Return the number of samples of "train" or "test"; DataError for any other split."""
        return len(self._part(split).rows_N)

    def samples(self, split: str, start: int = 0) -> Iterator[tuple[NDArray[np.uint8], int]]:
        """Yield (image uint8 (H, W, C), label) of each sample from `start` on, decoding one image at a time.

        Raises
        ------
        CorruptImage
            If an image cannot be decoded.
        DataError
            If there is no such split, or an image has another number of channels than the first one read.
        """
        part = self._part(split)
        rows_N = part.rows_N[start:]
        for row, image_HWC in zip(rows_N.tolist(), part.raw.images(rows_N), strict=True):
            self._check_channels(image_HWC.shape[2], f"image {row} of split {part.raw.name!r}")
            yield image_HWC, int(part.raw.labels_N[row])

    def spread(self, split: str, most: int) -> Iterator[NDArray[np.uint8]]:
        """Yield at most so many images, uint8 (H, W, C), evenly spaced over a split; errors as of `samples`."""
        part = self._part(split)
        places = np.linspace(0, len(part.rows_N) - 1, min(len(part.rows_N), most)).round().astype(np.int64)
        yield from part.raw.images(part.rows_N[places])

    def _part(self, split: str) -> _Part:
        if split not in self._parts:
            raise DataError(f"{self.name}: no split {split!r}; there are {', '.join(self._parts)}")
        return self._parts[split]

    def _check_channels(self, channels: int, where: str) -> None:
        if self._first is None:
            self._first = channels, where
        if channels != self._first[0]:
            raise DataError(
                f"{self.name}: {where} has {channels} channel{'s'[: channels > 1]}, {self._first[1]} has "
                f"{self._first[0]}; convert all images to grey or all to RGB"
            )


def open_dataset(
    name: str,
    *,
    image_column: str = "",
    label_column: str = "",
    test_fraction: float = 0.2,
    seed: int = 0,
    max_train: int = 0,
    max_test: int = 0,
) -> ImageSource:
    """Open a dataset by name; the options are those of `SourceOptions`.

    Parameters
    ----------
    name : str
        "digits" (scikit-learn's, 16x16 grey, needs no network), a local folder of images by class or of
        parquet files in the hub's layout, or the name of a dataset on the Hugging Face hub.

    Raises
    ------
    ConfigError
        If an option is out of range.
    DatasetNotFound
        If there is no such dataset or folder.
    DataError
        If the dataset is empty, has no images, no labels or only one class, or lacks some labels.
    """
    options = SourceOptions(
        image_column=image_column,
        label_column=label_column,
        test_fraction=test_fraction,
        seed=seed,
        max_train=max_train,
        max_test=max_test,
    )
    fingerprint = local_fingerprint(name, options)
    folder = _local_folder(name)
    raw = _load_digits() if name == EMBEDDED else load_image_folder(name, folder) if folder else None
    if raw is None:
        raw, hub_fingerprints = load_tables(name, folder, image_column=image_column, label_column=label_column)
        fingerprint = fingerprint or _digest(hub_fingerprints, options)
    elif image_column or label_column:
        raise DataError(f"{name}: has no columns to choose from; leave image-column and label-column empty")
    _check(name, raw)
    return ImageSource(name, raw.class_names, fingerprint or "", _select(name, raw, options))


def local_fingerprint(name: str, options: SourceOptions) -> str | None:
    """Return the fingerprint of the dataset without opening it; None for a name on the hub.

    Raises
    ------
    DatasetNotFound
        If the name can only be a folder, and there is none.
    DataError
        If the folder cannot be listed.
    """
    if name == EMBEDDED:
        return _digest(EMBEDDED, options)
    folder = _local_folder(name)
    if folder is None:
        return None
    try:
        listing = []
        for path in walk_files(folder):
            status = path.stat()
            listing.append((os.fsencode(path.relative_to(folder)).hex(), status.st_size, status.st_mtime_ns))
    except OSError as error:
        raise DataError(f"{name}: cannot list {error.filename or folder}: {error.strerror or error}") from error
    return _digest((str(folder), listing), options)


def _digest(content: object, options: SourceOptions) -> str:
    text = json.dumps((_FINGERPRINT_VERSION, content, asdict(options)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _local_folder(name: str) -> Path | None:
    """Return the folder of that name, or None for a name that may be the hub's."""
    if not name:
        raise DatasetNotFound('no dataset is named; give a local folder, a name on the hub, or "digits"')
    path = expanded(name, "dataset")
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise DatasetNotFound(f"{name!r}: is a file; give the folder that holds it")
    if path.is_absolute() or name.startswith(".") or name.count("/") > 1:
        place = "" if name == str(path.absolute()) else f" ({path.absolute()})"
        raise DatasetNotFound(f"{name!r}: no such folder{place}")
    return None


def _load_digits() -> RawDataset:
    from sklearn.datasets import load_digits

    digits = load_digits()
    height, width = _DIGITS_SIZE

    def images(rows_R: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        for row in rows_R.tolist():
            small = np.round(digits.images[row] * (255 / _DIGITS_LEVELS)).astype(np.uint8)
            scaled = Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)
            yield np.asarray(scaled, np.uint8)[:, :, np.newaxis]

    labels_N = digits.target.astype(np.int64)
    class_names = tuple(str(name) for name in digits.target_names)
    return RawDataset(
        class_names=class_names, train=RawSplit(name=EMBEDDED, labels_N=labels_N, images=images), test=None
    )


def _check(name: str, raw: RawDataset) -> None:
    for split in (raw.train, raw.test):
        if split is None:
            continue
        if not len(split.labels_N):
            raise DataError(f"{name}: split {split.name!r} is empty")
        unlabelled = int((split.labels_N < 0).sum())
        if unlabelled:
            raise DataError(
                f"{name}: {unlabelled} of {len(split.labels_N)} images of split {split.name!r} have no "
                "label; "
                "use a split or dataset with labels, or remove those images"
            )
    if len(np.unique(raw.train.labels_N)) < 2:
        raise DataError(f"{name}: the images of split {raw.train.name!r} are all of one class; two or more are needed")


def _select(name: str, raw: RawDataset, options: SourceOptions) -> dict[str, _Part]:
    if raw.test is None:
        train_rows, test_rows = _divide(name, raw.train.labels_N, options)
        parts = {"train": _Part(raw.train, train_rows), "test": _Part(raw.train, test_rows)}
    else:
        parts = {
            "train": _Part(raw.train, np.arange(len(raw.train.labels_N))),
            "test": _Part(raw.test, np.arange(len(raw.test.labels_N))),
        }
    for part, most in ((parts["train"], options.max_train), (parts["test"], options.max_test)):
        if 0 < most < len(part.rows_N):
            part.rows_N = np.random.default_rng(options.seed).permutation(part.rows_N)[:most]
    return parts


def _divide(
    name: str, labels_N: NDArray[np.int64], options: SourceOptions
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows to train and to test on, ascending; classes in proportion if they can be."""
    from sklearn.model_selection import train_test_split

    num_test = int(np.ceil(options.test_fraction * len(labels_N)))
    num_train = len(labels_N) - num_test
    if num_train < 1:
        raise DataError(
            f"{name}: {len(labels_N)} images are too few to set a part of {options.test_fraction} aside for tests"
        )
    counts = np.unique(labels_N, return_counts=True)[1]
    stratified = counts.min() >= 2 and min(num_train, num_test) >= len(counts)
    train_rows, test_rows = train_test_split(
        np.arange(len(labels_N)),
        test_size=num_test,
        random_state=options.seed,
        stratify=labels_N if stratified else None,
    )
    return np.sort(train_rows), np.sort(test_rows)
