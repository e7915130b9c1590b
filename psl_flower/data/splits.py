"""Chooses the splits of a dataset to train and to test on, by their names or by the settings."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from psl_flower.data.options import SourceOptions
from psl_flower.errors import DataError
from psl_flower.text import counted

NO_TEST_SPLIT = "none"
_MEANINGS = {
    "train": "train", "training": "train",
    "test": "test", "testing": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "eval": "validation", "evaluation": "validation",
}  # fmt: skip


def split_word(name: str) -> tuple[str, str]:
    """Return the split in a name, "train", "test" or "validation", and the name's other words.

    "Train" and "train2017" give ("train", ""), "x_train" gives ("train", "x"); the first is empty if no word of the
    name is that of a split, or several are.
    """
    words = words_of(name)
    meant = [_MEANINGS[word] for word in words if word in _MEANINGS]
    return (meant[0] if len(meant) == 1 else ""), " ".join(word for word in words if word not in _MEANINGS)


def words_of(name: str) -> list[str]:
    """Return the words of a name in small letters: "x" and "train" of "x_train", of "XTrain" and of "x-train2"."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def split_name(name: str) -> str:
    """Return the word of a name that is a split's, such as "val" of "x_val"; empty without one, or with several."""
    return next((word for word in words_of(name) if word in _MEANINGS), "") if split_word(name)[0] else ""


def choose_splits(
    dataset: str, labelled: Mapping[str, int], options: SourceOptions
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the splits to train on and to test on (none of these: divide the training images).

    `labelled` is how many images of each split have a label; the options may name the splits.

    Raises
    ------
    DataError
        If there is no split of that name, several can be meant, or images with labels are in none of those chosen
        while the options do not name both.
    """
    names = tuple(labelled)
    train = _named(dataset, "train-split", options.train_split, names)
    test = () if options.test_split == NO_TEST_SPLIT else _named(dataset, "test-split", options.test_split, names)
    if not train:
        train = _meant(dataset, "train", [name for name in names if name not in test]) or names[: len(names) == 1]
    if not train:
        found = ", ".join(sorted(names)) or "none"
        raise DataError(
            f'{dataset}: no split is called "train"; the dataset has {found}; name one with train-split, such as '
            f"train-split={sorted(names)[0] if names else 'train'}"
        )
    rest = [name for name in names if name not in train]
    if not test and options.test_split != NO_TEST_SPLIT:
        test = _meant(dataset, "test", rest) or _meant(dataset, "validation", rest)
    both = [name for name in train if name in test]
    if both:
        raise DataError(f"{dataset}: split {both[0]!r} cannot be trained and tested on; name another test-split")
    lost = [name for name in rest if name not in test and labelled[name]]
    if lost and not (options.train_split and options.test_split):
        raise DataError(
            f"{dataset}: {counted(labelled[lost[0]], 'labelled image')} of split {lost[0]!r} would be left out: add "
            f"them with train-split={'+'.join((*train, lost[0]))}, or leave them out with "
            f"train-split={'+'.join(train)} test-split={'+'.join(test) or NO_TEST_SPLIT}"
        )
    return train, test


def named_splits(options: SourceOptions) -> list[str]:
    """Return the names of splits that the options state."""
    stated = (options.train_split, "" if options.test_split == NO_TEST_SPLIT else options.test_split)
    return [name.strip() for text in stated for name in text.split("+") if name.strip()]


def find_name(wanted: str, names: Iterable[str]) -> str | None:
    """Return a name as spelled among others: exactly, or the only match apart from capitals; None without a match."""
    names = list(names)
    if wanted in names:
        return wanted
    alike = [name for name in names if name.casefold() == wanted.casefold()]
    return alike[0] if len(alike) == 1 else None


def _named(dataset: str, key: str, text: str, names: Collection[str]) -> tuple[str, ...]:
    found = []
    for wanted in filter(None, (part.strip() for part in text.split("+"))):
        name = find_name(wanted, names)
        if name is None:
            raise DataError(f"{dataset}: {key}: no split {wanted!r}; there are {', '.join(sorted(names)) or 'none'}")
        if name in found:
            raise DataError(f"{dataset}: {key}: {text} names split {name!r} twice; name it once")
        found.append(name)
    return tuple(found)


def _meant(dataset: str, meaning: str, names: Collection[str]) -> tuple[str, ...]:
    """Return the only name of a split: its word exactly, else its word alone, else with other words; else empty."""
    if meaning in names:
        return (meaning,)
    words = {name: split_word(name) for name in names}
    for others in (False, True):
        found = [name for name, (word, rest) in words.items() if word == meaning and bool(rest) == others]
        if len(found) > 1:
            key = "train-split" if meaning == "train" else "test-split"
            raise DataError(
                f"{dataset}: several splits can be the {meaning} split ({', '.join(found)}); choose with {key}, such "
                f"as {key}={'+'.join(found)}"
            )
        if found:
            return (found[0],)
    return ()
