"""Lightening over the federation: the real apps, in one process, every Upper on a node with a state of its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from psl_flower.config import RunConfig
from psl_flower.data.preparing import prepare_stores
from psl_flower.lightening.beginning import begin
from psl_flower.lightening.report import read_result
from tests.in_process import InProcessGrid

TRAINING = {
    "dataset": "digits", "max_train": 48, "max_test": 20, "stores": "plain", "image_size": "8x8", "uppers": 2,
    "cut": "stem", "batch_size": 16, "rounds": 1, "evaluate_batch_size": 8, "lower_threads": 1,
    "upper_threads": 1, "device": "cpu", "run_name": "trained",
}  # fmt: skip
WITH = "min-accuracy=0 min-speed=0.001 degrees=2 epochs=1 max-pruned=0.9 second-ratio=1.2"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a workspace, in which a run was trained over the nodes, and the nodes' states."""
    root = tmp_path_factory.mktemp("trained")
    grid(root).serve(**TRAINING, workspace=str(root / "workspace"))
    return root


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "place")
    return tmp_path / "place"


def grid(root: Path) -> InProcessGrid:
    config = RunConfig.from_mapping({name.replace("_", "-"): value for name, value in TRAINING.items()})
    stores = prepare_stores(config.replace(workspace=str(root / "workspace")))
    return InProcessGrid(stores.folder, root / "state", 2)


def lighten(nodes: InProcessGrid, root: Path, asked: str = WITH, **settings: Any) -> dict[str, Any]:
    workspace = str(root / "workspace")
    nodes.serve(lighten="trained", lighten_with=asked, workspace=workspace, node_timeout_s=20.0, **settings)
    _, _, folder = begin(RunConfig(lighten="trained", lighten_with=asked, workspace=workspace))
    return read_result(folder)


def test_it(place: Path) -> None:
    result = lighten(grid(place), place)
    print(result)
