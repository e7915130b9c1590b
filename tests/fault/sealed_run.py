"""A run of two nodes with sealed stores, as in a deployment: the real apps, in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from psl_flower.config import RunConfig
from psl_flower.engine.one_process import OneProcessTrainer
from psl_flower.runs.folder import RunFolder
from psl_flower.stores.store_set import StoreSet
from tests import in_process
from tests.in_process import InProcessGrid

STEPS = 6
TRAINING = {
    "dataset": "digits", "max_train": 24, "max_test": 12, "patch_size": "8x8", "uppers": 2, "cut": "stem",
    "batch_size": 8, "rounds": 2, "steps_per_round": STEPS // 2, "evaluate_every": 0, "lower_threads": 1,
    "upper_threads": 1, "device": "cpu", "run_name": "run", "checkpoint_every": 1,
}  # fmt: skip


def config_in(workspace: Path) -> RunConfig:
    """Return the settings of the run in this workspace."""
    return in_process.config_in(workspace, TRAINING)


def other(nodes: InProcessGrid, workspace: Path, **config: str) -> None:
    """Let a node 102 come up that nobody needs; what is not given is as on node 100."""
    nodes.config[102] = {**nodes.config[100], "state": str(workspace / "other"), **config}


def train(nodes: InProcessGrid, workspace: Path, **settings: Any) -> RunFolder:
    """Do the run, with settings other than its own."""
    nodes.serve(**(TRAINING | settings), workspace=str(workspace))
    return RunFolder(workspace / "runs" / "run")


def log_of(workspace: Path) -> str:
    """Return the run's log so far."""
    path = workspace / "runs" / "run" / "log.txt"
    return path.read_text() if path.exists() else ""


def exact(run: RunFolder, stores: StoreSet) -> bool:
    """Return whether the model is that of one process."""
    monolith = OneProcessTrainer(
        run.read_config(), stores.description, stores.labels, [stores.open(m) for m in range(2)]
    )
    monolith.train(STEPS)
    expected, found = monolith.net.state_dict(), load_file(run.model / "model.safetensors")
    return expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)
