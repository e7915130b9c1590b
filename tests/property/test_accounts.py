"""Odd folders and tables: every image is taken with its own class or named in the account, or the error says why not."""

import csv
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from psl_flower.data.arrays import NO_ROLE, NOT_CHOSEN
from psl_flower.data.options import SourceOptions
from psl_flower.data.sources import ImageSource, open_dataset
from psl_flower.errors import PslError

FOLDERS = [
    "train", "Train", "test", "Test", "val", "validation", "dev", "x_train", "x_test", "train2017", "test tube",
    "cat", "dog", "Cat", "car", "images", "data", "notes", "@eaDir", ".hidden", "__MACOSX", "extra",
]  # fmt: skip
KINDS = ["png"] * 8 + [
    "jpeg", "bare", "PNG", "txt", "csv", "json", "zip", "npy", "npz", "pipe", "dead link", "svg", "empty",
]  # fmt: skip
PLACES = st.lists(st.sampled_from(FOLDERS), max_size=4)
LAYOUTS = st.sampled_from([("cat", "dog"), ("cat", "dog", "car"), ("train/cat", "train/dog", "test/cat", "test/dog")])
OPTIONS = st.fixed_dictionaries({
    "class_folder": st.sampled_from(["", "top", "leaf"]),
    "read_as": st.sampled_from(["", "", "folders", "tables"]),
    "train_split": st.sampled_from(["", "", "", "", "", "train", "Train"]),
    "test_split": st.sampled_from(["", "", "", "none", "test", "val"]),
    "leave_out": st.sampled_from(["", "", "", "", "notes", "*.csv"]),
    "test_fraction": st.just(0.3),
})  # fmt: skip


