"""Folders of arrays: images in one, their labels in another, as MNIST, Keras and MedMNIST have them.

An array's role follows from the words of its name or, failing that, from its shape; a list whose name says
something else, such as "age", is no list of labels. Of several that may be meant none is taken without being named.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psl_flower.data.account import LeftOutTally
from psl_flower.data.array_files import ARRAY_ERRORS, IDX_NAME, StoredArray, stored_arrays
from psl_flower.data.columns import FEWEST_PIXELS, Columns, read_labels, side_of_square
from psl_flower.data.images import RawDataset, RawSplit, joined
from psl_flower.data.options import SourceOptions, leave_out_setting
from psl_flower.data.pixels import Decoder, channels_last
from psl_flower.data.splits import choose_splits, split_name, split_word, words_of
from psl_flower.errors import DataError
from psl_flower.text import printable

COPY = "packed copy of the file beside it"
NO_ROLE = "array that is neither images nor labels"
NO_IMAGES = "labels of images that are not there"
NOT_CHOSEN = "images of a split that is neither trained nor tested on"
_IMAGE_WORDS = frozenset({"data", "image", "images", "img", "imgs", "photos", "pictures", "pixels", "x"})
_LABEL_WORDS = frozenset({"class", "classes", "label", "labels", "lbl", "lbls", "target", "targets", "y"})
_UNNAMED = re.compile(r"arr_\d+")
# MNIST calls its test images so.
_TEN_THOUSAND = re.compile(r"t10k", re.IGNORECASE)


class ArrayFolder:
    """The arrays of a folder.

    The options may name the arrays of images and of labels, and the splits.

    Attributes
    ----------
    images, labels : list[StoredArray]
        Those that may be the images and those that may be the labels.
    others : list[StoredArray]
        The rest.
    broken : dict[str, str]
        Files that cannot be read, and why.
    copies : list[str]
        Packed files that lie unpacked beside themselves, too, as torchvision leaves them.
    """

    def __init__(self, root: Path, paths: Iterable[str], options: SourceOptions) -> None:
        self._options, paths = options, list(paths)
        self.broken: dict[str, str] = {}
        self.copies = [path for path in paths if _is_copy(root, path, paths)]
        found: list[StoredArray] = []
        for path in paths:
            if path in self.copies:
                continue
            try:
                found += stored_arrays(root, path)
            except ARRAY_ERRORS as error:
                self.broken[path] = str(error) or type(error).__name__
        self.images = _of_role("images", found, options.image_column)
        self.labels = _of_role("labels", found, options.label_column)
        known = {id(array) for array in (*self.images, *self.labels)}
        self.others = [array for array in found if id(array) not in known]

    def hold_a_dataset(self) -> bool:
        """Check if there are both images and labels among them."""
        return bool(self.images and self.labels)

    def read(self, name: str, left_out: LeftOutTally) -> RawDataset:
        """Return the images and their classes; the rest is added to `left_out`.

        Raises
        ------
        DataError
            If a file is damaged, there are no images or no labels, several arrays may be either, or they do not fit.
        """
        for path, reason in self.broken.items():
            raise DataError(
                f"{name}: {printable(path)}: {reason}; replace it, or leave it out with {leave_out_setting(path)}"
            )
        if not self.images or not self.labels:
            raise DataError(f"{name}: {self._what_lacks()}")
        images, labels = self._by_split(name)
        values = {split: _label_values(name, array, labels.get(split)) for split, array in images.items()}
        counts = {split: sum(value not in (None, -1) for value in found) for split, found in values.items()}
        train, test = choose_splits(name, counts, self._options)
        used = {split: images[split] for split in (*train, *test)}
        told = next((str(labels[split]) for split in used if split in labels), "no array")
        class_names, numbers = read_labels(
            name, told, {split: (Columns({}), values[split]) for split in used}, asked=self._labels_told()
        )
        notes: dict[str, None] = {}
        raw = {split: _raw_split(name, split, array, numbers[split], notes) for split, array in used.items()}
        self._leave_out(images, labels, used, left_out)
        return RawDataset(
            class_names=class_names,
            train=joined([raw[split] for split in train]),
            test=joined([raw[split] for split in test]) if test else None,
            reader=f"arrays, images from {printable(str(images[train[0]]))!r}, classes from {printable(told)!r}",
            left_out=left_out,
            notes=list(notes),
        )

    def _by_split(self, name: str) -> tuple[dict[str, StoredArray], dict[str, StoredArray]]:
        if len(self.images) == len(self.labels) == 1:
            of_images, of_labels = _split_of(self.images[0]), _split_of(self.labels[0])
            named = self._options.image_column and self._options.label_column
            if of_images and of_labels and _meaning(of_images) != _meaning(of_labels) and not named:
                raise DataError(
                    f"{name}: the images {printable(str(self.images[0]))} and the labels "
                    f"{printable(str(self.labels[0]))} are of different splits by their names; add the missing files, "
                    "rename them, or if they belong together name both with image-column and label-column"
                )
            split = of_images or of_labels or "train"
            return {split: self.images[0]}, {split: self.labels[0]}
        images = _one_for_each_split(name, "images", "image-column", self.images)
        labels = _one_for_each_split(name, "labels", "label-column", self.labels)
        if set(images) | set(labels) == {""}:
            return {"train": images[""]}, {"train": labels[""]}
        for what, key, found in (("images", "image-column", images), ("labels", "label-column", labels)):
            if "" in found:
                raise DataError(
                    f"{name}: {printable(str(found['']))} can be {what} and tells no split by its name, unlike others; "
                    f"rename it, leave it out with leave-out, or choose with {key}"
                )
        return images, self._of_splits(name, images, labels)

    def _of_splits(
        self, name: str, images: dict[str, StoredArray], labels: dict[str, StoredArray]
    ) -> dict[str, StoredArray]:
        """Return labels by the splits as the images are called: "valid" is "val" where no other can be meant."""
        found = {split: array for split, array in labels.items() if split in images}
        for split, array in labels.items():
            alike = [other for other in images if other not in found and _meaning(other) == _meaning(split)]
            if split not in images and len(alike) == 1:
                found[alike[0]] = array
            elif split not in images and not (self._options.train_split and self._options.test_split):
                raise DataError(
                    f"{name}: {printable(str(array))} holds labels of split {split!r}, of which there are no images; "
                    f"add these, or leave the labels out, such as with {leave_out_setting(array.path)}"
                )
        return found

    def _labels_told(self) -> bool:
        """Check if the settings or the arrays' own names say that they are labels, rather than ids."""
        return bool(self._options.label_column) or all(
            _LABEL_WORDS & set(words_of(_name_of(array))) for array in self.labels
        )

    def _leave_out(
        self,
        images: dict[str, StoredArray],
        labels: dict[str, StoredArray],
        used: dict[str, StoredArray],
        left_out: LeftOutTally,
    ) -> None:
        for path in self.copies:
            left_out.add(COPY, path)
        for array in self.others:
            left_out.add(NO_ROLE, str(array), ending=array.ending)
        for split, array in images.items():
            if split not in used:
                left_out.add(NOT_CHOSEN, str(array), array.shape[0] if array.shape else 1, ending=array.ending)
        taken = {id(array) for array in labels.values()}
        for array in self.labels:
            if id(array) not in taken:
                left_out.add(NO_IMAGES, str(array), ending=array.ending)

    def _what_lacks(self) -> str:
        what, key, wanted = "images", "image-column", self._options.image_column
        if self.images:
            what, key, wanted = "labels", "label-column", self._options.label_column
        arrays = (*self.images, *self.labels, *self.others)
        by = "name" if any(map(_could_be_labels, self.others)) and what == "labels" else "name or shape"
        shown = ", ".join(printable(f"{array} {array.shape}") for array in arrays[:10]) or "none"
        called = f"called {wanted!r}" if wanted else f"holds {what} by its {by}"
        return f"no array {called}; there are {shown}; name that of the {what} with {key}"


