"""Fixtures that several files of fault tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from psl_flower.stores.prepare import prepare_stores
from psl_flower.stores.store_set import StoreSet
from tests.fault.sealed_run import config_in
from tests.in_process import InProcessGrid, engines_one_by_one

# Minutes together, more than half of the fault tests' time: with the long ones.
LONG = ("test_lightening_federated.py", "test_nodes_waited_for.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        path = Path(item.fspath)
        if path.parent == Path(__file__).parent and path.name in LONG and not item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture
def stores(tmp_path: Path) -> StoreSet:
    """Return the sealed stores of `tests.fault.sealed_run`."""
    return prepare_stores(config_in(tmp_path))


@pytest.fixture
def nodes(stores: StoreSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InProcessGrid:
    """Return nodes 100 and 101, each with the key to its store."""
    engines_one_by_one(monkeypatch)
    grid = InProcessGrid(stores.folder, tmp_path / "state", 2)
    for m, config in enumerate(grid.config.values()):
        config["key"] = str(tmp_path / "keys" / f"node-{m:03d}.key")
    return grid
