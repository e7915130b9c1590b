"""Opens whatever kind of patch store a folder holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from psl_flower.errors import StoreError
from psl_flower.stores.base import PatchStore
from psl_flower.stores.plain import PATCHES_FILE, PlainStore

# The file that only this kind of store has -> what opens the folder.
_KINDS: dict[str, Callable[[Path], PatchStore]] = {
    PATCHES_FILE: PlainStore,
}


def open_store(path: Path) -> PatchStore:
    """Open the patch store in a folder.

    Raises
    ------
    StoreError
        If there is no such folder, it holds no patch store, or the store is damaged.
    """
    if not path.is_dir():
        raise StoreError(f"{path}: no such patch store")
    for marker, opener in _KINDS.items():
        if (path / marker).exists():
            return opener(path)
    raise StoreError(f"{path}: the folder holds no patch store (none of {', '.join(_KINDS)})")
