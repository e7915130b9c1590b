"""Any dataset as two streams of images and labels, "train" and "test".

Shape suffixes: N samples of a split, R of them, H and W pixels, C channels.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psl_flower.config import EMBEDDED
from psl_flower.config.data import BY_DATASET
from psl_flower.data.account import Account, LeftOutTally, SplitAccount, class_counts
from psl_flower.data.digits import read_digits
from psl_flower.data.duplicates import Duplicates
from psl_flower.data.images import RawDataset, RawSplit
from psl_flower.data.local_folder import content_of, list_dataset, read_folder
from psl_flower.data.options import SourceOptions
from psl_flower.data.pixels import Decoder, NamingDecoder, SizeDecoder, Survey
from psl_flower.errors import DataError, DatasetNotFound
from psl_flower.seeds import evenly_spaced
from psl_flower.text import counted, did_you_mean_folder, expanded, printable

# Change it with anything that changes the images or labels made from the same files.
_FINGERPRINT_VERSION = 3
# The embedded images have not changed since the first.
_DIGITS_VERSION = 1
# Sampled to see if all images of a dataset are nearly black.
_SURVEYED = 64
BEYOND_MOST = "beyond max-train or max-test"


@dataclass(slots=True)
class _Part:
    """The rows of a split that are trained or tested on; which share of it, and how many more a setting leaves out."""

    raw: RawSplit
    rows_N: NDArray[np.int64]
    share: str = ""
    unused: int = 0


@dataclass(frozen=True, slots=True)
class DecodedSample:
    """One sample: its split, number in it and label, and its image (H, W, C) or that one's error."""

    split: str
    number: int
    label: int
    image_HWC: NDArray[np.uint8] | None
    problem: str


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

    def __init__(
        self, name: str, raw: RawDataset, fingerprint: str, parts: Mapping[str, _Part], options: SourceOptions
    ) -> None:
        self.name = name
        self.class_names = raw.class_names
        self.fingerprint = fingerprint
        self._raw, self._parts = raw, parts
        self._whole = options.pixel_range == BY_DATASET
        self._decoder = Decoder(options.pixel_range, options.background, self._survey)
        self._first: tuple[int, RawSplit, int] | None = None
        self._duplicates = Duplicates({split: len(part.rows_N) for split, part in parts.items()})

    def account(self) -> Account:
        """Return the account: images taken, files left out, and notes on the images decoded so far."""
        splits, left_out = [], LeftOutTally(self._raw.left_out.entries())
        for split, part in self._parts.items():
            counts = Counter(part.raw.labels_N[part.rows_N].tolist())
            source = printable(part.raw.name) + (f" ({part.share})" if part.share else "")
            splits.append(SplitAccount(name=split, source=source, classes=class_counts(self.class_names, counts)))
            left_out.add(BEYOND_MOST, f"images of {part.raw.name}", part.unused, ending="")
        return Account(
            dataset=self.name,
            reader=self._raw.reader,
            splits=tuple(splits),
            left_out=left_out.entries(),
            notes=(*self._raw.notes, *self._decoder.notes.sentences(), *self._duplicate_notes()),
            pixel_range=self._decoder.pixel_range,
            background=self._decoder.background,
        )

    def num_samples(self, split: str) -> int:
        """Return the number of samples of "train" or "test"; DataError for any other split."""
        return len(self._part(split).rows_N)

    def samples(
        self, split: str, start: int = 0, order_N: NDArray[np.int64] | None = None
    ) -> Iterator[tuple[NDArray[np.uint8], int]]:
        """Yield (image uint8 (H, W, C), label) of each sample from `start` on, decoding one image at a time.

        They come in the order of the source, or of these numbers of samples in the split (N,).

        Raises
        ------
        CorruptImage
            If an image cannot be decoded.
        DataError
            If there is no such split, or an image has another number of channels than the first one read.
        """
        part = self._part(split)
        places_R = (np.arange(len(part.rows_N)) if order_N is None else order_N)[start:]
        images = part.raw.images(part.rows_N[places_R], self._decoder)
        for place, image_HWC in zip(map(int, places_R), images, strict=True):
            self._duplicates.add(split, place, self._decoder.content)
            row = int(part.rows_N[place])
            self._check_channels(image_HWC.shape[2], part.raw, row)
            yield image_HWC, int(part.raw.labels_N[row])

    def where(self, split: str, number: int) -> str:
        """Return a sample's name for errors: its number within the split, and its file where it has one."""
        part = self._part(split)
        return _with_path(f"image {split}:{number}", part.raw, int(part.rows_N[number]))

    def spread(self, split: str, most: int) -> Iterator[NDArray[np.uint8]]:
        """Yield at most `most` images, uint8 (H, W, C), evenly spaced over a split; raises what `samples` does."""
        part = self._part(split)
        places = evenly_spaced(len(part.rows_N), most)
        yield from part.raw.images(part.rows_N[places], self._decoder)

    def sizes(self, split: str, most: int) -> Iterator[tuple[int, tuple[int, int]]]:
        """Yield (number in the split, (height, width)) of at most `most` samples, evenly spaced over it.

        Of image files the headers are read alone, so one that is damaged further on is not noticed; raises what
        `samples` does.
        """
        part = self._part(split)
        places = evenly_spaced(len(part.rows_N), most)
        images = part.raw.images(part.rows_N[places], SizeDecoder())
        for place, image_HWC in zip(places.tolist(), images, strict=True):
            yield place, (image_HWC.shape[0], image_HWC.shape[1])

    def decoded(self, split: str, places: Iterable[int]) -> Iterator[DecodedSample]:
        """Decode some samples of a split one by one, those that cannot be decoded too."""
        part = self._part(split)
        for place in places:
            row = part.rows_N[place : place + 1]
            label = int(part.raw.labels_N[row[0]])
            try:
                image_HWC = next(iter(part.raw.images(row, self._decoder)))
            except DataError as error:
                yield DecodedSample(split, place, label, None, str(error))
                continue
            self._duplicates.add(split, place, self._decoder.content)
            yield DecodedSample(split, place, label, image_HWC, "")

    def places_of(self, split: str, label: int) -> NDArray[np.int64]:
        """Return the numbers within a split of the samples of a class."""
        part = self._part(split)
        return np.flatnonzero(part.raw.labels_N[part.rows_N] == label)

    def _survey(self, survey: Survey) -> None:
        """Decode images with `survey`: some, or all if the range of their pixels is asked for."""
        for part in self._parts.values():
            count = len(part.rows_N)
            places = evenly_spaced(count, count if self._whole else _SURVEYED)
            for _ in part.raw.images(part.rows_N[places], survey):
                pass

    def _duplicate_notes(self) -> Iterator[str]:
        def name_of(split: str, place: int) -> str:
            part, namer = self._parts[split], NamingDecoder()
            next(iter(part.raw.images(part.rows_N[place : place + 1], namer)))
            return namer.where

        labels = {split: part.raw.labels_N[part.rows_N] for split, part in self._parts.items()}
        return self._duplicates.sentences(labels, self.class_names, name_of)

    def _part(self, split: str) -> _Part:
        if split not in self._parts:
            raise DataError(f"{self.name}: no split {split!r}; there are {', '.join(self._parts)}")
        return self._parts[split]

    def _check_channels(self, channels: int, split: RawSplit, row: int) -> None:
        if self._first is None:
            self._first = channels, split, row
        if channels != self._first[0]:
            both = ((split, row), self._first[1:])
            this, that = (_with_path(f"image {k} of split {raw.name!r}", raw, k) for raw, k in both)
            raise DataError(
                f"{self.name}: {this} has {counted(channels, 'channel')}, {that} has {self._first[0]}; convert all "
                "images to grey or all to RGB"
            )


