"""Sealed sets of tiny pictures, as a demonstration has them, and what they are compared with."""

from pathlib import Path

import numpy as np

from psl_flower.stores.sealed_set import ensure_sealed
from psl_flower.stores.store_set import StoreSet


def make_sealed(tmp_path, wanted, progress=None, **options):
    """Return the sealed set of a request, made in root/ with the keys in keys/ unless it is there."""
    return ensure_sealed(tmp_path / "root", wanted, tmp_path / "keys", progress, **options)


def same_sets(sealed: StoreSet, plain: StoreSet) -> None:
    """Check that two sets hold the same, whatever they are called."""
    ours, theirs = sealed.description, plain.description
    names = [name for name in theirs.__struct_fields__ if name not in ("dataset", "fingerprint")]
    assert {name: getattr(ours, name) for name in names} == {name: getattr(theirs, name) for name in names}
    np.testing.assert_array_equal(sealed.labels, plain.labels)
    for m in range(theirs.num_uppers):
        a, b = sealed.open(m), plain.open(m)
        assert a.meta.positions == b.meta.positions
        np.testing.assert_array_equal(a.read(np.arange(len(a))), b.read(np.arange(len(b))))
        a.close()
        b.close()


def content(*folders: Path) -> dict[Path, bytes]:
    """Return what the files in folders hold, without the locks."""
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in files if not path.name.endswith("lock")}
