"""Datasets read by the `datasets` library: those of the hub, and local files that hold images.

The library is imported when a dataset is opened, since importing it takes seconds.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from psl_flower.data.class_tables import declared_classes, with_own_classes
from psl_flower.data.copies import copies_folder
from psl_flower.data.table import Table
from psl_flower.data.table_files import LARGE_ENDINGS
from psl_flower.errors import DataError, DatasetNotFound
from psl_flower.text import did_you_mean_folder, expanded

_PROBE_TIMEOUT_S = 5.0
_HUB_URL = "hf://datasets/"


def load_hub(name: str) -> tuple[dict[str, Table], dict[str, str], list[str]]:
    """Open a dataset of the hub; return by split its rows and the library's fingerprint, and notes for the account.

    Raises
    ------
    DatasetNotFound
        If the hub does not know the name or cannot be reached (within seconds) and no copy is cached.
    DataError
        If it cannot be read, or files of one split number their classes differently.
    """
    import datasets
    import huggingface_hub

    tried = f"{name!r}: no such folder ({expanded(name, 'dataset').absolute()}{did_you_mean_folder(name)})"
    reachable = _hub_answers(huggingface_hub.constants.ENDPOINT)
    try:
        with _offline(not reachable):
            builder = _library().load_dataset_builder(name)
            builder.download_and_prepare()
            loaded: Mapping[str, Any] = builder.as_dataset()
    except _library_errors() as error:
        if not reachable:
            raise DatasetNotFound(
                f"{tried}, and the hub ({huggingface_hub.constants.ENDPOINT}) could not be reached; give a local "
                'folder, connect to the network, or use dataset="digits", which needs none'
            ) from error
        if isinstance(error, datasets.exceptions.DatasetNotFoundError):
            raise DatasetNotFound(f"{tried}, and the hub has no such public dataset; check the spelling") from error
        raise DataError(f"{name!r}: the hub's dataset cannot be read: {_told(error)}") from error
    fingerprints = {str(split): str(table._fingerprint) for split, table in loaded.items()}
    notes: list[str] = []
    return _with_classes_of_files(name, builder, _tables(loaded), notes), fingerprints, notes


def _with_classes_of_files(name: str, builder: Any, tables: dict[str, Table], notes: list[str]) -> dict[str, Table]:
    """Return the tables with the classes that the hub's files declare, as far as these are on this machine."""
    if not any(table.columns.classes for table in tables.values()):
        return tables
    files = _files_of_splits(builder) or _files_of_snapshot(name, builder) or {key: [("", None)] for key in tables}
    declared = {
        split: declared_classes(name, [(shown, place) for shown, place in found if place is not None])
        for split, found in files.items()
    }
    unseen = [split for split, found in files.items() if any(place is None for _, place in found)]
    if unseen:
        notes.append(
            f"whether the files of split {' and '.join(map(repr, unseen))} number their classes like the others could "
            "not be checked: the hub's cache lacks some of them; look at the sheet of psl inspect"
        )
    return with_own_classes(tables, declared, notes)


def _files_of_splits(builder: Any) -> dict[str, list[tuple[str, Path | None]]]:
    """Return the parquet and arrow files of each split, by their places in the repository and on this machine."""
    return {
        str(split): [
            (str(url).removeprefix(_HUB_URL), _cached(str(url)))
            for url in urls
            if os.path.splitext(str(url))[1].lower() in LARGE_ENDINGS
        ]
        for split, urls in (builder.config.data_files or {}).items()
    }


def _cached(url: str) -> Path | None:
    """Return where a file of the hub is on this machine; None if it is not."""
    import huggingface_hub

    repository, _, rest = url.removeprefix(_HUB_URL).partition("@")
    revision, _, path = rest.partition("/")
    if not url.startswith(_HUB_URL) or not path:
        return None
    found = huggingface_hub.try_to_load_from_cache(repository, path, revision=unquote(revision), repo_type="dataset")
    return Path(found) if isinstance(found, str) else None


def _files_of_snapshot(name: str, builder: Any) -> dict[str, list[tuple[str, Path | None]]]:
    """Return the files of the revision that was loaded once, when the hub answered: offline no split's are known."""
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            name, repo_type="dataset", revision=builder.hash, local_files_only=True
        )
    except (OSError, ValueError):
        return {}
    return {"": [(str(path.relative_to(folder)), path) for path in sorted(Path(folder).rglob("*")) if path.is_file()]}


def _told(error: BaseException) -> str:
    """Return an error's text, and that of its cause, which the library often keeps to itself."""
    return f"{error}: {error.__cause__}" if error.__cause__ is not None else str(error)


def load_files(name: str, kind: str, files: Mapping[str, list[str]], content: str) -> dict[str, Table]:
    """Open local files of one kind, "parquet" or "arrow", by split.

    `content` changes with the files: the library would take others of the same size and time for the same.

    Raises
    ------
    DataError
        If they cannot be read.
    """
    try:
        return _tables(_library().load_dataset(kind, data_files=dict(files), cache_dir=copies_folder(content)))
    except _library_errors() as error:
        raise DataError(f"{name}: its {kind} files cannot be read ({_told(error)})") from error


def load_folder(name: str, folder: Path, content: str) -> tuple[dict[str, Table], set[str], list[str]]:
    """Open a local folder as the library reads it by itself.

    Returns
    -------
    tuple
        The rows of each split, the paths of the files that they come from, and what the account is to say; other
        parameters are those of `load_files`.

    Raises
    ------
    DataError
        If it cannot be read, or its files number their classes differently.
    """
    notes: list[str] = []
    try:
        builder = _library().load_dataset_builder(str(folder), cache_dir=copies_folder(content))
        taken = {str(path) for paths in (builder.config.data_files or {}).values() for path in paths}
        declared = declared_classes(name, [(path, Path(path)) for path in sorted(taken)])
        builder.download_and_prepare()
        return with_own_classes(_tables(builder.as_dataset()), {"": declared}, notes), taken, notes
    except _library_errors() as error:
        raise DataError(
            f"{name}: {folder} holds neither images in a folder for each class nor files that the datasets library can "
            f"read ({_told(error)})"
        ) from error


def _tables(loaded: Mapping[str, Any]) -> dict[str, Table]:
    return {str(split): Table.of_library(table) for split, table in loaded.items()}


def _library() -> Any:
    import datasets
    from huggingface_hub.utils.tqdm import disable_progress_bars

    datasets.disable_progress_bars()
    disable_progress_bars()
    return datasets


def _library_errors() -> tuple[type[Exception], ...]:
    import datasets
    import httpx

    return (datasets.exceptions.DatasetsError, httpx.HTTPError, OSError, RuntimeError, TypeError, ValueError)


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

    # In a thread, because looking up a host name has no time limit.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(_PROBE_TIMEOUT_S)
    return answered.is_set()


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """Make the library use only its cache within the block, if wanted."""
    import datasets
    import huggingface_hub

    before = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    if wanted:
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = before
