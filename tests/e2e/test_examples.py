"""The examples through real `flwr run`, on both transports, killed and resumed: bit-equal to a loop of plain PyTorch."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from psl_flower.engine.checkpoints import Checkpoints
from tests import plain_split as plain
from tests.e2e.conftest import Place
from tests.paths import ROOT

THREE = "num-supernodes=3 client-resources-num-cpus=1 init-args-num-cpus=3"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / name / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(place: Place, name: str, workdir: Path, **config: Any) -> subprocess.CompletedProcess[str]:
    """Run an example in a simulation with a node for each party."""
    given = " ".join(f"{key}={value!r}" for key, value in {"workdir": str(workdir), **config}.items())
    app = ROOT / "examples" / name
    return place.flwr("run", str(app), "--stream", "--federation-config", THREE, "--run-config", given)


def rounds(workdir: Path) -> list[dict[str, Any]]:
    path = workdir / "rounds.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def weights(workdir: Path) -> dict[str, torch.Tensor]:
    """Return all weights after the last step, from the checkpoints of server and nodes."""
    step = rounds(workdir)[-1]["step"]
    found = {f"top.{key}": value for key, value in Checkpoints(workdir / "top").load(step)["lower"].items()}
    for folder in (workdir / "parties").iterdir():
        found |= {f"{folder.name}.{key}": value for key, value in Checkpoints(folder).load(step)["model"].items()}
    return found


def plain_weights(module: ModuleType, loss: Any, targets: torch.Tensor, **settings: Any) -> dict[str, torch.Tensor]:
    """Return those of the plain loop over an example's models and data."""
    sides = {name: module.party(name, None) for name in module.PARTIES}
    found = plain.plain_loop(
        torch.optim.Adam,
        lambda name: module.party(name, None).net,
        module.Top,
        {name: side.data for name, side in sides.items()},
        targets,
        loss,
        pool=np.array(module.TRAIN),
        held_out=np.array(module.VALID),
        **({"seed": 0} | settings),
    )
    return {name: value for name, value in found.items() if name != "outputs"}


def tabular_weights(epochs: int) -> dict[str, torch.Tensor]:
    module = example("tabular")
    targets = torch.tensor(module.load_breast_cancer().target, dtype=torch.float32)
    loss = torch.nn.BCEWithLogitsLoss()
    return plain_weights(module, loss, targets, lr=0.003, batch_size=32, epochs=epochs)


@pytest.mark.parametrize("transport", ["stream", "flower"])
def test_tabular(transport: str, place: Place, tmp_path: Path) -> None:
    done = run(place, "tabular", tmp_path / "run", epochs=2, transport=transport)
    assert [record["round"] for record in rounds(tmp_path / "run")] == [1, 2], done.stdout + done.stderr
    assert "evaluate" in done.stdout or "auc" in done.stdout
    assert plain.differing(weights(tmp_path / "run"), tabular_weights(2)) == []
    assert plain.differing(weights(tmp_path / "run"), tabular_weights(1)) != []


def test_tabular_with_a_node_killed_and_resumed(place: Place, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    killed: list[int] = []

    def kill() -> None:
        """Kill a node's process once two rounds are over."""
        deadline = time.monotonic() + 200
        while len(rounds(workdir)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        for process in place.processes():
            if "ray::ClientAppActor" in " ".join(process.cmdline()[:1]):
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)
                return

    thread = threading.Thread(target=kill)
    thread.start()
    done = run(place, "tabular", workdir, epochs=60, transport="stream")
    thread.join()
    assert killed
    assert 2 <= len(rounds(workdir)) < 20, done.stdout + done.stderr
    done = run(place, "tabular", workdir, epochs=60, transport="stream")
    after = rounds(workdir)
    assert [record["round"] for record in after] == list(range(1, len(after) + 1))
    assert after[-1]["auc"] > 0.98, done.stdout + done.stderr
    assert plain.differing(weights(workdir), tabular_weights(len(after))) == []
