"""The examples through real `flwr run`, on both transports, killed and resumed: bit-equal to a loop of plain PyTorch."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.launch.superlink import LocalSuperLink
from tests import plain_split as plain
from tests.e2e.conftest import wait_until
from tests.paths import ROOT

THREE = {"num-supernodes": 3, "client-resources-num-cpus": 1, "init-args-num-cpus": 3}


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


def run(name: str, workdir: Path, disturb: Callable[[LocalSuperLink], None] = lambda link: None, **config: Any) -> str:
    """Run an example in a simulation with a node for each party; return Flower's word on its end, and its log."""
    with LocalSuperLink() as link:
        link.wait()
        run_id = link.run(ROOT / "examples" / name, {"workdir": str(workdir), **config}, THREE)
        wait_until(link.is_running, 120, "the run to begin")
        disturb(link)
        wait_until(lambda: not link.is_running(), 500, "the run to end")
        return f"{link.status(run_id)}\n{link.last_words()}"


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
def test_tabular(transport: str, tmp_path: Path) -> None:
    words = run("tabular", tmp_path / "run", epochs=2, transport=transport)
    assert [record["round"] for record in rounds(tmp_path / "run")] == [1, 2], words
    assert words.startswith("finished:completed")
    assert plain.differing(weights(tmp_path / "run"), tabular_weights(2)) == []
    assert plain.differing(weights(tmp_path / "run"), tabular_weights(1)) != []


def test_tabular_with_a_node_killed_and_resumed(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    killed: list[int] = []

    def kill(link: LocalSuperLink) -> None:
        """Kill a node's process once two rounds are over."""
        wait_until(lambda: len(rounds(workdir)) >= 2 or not link.is_running(), 400, "two rounds")
        actors = [process for process in link.processes() if "ClientAppActor" in " ".join(process.cmdline()[:1])]
        actors[0].kill()
        killed.append(actors[0].pid)

    words = run("tabular", workdir, kill, epochs=60, transport="stream")
    before = rounds(workdir)
    assert killed
    assert len(before) >= 2
    assert words.startswith("finished:failed"), words
    words = run("tabular", workdir, epochs=60, transport="stream")
    assert words.startswith("finished:completed"), words
    after = rounds(workdir)
    assert after[: len(before)] == before
    assert [record["round"] for record in after] == list(range(1, len(after) + 1))
    assert after[-1]["auc"] > 0.98
    assert plain.differing(weights(workdir), tabular_weights(len(after))) == []