def _is_copy(root: Path, path: str, paths: list[str]) -> bool:
    """Check if a packed file lies unpacked beside itself: gzip notes the size of what it packed."""
    plain = path.removesuffix(".gz")
    if plain == path or plain not in paths:
        return False
    try:
        with (root / path).open("rb") as file:
            file.seek(-4, 2)
            noted = int.from_bytes(file.read(4), "little")
        return noted == (root / plain).stat().st_size % 2**32
    except OSError:
        return False


def _name_of(array: StoredArray) -> str:
    """Return an array's name, else its file's where it is alone in it."""
    if array.name and not _UNNAMED.fullmatch(array.name):
        return array.name
    return _stem(array) if array.alone else ""


def _stem(array: StoredArray) -> str:
    file = PurePosixPath(array.path).name
    stem = IDX_NAME.sub("", file)
    return _TEN_THOUSAND.sub("test", stem if stem != file else PurePosixPath(file).stem)


def _of_role(role: str, arrays: list[StoredArray], wanted: str) -> list[StoredArray]:
    """Return the arrays that are named for a role, by a setting or by their words; if none is, those of its shape."""
    if wanted:
        return [array for array in arrays if wanted in (str(array), array.name, _name_of(array), _bare(array))]
    words = {id(array): set(words_of(_name_of(array))) for array in arrays}
    own, other = (_IMAGE_WORDS, _LABEL_WORDS) if role == "images" else (_LABEL_WORDS, _IMAGE_WORDS)
    named = [array for array in arrays if words[id(array)] & own and not words[id(array)] & other]
    if named:
        return named
    fits = _could_be_images if role == "images" else _could_be_labels_unnamed
    return [array for array in arrays if fits(array) and bool(words[id(array)] & own) >= bool(words[id(array)] & other)]


