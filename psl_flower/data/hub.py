"""Datasets read by the `datasets` library: a hub name, or a local folder in the hub's layout.

The library is imported when a dataset is opened, since importing it takes seconds.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psl_flower.data.images import RawDataset, RawSplit, choose_splits, decode_image
from psl_flower.errors import CorruptImage, DataError, DatasetNotFound
from psl_flower.text import expanded

_LABEL_NAMES = ("label", "fine_label", "labels", "class", "target", "category")
_PLAIN_LABEL_TYPES = frozenset({
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "string", "large_string",
})  # fmt: skip
_PROBE_TIMEOUT_S = 5.0
_ROWS_PER_READ = 64


def load_tables(
    name: str, folder: Path | None, *, image_column: str, label_column: str
) -> tuple[RawDataset, dict[str, str]]:
    """Open a dataset with the `datasets` library.

    Parameters
    ----------
    name : str
        As the user gave it; a hub name if `folder` is None.
    folder : Path, optional
        The local folder.
    image_column, label_column : str
        Columns to take; empty: found by their types.

    Returns
    -------
    tuple
        The dataset, and the library's fingerprint of each split used.

    Raises
    ------
    DatasetNotFound
        If the hub does not know the name or cannot be reached (within seconds) and no copy is cached.
    DataError
        If it cannot be read, or has no usable splits, image column or label column.
    """
    tables = _load(name, folder)
    train, test = choose_splits(name, tables)
    used = {split: tables[split] for split in (train, test) if split}
    image = _image_column(name, used[train].features, image_column)
    label = _label_column(name, used[train].features, label_column, image)
    for split, table in used.items():
        missing = [column for column in (image, label) if column not in table.column_names]
        if missing:
            raise DataError(
                f"{name}: split {split!r} has no column {missing[0]!r}; it has {', '.join(table.column_names)}"
            )
    class_names, labels = _labels(name, used, label)
    raw = {split: _raw_split(split, table, image, labels[split]) for split, table in used.items()}
    fingerprints = {split: str(table._fingerprint) for split, table in used.items()}
    return RawDataset(class_names=class_names, train=raw[train], test=raw[test] if test else None), fingerprints


def _load(name: str, folder: Path | None) -> Mapping[str, Any]:
    import datasets
    import httpx
    import huggingface_hub
    from huggingface_hub.utils.tqdm import disable_progress_bars

    datasets.disable_progress_bars()
    disable_progress_bars()
    reachable = folder is not None or _hub_answers(huggingface_hub.constants.ENDPOINT)
    try:
        with _offline(not reachable):
            tables: Mapping[str, Any] = datasets.load_dataset(str(folder or name))
    except (
        datasets.exceptions.DatasetsError,
        httpx.HTTPError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        if folder is not None:
            raise DataError(
                f"{name}: {folder} holds neither images in a folder for each class nor files that the "
                "datasets "
                f"library can read ({error})"
            ) from error
        tried = f"{name!r}: no such folder ({expanded(name, 'dataset').absolute()})"
        if not reachable:
            raise DatasetNotFound(
                f"{tried}, and the hub ({huggingface_hub.constants.ENDPOINT}) could not be reached; give a "
                "local "
                'folder, connect to the network, or use dataset="digits", which needs none'
            ) from error
        if isinstance(error, datasets.exceptions.DatasetNotFoundError):
            raise DatasetNotFound(f"{tried}, and the hub has no such public dataset; check the spelling") from error
        raise DataError(f"{name!r}: the hub's dataset cannot be read: {error}") from error
    return tables


def _hub_answers(endpoint: str) -> bool:
    """Say within seconds whether the hub can be reached; the library itself would retry for half a minute."""
    import httpx
    import huggingface_hub

    if huggingface_hub.constants.is_offline_mode():
        return False
    answered = threading.Event()

    def probe() -> None:
        try:
            httpx.head(endpoint, timeout=_PROBE_TIMEOUT_S)
        except (httpx.HTTPError, httpx.InvalidURL, OSError):
            return
        answered.set()

    # In a thread, because looking up a host name has no time limit of its own.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(_PROBE_TIMEOUT_S)
    return answered.is_set()


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """Let the library use its cache only, at once, while this lasts."""
    import datasets
    import huggingface_hub

    before = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    if wanted:
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = before


def _image_column(name: str, features: Mapping[str, Any], wanted: str) -> str:
    import datasets

    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if wanted:
        if wanted not in images:
            raise DataError(f"{name}: no image column {wanted!r}; image columns: {', '.join(images) or 'none'}")
        return wanted
    if not images:
        raise DataError(f"{name}: no column holds images; the columns are {', '.join(features)}")
    return images[0]


def _label_column(name: str, features: Mapping[str, Any], wanted: str, image: str) -> str:
    import datasets

    classes = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    plain = [c for c, f in features.items() if isinstance(f, datasets.Value) and f.dtype in _PLAIN_LABEL_TYPES]
    if wanted:
        if wanted not in classes + plain:
            raise DataError(
                f"{name}: no label column {wanted!r}; columns that can be labels: "
                f"{', '.join(classes + plain) or 'none'}"
            )
        return wanted
    for candidates in (classes, plain):
        preferred = [column for column in _LABEL_NAMES if column in candidates]
        if preferred:
            return preferred[0]
        if candidates and (candidates is classes or len(candidates) == 1):
            return candidates[0]
    if plain:
        raise DataError(f"{name}: several columns can be the label ({', '.join(plain)}); choose one with label-column")
    raise DataError(f"{name}: no column holds labels; besides the images ({image}) there must be a label for each")


def _labels(name: str, tables: Mapping[str, Any], column: str) -> tuple[tuple[str, ...], dict[str, NDArray[np.int64]]]:
    """Return the class names, and each split's labels (N,) with -1 for none."""
    import datasets

    feature = next(iter(tables.values())).features[column]
    values = {split: table.data.column(column).to_pylist() for split, table in tables.items()}
    if isinstance(feature, datasets.ClassLabel):
        class_names = tuple(feature.names)
        known: dict[Any, int] = {k: k for k in range(len(class_names))}
        known[-1] = -1
    else:
        seen = {value for column_values in values.values() for value in column_values}
        # In a plain column of whole numbers -1 is the usual mark of a missing label, too.
        unique = sorted(seen - {None, -1})
        class_names = tuple(str(value) for value in unique)
        known = {value: k for k, value in enumerate(unique)}
        known[-1] = -1
    known[None] = -1
    try:
        labels = {
            split: np.array([known[v] for v in column_values], np.int64) for split, column_values in values.items()
        }
    except KeyError as error:
        raise DataError(f"{name}: column {column!r} holds a label outside its {len(class_names)} classes") from error
    return class_names, labels


def _raw_split(name: str, table: Any, column: str, labels_N: NDArray[np.int64]) -> RawSplit:
    import datasets

    encoded = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))

    def images(rows_R: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        for first in range(0, len(rows_R), _ROWS_PER_READ):
            rows = rows_R[first : first + _ROWS_PER_READ].tolist()
            for row, cell in zip(rows, encoded[rows][column], strict=True):
                yield _decode_cell(cell, f"image {row} of split {name!r}")

    return RawSplit(name=name, labels_N=labels_N, images=images)


def _decode_cell(cell: Mapping[str, Any] | None, where: str) -> NDArray[np.uint8]:
    file = (cell or {}).get("path")
    if file:
        where = f"{where} ({file})"
    if cell is None or (cell["bytes"] is None and not file):
        raise CorruptImage(f"{where}: there is no image; remove the row from the dataset")
    if cell["bytes"] is not None:
        return decode_image(cell["bytes"], where)
    try:
        content = Path(os.fspath(cell["path"])).read_bytes()
    except OSError as error:
        raise CorruptImage(f"{where}: cannot be read: {error.strerror or error}") from error
    return decode_image(content, where)
