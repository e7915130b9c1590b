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

from psl_flower.data.tables import Table
from psl_flower.errors import DataError, DatasetNotFound
from psl_flower.text import expanded

_PROBE_TIMEOUT_S = 5.0


def load_hub(name: str) -> tuple[dict[str, Table], dict[str, str]]:
    """Open a dataset of the hub.

    Returns
    -------
    tuple
        The rows of each split, and the library's fingerprint of each.

    Raises
    ------
    DatasetNotFound
        If the hub does not know the name or cannot be reached (within seconds) and no copy is cached.
    DataError
        If it cannot be read.
    """
    import datasets
    import huggingface_hub

    tried = f"{name!r}: no such folder ({expanded(name, 'dataset').absolute()})"
    reachable = _hub_answers(huggingface_hub.constants.ENDPOINT)
    try:
        with _offline(not reachable):
            loaded: Mapping[str, Any] = _library().load_dataset(name)
    except _library_errors() as error:
        if not reachable:
            raise DatasetNotFound(
                f"{tried}, and the hub ({huggingface_hub.constants.ENDPOINT}) could not be reached; give a local "
                'folder, connect to the network, or use dataset="digits", which needs none'
            ) from error
        if isinstance(error, datasets.exceptions.DatasetNotFoundError):
            raise DatasetNotFound(f"{tried}, and the hub has no such public dataset; check the spelling") from error
        raise DataError(f"{name!r}: the hub's dataset cannot be read: {error}") from error
    return _tables(loaded), {str(split): str(table._fingerprint) for split, table in loaded.items()}


def load_files(name: str, kind: str, files: Mapping[str, list[str]], content: str) -> dict[str, Table]:
    """Open local files of one kind, "parquet" or "arrow".

    Parameters
    ----------
    name : str
        The dataset's, for errors.
    kind : str
        Of the files.
    files : mapping
        Split -> paths.
    content : str
        Changes with the files: the library would take others of the same size and time for the same.

    Raises
    ------
    DataError
        If they cannot be read.
    """
    try:
        return _tables(_library().load_dataset(kind, data_files=dict(files), cache_dir=_cache(content)))
    except _library_errors() as error:
        raise DataError(f"{name}: its {kind} files cannot be read ({error})") from error


def load_folder(name: str, folder: Path, content: str) -> tuple[dict[str, Table], set[str]]:
    """Open a local folder as the library reads it by itself.

    Returns
    -------
    tuple
        The rows of each split, and the paths of the files that they come from; other parameters as of `load_files`.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    try:
        builder = _library().load_dataset_builder(str(folder), cache_dir=_cache(content))
        builder.download_and_prepare()
        taken = {str(path) for paths in (builder.config.data_files or {}).values() for path in paths}
        return _tables(builder.as_dataset()), taken
    except _library_errors() as error:
        raise DataError(
            f"{name}: {folder} holds neither images in a folder for each class nor files that the datasets library can "
            f"read ({error})"
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


def _cache(content: str) -> str:
    """Return the folder in which the library keeps what it makes of local files of this content."""
    import datasets

    return os.path.join(datasets.config.HF_DATASETS_CACHE, f"psl-{content[:16]}")


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