def _bare(array: StoredArray) -> str:
    """Return an array's name without the word of its split: "x" of "x_train"."""
    name = _name_of(array)
    return "_".join(word for word in words_of(name) if word != split_name(name))


def _could_be_images(array: StoredArray) -> bool:
    return len(array.shape) >= 3 and array.dtype.kind in "biuf"


def _could_be_labels(array: StoredArray) -> bool:
    return _is_list(array) and array.dtype.kind in "biuU"


def _could_be_labels_unnamed(array: StoredArray) -> bool:
    """Check if an array has the shape of labels, and a name that says nothing, or its split alone."""
    return _could_be_labels(array) and not split_word(_name_of(array))[1]


def _is_list(array: StoredArray) -> bool:
    return len(array.shape) == 1 or (len(array.shape) == 2 and array.shape[1] == 1)


def _split_of(array: StoredArray) -> str:
    """Return the split that an array's name tells, or its file's or folders'; empty if none does."""
    folders = reversed(PurePosixPath(array.path).parts[:-1])
    return next(filter(None, map(split_name, (array.name, _stem(array), *folders))), "")


def _meaning(split: str) -> str:
    """Return the split that a name means ("validation" for "val"), else the name itself."""
    return split_word(split)[0] or split


def _one_for_each_split(name: str, what: str, key: str, arrays: list[StoredArray]) -> dict[str, StoredArray]:
    found: dict[str, StoredArray] = {}
    for array in arrays:
        split = _split_of(array)
        other = found.setdefault(split, array)
        if other is not array:
            raise DataError(
                f"{name}: several arrays can be the {what}{f' of split {split!r}' if split else ''} "
                f"({printable(str(other))}, {printable(str(array))}); choose one with {key}, or leave files out with "
                f"leave-out, such as {leave_out_setting(array.path)}"
            )
    return found


def _label_values(name: str, images: StoredArray, labels: StoredArray | None) -> list[Any]:
    """Return the label of each image, or None."""
    count = images.shape[0] if images.shape else 0
    if labels is None:
        return [None] * count
    where = f"{name}: {printable(str(labels))}"
    if not _is_list(labels) or labels.dtype.kind not in "biufU":
        raise DataError(
            f"{where} holds {labels.dtype} of shape {labels.shape}, not one class for each image; save whole numbers "
            f"of shape ({count},), or name another array with label-column"
        )
    if labels.shape[0] != count:
        raise DataError(
            f"{where} holds {labels.shape[0]} labels, and {printable(str(images))} {count} images; replace the wrong "
            "one, or name others with image-column and label-column"
        )
    return list(_loaded(name, labels).reshape(-1).tolist())


def _loaded(name: str, array: StoredArray) -> NDArray[Any]:
    try:
        return array.load()
    except ARRAY_ERRORS as error:
        raise DataError(f"{name}: {printable(str(array))} cannot be read: {error}; replace the file") from error


def _raw_split(
    name: str, split: str, array: StoredArray, labels_N: NDArray[np.int64], notes: dict[str, None]
) -> RawSplit:
    shape = _image_shape(name, array)
    if shape != array.shape[1:]:
        notes[f"flat arrays of {array.shape[1]} numbers were read as images of {shape[0]}x{shape[1]}, row by row"] = (
            None
        )
    values = cache(lambda: _loaded(name, array))

    def images(rows_R: NDArray[np.int64], decoder: Decoder) -> Iterator[NDArray[np.uint8]]:
        for row in rows_R.tolist():
            yield decoder.array(np.asarray(values()[row]).reshape(shape), f"image {row} of split {split!r}")

    return RawSplit(name=split, labels_N=labels_N, images=images)


def _image_shape(name: str, array: StoredArray) -> tuple[int, ...]:
    """Return the shape of each image; that of flat ones is a square."""
    where, axes = f"{name}: {printable(str(array))}", array.shape[1:]
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where} holds {array.dtype}, which are no pixels; save them as numbers")
    if len(axes) == 1:
        side = side_of_square(axes[0]) if axes[0] >= FEWEST_PIXELS and array.dtype.kind in "iu" else 0
        if not side:
            raise DataError(
                f"{where} holds {axes[0]} numbers of type {array.dtype} for each image, which are no square of whole "
                "numbers, so nothing says their height, width and channels; save an array of shape (images, height, "
                "width) or (images, height, width, channels)"
            )
        return side, side
    if len(axes) not in (2, 3) or not math.prod(axes):
        raise DataError(f"{where} has the shape {array.shape}; expected (images, height, width) or with channels after")
    channels_last(np.broadcast_to(np.uint8(0), axes), where)
    return axes