def _with_path(image: str, split: RawSplit, row: int) -> str:
    path = split.path(row)
    return f"{image} ({path})" if path else image


def open_dataset(name: str, options: SourceOptions | None = None, **changes: Any) -> ImageSource:
    """Open a dataset by name.

    Parameters
    ----------
    name : str
        "digits" (scikit-learn's, 16x16 grey, needs no network), a local folder of images by class, of images that a
        table lists, of parquet files or of arrays, or the name of a dataset on the Hugging Face hub.
    options : SourceOptions, optional
        Which images and labels to take.
    **changes
        Fields of the options that differ from these.

    Raises
    ------
    ConfigError
        If an option is out of range.
    DatasetNotFound
        If there is no such dataset or folder.
    DataError
        If the dataset is empty, has no images, no labels or only one class, lacks some labels, or can be read in two
        ways; the error names the option that decides.
    """
    options = replace(options or SourceOptions(), **changes)
    if name == EMBEDDED:
        _check_no_patterns(name, options)
        raw, fingerprint = read_digits(), _digest(EMBEDDED, options)
        if options.image_column or options.label_column:
            raise DataError(f"{name}: has no columns to choose from; leave image-column and label-column empty")
    elif (folder := _local_folder(name)) is not None:
        listing = list_dataset(name, folder, options)
        raw, fingerprint = read_folder(name, listing, options), _digest(content_of(listing), options)
    else:
        from psl_flower.data.hub import load_hub
        from psl_flower.data.tables import read_tables

        _check_no_patterns(name, options)
        tables, found, notes = load_hub(name)
        raw, fingerprint = read_tables(name, tables, options, None, LeftOutTally(), set()), _digest(found, options)
        raw.notes.extend(notes)
    _check(name, raw)
    return ImageSource(name, raw, fingerprint, _select(name, raw, options), options)


