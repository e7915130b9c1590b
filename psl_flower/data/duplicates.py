"""Images that a dataset holds twice: under two classes, or both to train and to test on.

They are recognised by hashes of their files, which are computed as the images are decoded, at almost no cost.

Shape suffixes: N images of a split, M those of both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from psl_flower.text import counted, printable


class Duplicates:
    """Remembers what the images of two splits, of these counts, hold, and finds those that hold the same."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self._content = {split: np.zeros(count, np.int64) for split, count in counts.items()}

    def add(self, split: str, place: int, content: int) -> None:
        """Note the hash of an image's file, 64 bits; 0 if it is not known."""
        self._content[split][place] = content

    def sentences(
        self,
        labels: Mapping[str, NDArray[np.int64]],
        class_names: Sequence[str],
        name_of: Callable[[str, int], str],
    ) -> Iterator[str]:
        """Yield the account's sentences on duplicates among the images noted so far.

        `labels` has by split the class of each image (N,); `name_of` names an image by its split and place there.
        """
        splits = list(self._content)
        content_M = np.concatenate([self._content[split] for split in splits])
        label_M = np.concatenate([labels[split] for split in splits])
        split_M = np.repeat(np.arange(len(splits)), [len(self._content[split]) for split in splits])
        starts = np.cumsum([0, *(len(self._content[split]) for split in splits)])

        def shown(k: int) -> str:
            split = int(split_M[k])
            place = printable(name_of(splits[split], int(k - starts[split])))
            return f"{place} ({printable(class_names[label_M[k]])})"

        groups = list(_same(content_M))
        two_classes = [group for group in groups if len(set(label_M[group].tolist())) > 1]
        if two_classes:
            pair = _first_two(two_classes[0], label_M)
            count = sum(map(len, two_classes))
            yield (
                f"{counted(count, 'image')} of the same content as an image of another class, such as "
                f"{' and '.join(map(shown, pair))}"
            )
        in_both = [group for group in groups if len(set(split_M[group].tolist())) > 1]
        if in_both:
            pair = _first_two(in_both[0], split_M)
            count = sum(int((split_M[group] == len(splits) - 1).sum()) for group in in_both)
            yield (
                f"{counted(count, 'image')} to test on of the same content as an image to train on, such as "
                f"{' and '.join(map(shown, pair))}"
            )


def _same(content_M: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield the numbers of those images that share a content, for each such content."""
    known = np.flatnonzero(content_M)
    _, of_known, counts = np.unique(content_M[known], return_inverse=True, return_counts=True)
    repeated = known[counts[of_known] > 1]
    order = repeated[np.argsort(content_M[repeated], kind="stable")]
    ends = np.flatnonzero(np.diff(content_M[order])) + 1
    found = [group for group in np.split(order, ends) if len(group)]
    yield from sorted(found, key=lambda group: int(group[0]))


def _first_two(group: NDArray[np.int64], value_M: NDArray[np.int64]) -> tuple[int, int]:
    """Return the first of a group and the first that differs from it in a value."""
    first = int(group[0])
    return first, int(group[value_M[group] != value_M[first]][0])
