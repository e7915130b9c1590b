"""The account of a reading: the images of a dataset taken, by split and class, and those left out, by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath

import msgspec

from psl_flower.errors import StoreError, StoreNotFound
from psl_flower.system.records import read_record, write_record
from psl_flower.text import counted, printable

FILE = "account.json"
SEALED_BEFORE = "sealed before"
_CLASSES_SHOWN = 10
_LEFT_OUT_SHOWN = 12


class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """Things found and not taken, of one kind."""

    reason: str  #: Why, in a few words.
    #: The end of their names, such as ".csv", in small letters; empty for names without one, and for rows.
    ending: str = ""
    count: int  #: How many, 1 or more.
    example: str  #: The first of them: a path within the dataset, or a row.


class SplitAccount(msgspec.Struct, frozen=True, kw_only=True):
    """The images taken for "train" or for "test"."""

    name: str  #: "train" or "test": what they are for.
    source: str  #: Place of the images in the dataset: its own split, folder or table, or a share of one.
    classes: dict[str, int]  #: Images of each class, in the order of the labels; 0 for a class without one.

    @property
    def count(self) -> int:
        """All of its images."""
        return sum(self.classes.values())


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """Record of what was read of a dataset."""

    dataset: str  #: Its name, as the user gave it.
    reader: str  #: Way of reading it, such as "images by class".
    splits: tuple[SplitAccount, ...]  #: The images taken.
    left_out: tuple[LeftOut, ...] = ()  #: Items found but not taken, the most frequent first.
    #: Further facts, one sentence each: how pixels were mapped, which metadata were ignored.
    notes: tuple[str, ...] = ()
    #: The pixel values that became black and white, where the images' format did not decide it.
    pixel_range: tuple[float, float] | None = None
    background: str = "white"  #: Colour behind transparent images.
    #: The (height, width) that all images were brought to, where one was stated.
    image_size: tuple[int, int] | None = None

    def lines(self) -> Iterator[str]:
        """Yield the account for people, some lines in all."""
        yield f"{printable(self.dataset)}: read as {self.reader}"
        for split in self.splits:
            yield f"  {split.name}, from {printable(split.source)}: {counted(split.count, 'image')}{_classes(split)}"
        yield from (f"  {line}" for line in _left_out_lines(self.left_out))
        yield from (f"  note: {printable(note)}" for note in self.notes)

    def without(self, known: Mapping[tuple[str, int], int]) -> Account:
        """Return the account of the new images alone, given the number sealed before by split and label."""
        left_out, splits = LeftOutTally(self.left_out), []
        for split in self.splits:
            counts = {k: known.get((split.name, k), 0) for k in range(len(split.classes))}
            classes = {name: count - counts[k] for k, (name, count) in enumerate(split.classes.items())}
            splits.append(msgspec.structs.replace(split, classes=classes))
            left_out.add(SEALED_BEFORE, f"images of {split.source}", sum(counts.values()), ending="")
        return msgspec.structs.replace(self, splits=tuple(splits), left_out=left_out.entries())

    def save(self, path: Path) -> None:
        """Write the account as JSON, for its owner only: it reveals file names and class sizes.

        Raises
        ------
        StoreError
            If the disk refuses.
        """
        write_record(path, self, StoreError, mode=0o600, parents=True)

    @classmethod
    def load(cls, path: Path) -> Account | None:
        """Read an account; None in sets older than accounts.

        Raises
        ------
        StoreError
            If it cannot be read or is damaged.
        """
        try:
            return read_record(path, cls)
        except StoreNotFound:
            return None


class LeftOutTally:
    """Counts things left out, by reason and ending, and keeps the first example of each."""

    def __init__(self, entries: Iterable[LeftOut] = ()) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._examples: dict[tuple[str, str], str] = {}
        for entry in entries:
            self.add(entry.reason, entry.example, entry.count, ending=entry.ending)

    def add(self, reason: str, example: str | PurePath, count: int = 1, *, ending: str | None = None) -> None:
        """Note things that are left out; their ending is that of the example unless it is given."""
        shown = printable(example)
        kind = (reason, PurePath(shown).suffix.lower() if ending is None else ending)
        if count:
            self._counts[kind] += count
            self._examples.setdefault(kind, shown)

    def entries(self) -> tuple[LeftOut, ...]:
        """Return the notes as sentences, the most frequent first."""
        return tuple(
            LeftOut(reason=reason, ending=ending, count=count, example=self._examples[reason, ending])
            for (reason, ending), count in self._counts.most_common()
        )

    def lines(self) -> Iterator[str]:
        """Yield what was noted, for people."""
        yield from _left_out_lines(self.entries())


class Notes:
    """Notes shared by many images: each with the number of images and the first of them."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[set[int], str]] = {}

    def add(self, text: str, where: str) -> None:
        """Note something of one image, which counts once however often it is decoded."""
        # Of names as long as paths a number each: there may be millions.
        self._found.setdefault(text, (set(), where))[0].add(hash(where))

    def sentences(self) -> tuple[str, ...]:
        """Return the notes for an account."""
        return tuple(
            f"{counted(len(images), 'image')}, such as {printable(first)}: {text}"
            for text, (images, first) in self._found.items()
        )


def account_file(generation: int) -> str:
    """Return the name of an account's file beside the manifest of an owner's dataset: one for each generation."""
    return FILE if generation == 1 else f"account-{generation}.json"


def class_counts(names: Iterable[str], counts: Mapping[int, int]) -> dict[str, int]:
    """Return the number of images of each class by its name, from those by label."""
    return {name: int(counts.get(k, 0)) for k, name in enumerate(names)}


def _classes(split: SplitAccount) -> str:
    present = {name: count for name, count in split.classes.items() if count}
    if not present:
        return ""
    if len(present) <= _CLASSES_SHOWN:
        return f" ({', '.join(f'{printable(name)}: {count}' for name, count in present.items())})"
    return f" ({counted(len(present), 'class')} of {min(present.values())} to {max(present.values())})"


def _left_out_lines(left_out: tuple[LeftOut, ...]) -> Iterator[str]:
    for entry in left_out[:_LEFT_OUT_SHOWN]:
        what = f"{entry.count} {entry.ending}" if entry.ending else str(entry.count)
        yield f"left out: {printable(what)} ({entry.reason}), such as {printable(entry.example)}"
    if rest := left_out[_LEFT_OUT_SHOWN:]:
        yield f"left out: {sum(entry.count for entry in rest)} more, of {counted(len(rest), 'other kind')}"