def _check_no_patterns(name: str, options: SourceOptions) -> None:
    if options.patterns:
        raise DataError(f"{name}: is no folder whose files could be passed by; leave leave-out empty")


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
    return None if folder is None else _digest(content_of(list_dataset(name, folder, options)), options)


def _digest(content: object, options: SourceOptions) -> str:
    version = _DIGITS_VERSION if content == EMBEDDED else _FINGERPRINT_VERSION
    text = json.dumps((version, content, options.to_json()), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _local_folder(name: str) -> Path | None:
    """Return the folder of that name, or None for a name that may be the hub's."""
    if not name:
        raise DatasetNotFound('no dataset is named; give a local folder, a name on the hub, or "digits"')
    if printable(name) != name:
        raise DatasetNotFound(f"{name!r}: its name is not UTF-8, or cannot be printed; rename it, or name a link to it")
    path = expanded(name, "dataset")
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise DatasetNotFound(f"{name!r}: is a file; give the folder that holds it")
    if path.is_absolute() or name.startswith(".") or name.count("/") > 1:
        place = "" if name == str(path.absolute()) else f" ({path.absolute()})"
        raise DatasetNotFound(f"{name!r}: no such folder{place}{did_you_mean_folder(name)}")
    return None


def _check(name: str, raw: RawDataset) -> None:
    for split in (raw.train, raw.test):
        if split is None:
            continue
        if not len(split.labels_N):
            raise DataError(f"{name}: split {split.name!r} is empty")
        unlabelled = int((split.labels_N < 0).sum())
        if unlabelled:
            raise DataError(
                f"{name}: {unlabelled} of {len(split.labels_N)} images of split {split.name!r} have no label; choose "
                "splits with labels with train-split and test-split (none: hold back training images), or remove "
                "those images"
            )
    _check_two_classes(name, raw, raw.train.labels_N, "two or more are needed")
    if raw.test is not None:
        _compare_classes(name, raw)
    alike: dict[str, str] = {}
    for class_name in raw.class_names:
        other = alike.setdefault(_bare(class_name), class_name)
        if other != class_name:
            raw.notes.append(f"classes {other!r} and {class_name!r} differ only in capitals, spaces or accents' coding")


def _check_two_classes(name: str, raw: RawDataset, labels_N: NDArray[np.int64], remedy: str) -> None:
    if len(np.unique(labels_N)) < 2:
        raise DataError(f"{name}: the images of split {raw.train.name!r} are all of one class; {remedy}")


def _compare_classes(name: str, raw: RawDataset) -> None:
    """Refuse a test split that calls its classes otherwise than the training split does; note a class only it has."""
    assert raw.test is not None
    trained, tested = ({raw.class_names[k] for k in np.unique(split.labels_N)} for split in (raw.train, raw.test))
    for class_name in sorted(tested - trained):
        twins = [other for other in trained - tested if _bare(other) == _bare(class_name)]
        if twins or not tested & trained:
            other = (twins or sorted(trained))[0]
            raise DataError(
                f"{name}: split {raw.test.name!r} has a class {printable(class_name)!r} where {raw.train.name!r} has "
                f"{printable(other)!r}: no test image of it could be recognised; give classes one name in all splits"
            )
        raw.notes.append(f"class {class_name!r} has test images only")


def _bare(class_name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", class_name).casefold().split())


def _select(name: str, raw: RawDataset, options: SourceOptions) -> dict[str, _Part]:
    if raw.test is None:
        train_rows, test_rows = _divide(name, raw.train.labels_N, options)
        parts = {
            "train": _Part(raw.train, train_rows, f"all but {len(test_rows)}"),
            "test": _Part(raw.train, test_rows, f"{len(test_rows)} held back by test-fraction"),
        }
    else:
        parts = {
            "train": _Part(raw.train, np.arange(len(raw.train.labels_N))),
            "test": _Part(raw.test, np.arange(len(raw.test.labels_N))),
        }
    for part, most in ((parts["train"], options.max_train), (parts["test"], options.max_test)):
        if 0 < most < len(part.rows_N):
            part.unused = len(part.rows_N) - most
            part.rows_N = np.random.default_rng(options.seed).permutation(part.rows_N)[:most]
    labels_N = parts["train"].raw.labels_N[parts["train"].rows_N]
    if len(labels_N) > 1:  # for a single image the training raises the error
        _check_two_classes(name, raw, labels_N, "raise max-train, or choose another seed")
    return parts


def _divide(
    name: str, labels_N: NDArray[np.int64], options: SourceOptions
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows to train and to test on, ascending; classes in proportion if they can be, and none untrained."""
    from sklearn.model_selection import train_test_split

    num_test = int(np.ceil(options.test_fraction * len(labels_N)))
    num_train = len(labels_N) - num_test
    if num_train < 1:
        raise DataError(
            f"{name}: too few images ({len(labels_N)}) to set a part of {options.test_fraction} aside for tests"
        )
    counts = np.unique(labels_N, return_counts=True)[1]
    stratified = counts.min() >= 2 and min(num_train, num_test) >= len(counts)
    train_rows, test_rows = train_test_split(
        np.arange(len(labels_N)),
        test_size=num_test,
        random_state=options.seed,
        stratify=labels_N if stratified else None,
    )
    train_rows, test_rows = np.sort(train_rows), np.sort(test_rows)
    untrained = np.setdiff1d(labels_N, labels_N[train_rows])
    if len(untrained):
        # A class that is only tested on cannot be learnt: its first image is trained on instead.
        moved = [test_rows[labels_N[test_rows] == label][0] for label in untrained]
        train_rows, test_rows = np.union1d(train_rows, moved), np.setdiff1d(test_rows, moved)
    if not len(test_rows):
        raise DataError(f"{name}: too few images ({len(labels_N)}) to set some aside for tests and train all classes")
    return train_rows, test_rows