def write(place: Path, kind: str, number: int) -> None:
    """Write a file of a kind; an image has the colour of its number."""
    place.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (4, 4), (number % 256, number // 256, 7))
    if kind in ("png", "PNG", "bare"):
        image.save(place, "PNG")
    elif kind == "jpeg":
        Image.new("RGB", (4, 4), (number % 256,) * 3).save(place, "JPEG")
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "dead link":
        place.symlink_to("nowhere")
    elif kind == "npy":
        np.save(place, np.arange(9))
    elif kind == "npz":
        np.savez(place, ids=np.arange(9), faces=np.full((9, 4, 4), number))
    elif kind == "csv":
        place.write_text(f"a,label\n{number},x\n")
    elif kind == "json":
        place.write_text(json.dumps({"a": number}))
    else:
        place.write_text("text" if kind != "empty" else "")


NAMES = {"png": "{}.png", "PNG": "{}.PNG", "jpeg": "{}.jfif", "bare": "{}", "txt": "{}.txt", "csv": "{}.csv",
         "json": "{}.json", "zip": "{}.zip", "npy": "{}.npy", "npz": "{}.npz", "pipe": "{}.png",
         "dead link": "{}.png", "svg": "{}.svg", "empty": "{}.dat"}  # fmt: skip


# What a refusal of these draws may be about; another one is a fault, also where it is in one line.
RIGHT = re.compile(
    # Of folders.
    r"leave-out=\S+ matches nothing in the folder|is called as a split and holds|lies beside class folders and holds"
    r"|is a link to nothing|looks? like (a )?splits?|no split is called|several splits can be|would be left out"
    r"|would be in no split|-split: no split |no folder '\w+' with images|in no class folders?|trained and tested on"
    r"|are all of one class|class-folder=top or class-folder=leaf|no test image of it could be recognised"
    r"|holds neither images in a folder|pictures? in class folders cannot be decoded|may hold images|lies in split"
    r"|arrays with images and labels|choose with read-as|is an archive|leave image-column and label-column empty"
    # Of tables and arrays.
    r"|no label column|columns? can be|no column holds|names no existing image|several arrays can be|no array "
    r"|of different splits by their names|tells no split|which are no square|holds \d+ labels, and|add these, or leave"
    r"|an array of shape|column 'split'|split column|too few images|have no label"
)
SEEN: Counter[str] = Counter()


def opened(root: Path, **options: Any) -> ImageSource | None:
    """Open a dataset; None where it is refused, in one line that names it and says what is wrong."""
    try:
        source = open_dataset(str(root), SourceOptions(**options))
    except PslError as error:
        refusal = str(error)
    else:
        event("read")
        SEEN["read"] += 1
        return source
    event("refused")
    SEEN["refused"] += 1
    assert str(root) in refusal and len(refusal) < 700
    assert RIGHT.search(refusal), refusal
    return None


def reading_at_least(share: float) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Ask of a property test that this share of what it draws is read, so that no refusal of all passes."""

    def decorate(test: Callable[[], None]) -> Callable[[], None]:
        def asked() -> None:
            SEEN.clear()
            test()
            assert SEEN["read"] >= share * SEEN.total() > 0, SEEN

        asked.__doc__ = test.__doc__
        return asked

    return decorate


def taken(source: ImageSource) -> list[tuple[int, str]]:
    """Return the number, by its colour, and the class of each image."""
    pairs = []
    for split in ("train", "test"):
        for image, label in source.samples(split):
            number = int(image[0, 0, 0]) + 256 * int(image[0, 0, 1])
            pairs.append((number if image[0, 0, 2] == 7 else -1, source.class_names[label]))
    return pairs


@reading_at_least(0.08)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    layout=LAYOUTS, odd=st.lists(st.tuples(PLACES, st.sampled_from(KINDS)), max_size=4), link=PLACES, options=OPTIONS
)
@example(("cat", "dog"), [(["cat", "@eaDir"], "png"), (["cat"], "bare")], [], {"test_fraction": 0.3})
def test_every_file_of_a_folder_is_taken_or_named(layout, odd, link, options) -> None:
    with tempfile.TemporaryDirectory() as made:
        root = Path(made) / "set"
        files: dict[int, str] = {}
        for place in layout:
            for _ in range(4):
                files[len(files)] = f"{place}/{len(files)}.png"
        for folders, kind in odd:
            files[len(files)] = "/".join([*folders, NAMES[kind].format(len(files))])
        for number, path in files.items():
            write(root / path, (["png"] * (4 * len(layout)) + [kind for _, kind in odd])[number], number)
        if link and not (root / "/".join(link)).exists():
            # A linked folder is one more.
            place = root / "/".join(link)
            place.parent.mkdir(parents=True, exist_ok=True)
            other = Path(made) / "other"
            for number in range(1000, 1002):
                write(other / f"{number}.png", "png", number)
                files[number] = "/".join([*link, f"{number}.png"])
            place.symlink_to(other)
        source = opened(root, **options)
        if source is None:
            return
        pairs, account = taken(source), source.account()
        for number, class_name in pairs:
            if number >= 0:
                parts = files[number].split("/")[:-1]
                assert class_name in parts or f"/{class_name}/" in f"/{files[number]}"
        # The linked folder may be hidden, or left out by its name: then the link is the one thing that is.
        whole = len(files)
        left = sum(entry.count for entry in account.left_out)
        linked = sum(number >= 1000 for number in files)
        assert len(pairs) + left in ({whole} if not linked else {whole, whole - linked + 1})
        assert sum(split.count for split in account.splits) == len(pairs)
        told = Counter({name: sum(split.classes[name] for split in account.splits) for name in source.class_names})
        assert Counter(name for _, name in pairs) == +told


OTHER_COLUMNS = st.lists(
    st.sampled_from(["class", "kind", "id", "image", "caption", "split"]), max_size=3, unique=True
)  # fmt: skip
COLUMNS = st.tuples(st.sampled_from([["file", "label"], ["label", "image"], ["file", "kind"]]), OTHER_COLUMNS).map(
    lambda both: list(dict.fromkeys([*both[0], *both[1]]))
)


@reading_at_least(0.35)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    columns=COLUMNS,
    count=st.integers(4, 10),
    missing=st.sampled_from([0, 0, 0, 1]),
    extra=st.integers(0, 2),
    ending=st.sampled_from(["csv", "tsv", "jsonl", "json"]),
    asked=st.sampled_from(["", "", "", "label", "kind"]),
    folder=st.sampled_from(["images", "", "a/b"]),
    seed=st.integers(0, 99),
)
def test_every_image_that_a_table_lists_has_its_own_label(
    columns, count, missing, extra, ending, asked, folder, seed
) -> None:
    random = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as made:
        root = Path(made) / "set"
        rows = []
        for number in range(count):
            path = os.path.join(folder, f"{number}.png")
            if number >= missing:
                write(root / path, "png", number)
            cells: dict[str, object] = {
                "label": "ab"[number % 2], "class": int(random.integers(3)), "kind": bool(number % 3), "id": number,
                "file": path, "image": path, "caption": f"no. {number}", "split": ["train", "test"][number % 4 == 3],
            }  # fmt: skip
            rows.append({column: cells[column] for column in columns})
        for number in range(extra):
            write(root / folder / f"extra{number}.png", "png", 500 + number)
        root.mkdir(exist_ok=True)
        table = root / f"table.{ending}"
        with table.open("w", newline="") as file:
            if ending in ("csv", "tsv"):
                writer = csv.DictWriter(file, columns, delimiter="\t" if ending == "tsv" else ",")
                writer.writeheader()
                writer.writerows(rows)
            else:
                file.write(json.dumps(rows) if ending == "json" else "\n".join(map(json.dumps, rows)))
        source = opened(root, label_column=asked, test_fraction=0.4)
        if source is None:
            return
        assert not missing, "a row without an image is refused"
        pairs, account = taken(source), source.account()
        label = next(c for c in (asked, "label", "class", "kind", "split", "caption") if c in columns)
        assert f"classes from '{label}'" in account.reader
        for number, name in pairs:
            assert name == str(rows[number][label])
        assert sorted(number for number, _ in pairs) == list(range(count))
        assert sum(entry.count for entry in account.left_out if entry.ending == ".png") == extra


ARRAY_SPLITS = st.sampled_from([
    ("train", "test"), ("train",), ("Train", "val"), ("train", "test", "val"), ("x", "test"), ("holdout",),
])  # fmt: skip
ARRAY_NAMES = st.sampled_from([
    "{s}_images {s}_labels", "x_{s} y_{s}", "{s}X {s}Y", "{s}-data {s}-targets", "{s}_imgs {s}_lbls", "{s}_a {s}_b",
    "images_{s} labels_{s}", "{s}_x_labels {s}_y", "a b",
])  # fmt: skip


@reading_at_least(0.08)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    names=ARRAY_NAMES,
    splits=ARRAY_SPLITS,
    kind=st.sampled_from(["npz", "npz for each split", "npy"]),
    shape=st.sampled_from([(8, 8), (8, 8), (8, 8), (64,), (8, 8, 3), (3, 8, 8), (63,), (8, 8, 1)]),
    off=st.sampled_from([0] * 9 + [1]),
    extra=st.sampled_from(["", "", "ids", "images", "weights", "masks"]),
    test_split=st.sampled_from(["", "", "", "none"]),
    train_split=st.sampled_from(["", "", "", "", "x", "train+val"]),
)
def test_every_image_of_an_array_has_its_own_label(
    names, splits, kind, shape, off, extra, test_split, train_split
) -> None:
    with tempfile.TemporaryDirectory() as made:
        root, number, arrays = Path(made), 0, dict[str, dict[str, Any]]()
        for split in splits:
            numbers = np.arange(number, number + 10, dtype=np.uint8)
            number += 10
            image, label = names.format(s=split).split()
            file = "all" if kind == "npz" else split
            pixels = np.broadcast_to(numbers.reshape(-1, *[1] * len(shape)) + 100, (10, *shape))
            arrays.setdefault(file, {}).update({image: pixels, label: numbers[off:] % 2})
        if extra and not (extra == "images" and names.endswith(("b", "labels {s}_y"))):
            arrays[file][extra] = np.arange(10) if extra == "ids" else np.ones((10, *shape), np.uint8)
        for file, held in arrays.items():
            if kind == "npy":
                for name, values in held.items():
                    np.save(root / f"{name}.npy", values)
            else:
                np.savez(root / f"{file}.npz", **held)
        source = opened(root, test_fraction=0.3, test_split=test_split, train_split=train_split)
        if source is None:
            return
        assert not off, "other counts of images and labels are refused"
        found = [
            (int(image[0, 0, 0]) - 100, source.class_names[label])
            for split in ("train", "test")
            for image, label in source.samples(split)
        ]
        assert all(name == str(each % 2) for each, name in found)
        assert len({each for each, _ in found}) == len(found)
        left = {entry.reason: entry.count for entry in source.account().left_out}
        written = {
            name if kind == "npy" else (file, name)
            for file, held in arrays.items()
            for name, values in held.items()
            if values.shape[1:] == shape
        }
        assert (len(found) + left.get(NOT_CHOSEN, 0)) // 10 + left.get(NO_ROLE, 0) >= len(written)


def test_the_lists_are_not_empty() -> None:
    assert FOLDERS and KINDS and set(KINDS) == set(NAMES)
    with pytest.raises(PslError):
        open_dataset(tempfile.mkdtemp())
