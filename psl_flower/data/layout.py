"""Reads splits and classes from image folders, and which images have none; ambiguous layouts are refused.

Two readings of the same folders would give other classes, so nothing is guessed: the error names the settings that
decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from psl_flower.data.options import SourceOptions, leave_out_setting
from psl_flower.data.splits import NO_TEST_SPLIT, find_name, named_splits, split_word
from psl_flower.errors import DataError
from psl_flower.text import counted

NO_CLASS = "in no class folder"
NOT_ASKED = "in no split asked for"


@dataclass(slots=True)
class Layout:
    """Images by split and class, paths within the dataset's folder."""

    #: Split -> (path, class) of each image. A split whose images lie in no class folder is listed, empty.
    splits: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)  #: (path, reason) of the other images.
    class_folders: set[str] = field(default_factory=set)  #: Paths of the folders that the classes are called by.


@dataclass(slots=True)
class _Folder:
    name: str
    path: str
    files: list[str] = field(default_factory=list)
    folders: dict[str, _Folder] = field(default_factory=dict)

    def every_file(self) -> Iterator[tuple[str, str]]:
        """Yield (path, path of its folder) of each file, in the order of the listing."""
        for path in self.files:
            yield path, self.path
        for folder in self.folders.values():
            yield from folder.every_file()

    def inner(self) -> _Folder:
        """Return the folder that a chain of folders with nothing else in them leads to."""
        folder = self
        while not folder.files and len(folder.folders) == 1:
            (below,) = folder.folders.values()
            # A last folder is a class, unless it only repeats the name above it.
            if not below.folders and below.name != folder.name:
                break
            folder = below
        return folder


def read_layout(dataset: str, images: Iterable[str], options: SourceOptions) -> Layout | None:
    """Return the images by split and class; None if no folder names a class.

    `images` are paths within the dataset's folder, with "/", in the order of their listing. The options may name the
    splits, and which folders the classes are.

    Raises
    ------
    DataError
        If the folders can be read in two ways, or a split that the options name is not there.
    """
    top = _tree(images)
    stated = {name: _stated(dataset, top, name) for name in named_splits(options)}
    if stated:
        whole = options.test_split == NO_TEST_SPLIT or (options.train_split and options.test_split)
        return _divided(dataset, top, stated, options, others=not whole)
    # A folder that holds nothing but the dataset is passed through, but not one that may be its only split.
    while not top.files and len(top.folders) == 1:
        (below,) = top.folders.values()
        word, rest = split_word(below.name)
        if not below.folders or (word and not rest):
            break
        top = below
    splits = _splits(dataset, top)
    if splits is None:
        return None
    if splits:
        return _divided(dataset, top, splits, options, others=False)
    layout = Layout()
    layout.splits["train"] = _classes(dataset, top, options, layout)
    return layout if layout.splits["train"] else None


def _tree(images: Iterable[str]) -> _Folder:
    top = _Folder("", "")
    for path in images:
        folder = top
        *folders, _ = path.split("/")
        for name in folders:
            below = folder.folders.get(name)
            if below is None:
                below = folder.folders[name] = _Folder(name, f"{folder.path}{name}/")
            folder = below
        folder.files.append(path)
    return top


def _stated(dataset: str, top: _Folder, name: str) -> _Folder:
    """Return the folder of a split that the options name: by its path, from the dataset's folder or its only one."""
    for folder in (top, top.inner()):
        for part in name.strip("/").split("/"):
            found = find_name(part, folder.folders)
            if found is None:
                break
            folder = folder.folders[found]
        else:
            return folder
    raise DataError(
        f"{dataset}: no folder {name!r} with images to take as a split; there are "
        f"{', '.join(top.inner().folders) or 'none'}"
    )


def _splits(dataset: str, top: _Folder) -> dict[str, _Folder] | None:
    """Return the folders that are splits: none of them where they are classes; None if there are no classes."""
    folders = top.folders
    words = {name: split_word(name) for name in folders}
    named = [name for name, (word, _) in words.items() if word]
    plain = [name for name in named if not words[name][1]]
    divided = [name for name in named if folders[name].inner().folders]
    # Other words in the names mean nothing if all splits have the same, such as x_train and x_test.
    alike = len({words[name][1] for name in named}) == 1
    if any(name in plain for name in divided) or (divided and alike and len(named) > 1):
        others = [name for name in folders if name not in named]
        if others:
            split = min(divided, key=lambda name: words[name][0] != "train")
            raise DataError(
                f"{dataset}: {split!r} looks like a split, with classes in it, and {others[0]!r} like a class; name "
                f"both train-split and test-split (such as train-split={split} test-split={NO_TEST_SPLIT}), or leave "
                f"folders out with {leave_out_setting(others[0])}"
            )
        return {name: folders[name] for name in named}
    flat = named if alike else plain
    if flat and len(flat) == len(folders):
        return None
    if len(flat) > 1:
        raise DataError(
            f"{dataset}: {' and '.join(map(repr, flat))} look like splits, but their images lie in no class folders, "
            "so they may be classes; rename the folders, or leave some out with leave-out"
        )
    return {}


def _divided(dataset: str, top: _Folder, splits: dict[str, _Folder], options: SourceOptions, *, others: bool) -> Layout:
    """Return the layout of these splits; with `others`, also that of sibling folders that are named like splits."""
    if others:
        siblings = top.folders if any(name in top.folders for name in splits) else top.inner().folders
        splits = {name: folder for name, folder in siblings.items() if split_word(name)[0]} | splits
    paths = {name: folder.path for name, folder in splits.items()}
    for name, path in paths.items():
        within = [other for other in paths if other != name and path.startswith(paths[other])]
        if within:
            raise DataError(f"{dataset}: split {name!r} lies in split {within[0]!r}; an image belongs to one of them")
    layout = Layout()
    for name, folder in splits.items():
        layout.splits[name] = _classes(dataset, folder, options, layout)
    for path, place in top.every_file():
        if path.startswith(tuple(paths.values())):
            continue
        if others and place:
            raise DataError(
                f"{dataset}: the images in {place} would be in no split; name both train-split and test-split, or pass "
                f"the folder by with {leave_out_setting(place.rstrip('/'))}"
            )
        layout.left_out.append((path, NOT_ASKED if place else NO_CLASS))
    return layout


def _classes(dataset: str, split: _Folder, options: SourceOptions, layout: Layout) -> list[tuple[str, str]]:
    """Return (path, class) of a split's images; those in no class folder go to the layout's left out."""
    split = split.inner()
    layout.left_out += [(path, NO_CLASS) for path in split.files]
    found = []
    for folder in split.folders.values():
        files = list(folder.every_file())
        places = sorted({place for _, place in files})
        if len(places) > 1 and not options.class_folder:
            deepest = max(places, key=len)
            raise DataError(
                f"{dataset}: {deepest} lies in the folder {folder.path}, which holds "
                f"{counted(len(places), 'folder')} with images: is its class {folder.name!r} or "
                f"{deepest.removeprefix(split.path).rstrip('/')!r}? Say so with class-folder=top or class-folder=leaf"
            )
        if options.class_folder == "leaf":
            layout.class_folders |= {place.rstrip("/") for place in places}
            found += [(path, place.removeprefix(split.path).rstrip("/")) for path, place in files]
        else:
            layout.class_folders.add(folder.path.rstrip("/"))
            found += [(path, folder.name) for path, _ in files]
    return found
