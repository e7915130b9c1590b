"""Fixtures that several files of fault tests share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from psl_flower.models import architectures
from psl_flower.stores.prepare import prepare_stores
from psl_flower.stores.store_set import StoreSet
from tests.fault.lightening_support import IMPOSSIBLE, TRAINING, grid, lighten
from tests.fault.sealed_run import config_in
from tests.in_process import InProcessGrid, engines_one_by_one

# Minutes together, more than half of the fault tests' time: with the long ones.
LONG = ("test_lightening_federated.py", "test_lightening_refused.py", "test_nodes_waited_for.py")


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


@pytest.fixture(scope="module")
def narrow() -> Iterator[None]:
    """Make "resnet18" a narrow network for the tests of a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(architectures, "_DEPTHS", {"resnet18": (1, 1, 1, 1)})
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, narrow: None) -> Path:
    """Return a folder with a workspace, in which a run was trained over the nodes, and the nodes' states."""
    root = tmp_path_factory.mktemp("trained")
    nodes = grid(root)
    nodes.allowed["average"] = True  # in training; not asked for afterwards, when nothing is averaged
    nodes.serve(**TRAINING, workspace=str(root / "workspace"))
    return root


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of `trained` for one test."""
    shutil.copytree(trained, tmp_path / "place")
    return tmp_path / "place"


@pytest.fixture(scope="module")
def lightened(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy in which a lightening has come to its end, undisturbed; all degrees are judged."""
    root = tmp_path_factory.mktemp("lightened") / "place"
    shutil.copytree(trained, root)
    result = lighten(grid(root), root, IMPOSSIBLE)
    assert (result["closest"], result["third"]) == ("degree-001", None)
    return root
