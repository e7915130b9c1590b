"""The examples through real `flwr run`, on both transports, killed and resumed: bit-equal to a loop of plain PyTorch."""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.engine.schedule import Schedule
from psl_flower.launch.superlink import LocalSuperLink
from tests import plain_groups
from tests import plain_split as plain
from tests.e2e.conftest import wait_until
from tests.paths import ROOT

pytestmark = pytest.mark.usefixtures("one_thread")

EXAMPLES = ROOT / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / name / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_app(
    app: Path, workdir: Path, nodes: int, disturb: Callable[[LocalSuperLink], None] = lambda link: None, **config: Any
) -> str:
    """Run an app in a simulation with so many nodes at once; return Flower's word on its end, and its log."""
    federation = {"num-supernodes": nodes, "client-resources-num-cpus": 1, "init-args-num-cpus": nodes}
    with LocalSuperLink() as link:
        link.wait()
        run_id = link.run(app, {"workdir": str(workdir), **config}, federation)
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


def plain_weights(
    module: ModuleType, loss: Any, targets: torch.Tensor, optimizer: Any = torch.optim.Adam, **settings: Any
) -> dict[str, torch.Tensor]:
    """Return those of the plain loop over an example's models and data."""
    sides = {name: module.party(name, None) for name in module.PARTIES}
    found = plain.plain_loop(
        optimizer,
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


@pytest.mark.parametrize("transport", ["stream", pytest.param("flower", marks=pytest.mark.slow)])
def test_tabular(transport: str, tmp_path: Path) -> None:
    words = run_app(EXAMPLES / "tabular", tmp_path / "run", 3, epochs=2, transport=transport)
    assert [record["round"] for record in rounds(tmp_path / "run")] == [1, 2], words
    assert words.startswith("finished:completed")
    assert plain.differing(weights(tmp_path / "run"), tabular_weights(2)) == []
    assert plain.differing(weights(tmp_path / "run"), tabular_weights(1)) != []


@pytest.mark.slow  # four minutes; tests/equivalence kills nodes of the same engine
def test_tabular_with_a_node_killed_and_resumed(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    killed: list[int] = []

    def kill(link: LocalSuperLink) -> None:
        """Kill a node's process once two rounds are over."""
        wait_until(lambda: len(rounds(workdir)) >= 2 or not link.is_running(), 400, "two rounds")
        actors = [process for process in link.processes() if "ClientAppActor" in " ".join(process.cmdline()[:1])]
        actors[0].kill()
        killed.append(actors[0].pid)

    words = run_app(EXAMPLES / "tabular", workdir, 3, kill, epochs=60, transport="stream")
    before = rounds(workdir)
    assert killed
    assert len(before) >= 2
    assert words.startswith("finished:failed"), words
    words = run_app(EXAMPLES / "tabular", workdir, 3, epochs=60, transport="stream")
    assert words.startswith("finished:completed"), words
    after = rounds(workdir)
    assert after[: len(before)] == before
    assert [record["round"] for record in after] == list(range(1, len(after) + 1))
    assert after[-1]["auc"] > 0.98
    assert plain.differing(weights(workdir), tabular_weights(len(after))) == []


@pytest.mark.parametrize("transport", ["stream", pytest.param("flower", marks=pytest.mark.slow)])
def test_patches(transport: str, tmp_path: Path) -> None:
    words = run_app(EXAMPLES / "patches", tmp_path / "run", 4, epochs=2, transport=transport)
    assert words.startswith("finished:completed"), words
    module = example("patches")
    expected = plain_weights(
        module, torch.nn.CrossEntropyLoss(), torch.from_numpy(module.load_digits().target),
        lambda parameters: torch.optim.SGD(parameters, momentum=0.9), batch_size=64, epochs=2,
        rate=Schedule(kind="one-cycle", peak=0.05, total_steps=44).lr,
    )  # fmt: skip
    assert plain.differing(weights(tmp_path / "run"), expected) == []
    assert rounds(tmp_path / "run")[-1]["accuracy"] > 0.8


def u_shape_weights(epochs: int) -> dict[str, torch.Tensor]:
    """Return those of the plain loop over the example, its head among the layers behind the server's model."""
    module, heads = example("u_shape"), []

    def net(name: str) -> torch.nn.Module:
        given = module.party(name, None)
        if name != "hospital":
            return given.net
        heads.append(given[1].head)
        return given[0].net

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.top = module.Top()
            self.head = heads[-1]

        def forward(self, *outputs: torch.Tensor) -> torch.Tensor:
            return self.head(self.top(*outputs))

    found = plain.plain_loop(
        torch.optim.Adam, net, Whole, {name: module.columns_of(name) for name in module.PARTIES},
        torch.tensor(module.load_breast_cancer().target, dtype=torch.float32), torch.nn.BCEWithLogitsLoss(),
        pool=np.array(module.TRAIN), held_out=np.array(module.VALID), seed=0, lr=0.003, batch_size=32, epochs=epochs,
    )  # fmt: skip
    renamed = {name.replace("top.head.", "head.").replace("top.top.", "top."): value for name, value in found.items()}
    return {name: value for name, value in renamed.items() if name != "outputs"}


@pytest.mark.parametrize("transport", ["stream", pytest.param("flower", marks=pytest.mark.slow)])
def test_u_shape(transport: str, tmp_path: Path) -> None:
    """The hospital sends up and holds the labels: two streams of one node, or two parties in its messages."""
    workdir = tmp_path / "run"
    words = run_app(EXAMPLES / "u_shape", workdir, 3, epochs=2, transport=transport)
    assert words.startswith("finished:completed"), words
    head = Checkpoints(workdir / "parties" / "hospital" / "head").load(rounds(workdir)[-1]["step"])["model"]
    found = weights(workdir) | {f"head.{key}": value for key, value in head.items()}
    assert plain.differing(found, u_shape_weights(2)) == []
    assert plain.differing(found, u_shape_weights(1)) != []
    assert rounds(workdir)[-1]["auc"] > 0.9


@pytest.mark.parametrize("transport", ["stream", pytest.param("flower", marks=pytest.mark.slow)])
def test_vit(transport: str, tmp_path: Path) -> None:
    """Attention and its dropout at four owners and on the server."""
    words = run_app(EXAMPLES / "vit", tmp_path / "run", 4, epochs=3, transport=transport)
    assert words.startswith("finished:completed"), words
    module = example("vit")
    expected = plain_weights(
        module, torch.nn.CrossEntropyLoss(), torch.from_numpy(module.load_digits().target), torch.optim.AdamW,
        batch_size=64, epochs=3, rate=Schedule(kind="one-cycle", peak=0.003, total_steps=66).lr,
    )  # fmt: skip
    assert plain.differing(weights(tmp_path / "run"), expected) == []
    assert rounds(tmp_path / "run")[-1]["accuracy"] > 0.6


@pytest.mark.parametrize("transport", ["stream", pytest.param("flower", marks=pytest.mark.slow)])
def test_audio_text(transport: str, tmp_path: Path) -> None:
    """Sound as float32 and words as int64, which the parties' nets get as they are; outputs of two ranks."""
    words = run_app(EXAMPLES / "audio_text", tmp_path / "run", 2, epochs=4, transport=transport)
    assert words.startswith("finished:completed"), words
    module = example("audio_text")
    sides = {name: module.party(name, None) for name in module.PARTIES}
    assert {name: side.data.dtype for name, side in sides.items()} == {"audio": torch.float32, "text": torch.int64}
    expected = plain_weights(module, torch.nn.CrossEntropyLoss(), module.KEYS, lr=0.005, batch_size=32, epochs=4)
    assert plain.differing(weights(tmp_path / "run"), expected) == []
    # Of the sound alone a third of the keys can be told at most, of the text a quarter.
    assert rounds(tmp_path / "run")[-1]["accuracy"] > 0.8


def groups_weights(epochs: int) -> dict[str, torch.Tensor]:
    """Return those of the plain loop, whose data of a party are the groups' own tables put together."""
    module = example("groups")
    sides = {name: module.party(name, None) for name in module.PARTIES}
    data = {party: torch.zeros(len(module.IDS), 15) for party in module.COLUMNS}
    for name, side in sides.items():
        party, _, group = name.partition("@")
        data[party][module.PATIENTS[group]] = side.data
    found = plain_groups.plain_loop(
        torch.optim.Adam, {name: np.array(module.PATIENTS[name.partition("@")[2]]) for name in sides},
        lambda party: module.party(f"{party}@north", None).net, module.Top, data,
        torch.tensor(module.load_breast_cancer().target, dtype=torch.float32), dict.fromkeys(data, (16,)),
        pool=np.array(module.TRAIN), held_out=np.array(module.VALID), seed=0, lr=0.003, batch_size=32, epochs=epochs,
    )  # fmt: skip
    return {name: value for name, value in found.items() if name != "outputs"}


@pytest.mark.parametrize("transport", ["stream", pytest.param("flower", marks=pytest.mark.slow)])
def test_groups(transport: str, tmp_path: Path) -> None:
    """Holders of different samples, matched by private ids; one node has none or one of a batch now and then."""
    words = run_app(EXAMPLES / "groups", tmp_path / "run", 4, epochs=2, transport=transport)
    assert words.startswith("finished:completed"), words
    assert plain.differing(weights(tmp_path / "run"), groups_weights(2)) == []
    assert plain.differing(weights(tmp_path / "run"), groups_weights(1)) != []
    assert rounds(tmp_path / "run")[-1]["auc"] > 0.9


@pytest.mark.parametrize("name", ["tabular", "patches", "vit", "audio_text", "u_shape", "groups"])
def test_examples_are_short(name: str) -> None:
    """At most 60 lines of code, and a README of a screen."""
    text = (EXAMPLES / name / f"{name}.py").read_text("utf-8")
    documented = {
        number
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
        for number in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    code = [
        line
        for number, line in enumerate(text.splitlines(), start=1)
        if number not in documented and line.strip() and not line.strip().startswith("#")
    ]
    assert 20 < len(code) <= 60
    assert len((EXAMPLES / name / "README.md").read_text("utf-8").splitlines()) <= 40


def test_a_project_with_folders_of_the_same_names(tmp_path: Path) -> None:
    """Its own `strategies`, `clients` and `server` are loaded, not this project's."""
    app = tmp_path / "app"
    for name, text in PROJECT.items():
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).write_text(text, "utf-8")
    words = run_app(app, tmp_path / "run", 2)
    assert words.startswith("finished:completed"), words
    assert [record["round"] for record in rounds(tmp_path / "run")] == [1, 2]
    assert rounds(tmp_path / "run")[-1]["from_its_own_folder"] == 1.0


PROJECT = {
    "pyproject.toml": """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "second"
version = "1.0.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "somebody"
[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "clients.upper_app:app"
[tool.flwr.app.config]
workdir = ""
""",
    "strategies/__init__.py": "MARK = 'second'\nPARTIES = {'left': (2,), 'right': (2,)}\n",
    "clients/__init__.py": "",
    "clients/upper_app.py": """
import torch
from psl_flower.flower import PartySide, split_client
from strategies import PARTIES

def party(name, context):
    return PartySide(torch.nn.Linear(2, *PARTIES[name]), torch.arange(40.0).reshape(20, 2) / 40, torch.optim.Adam)

app = split_client(party)
""",
    "server/__init__.py": "",
    "server/app.py": """
import torch
from flwr.serverapp import ServerApp
from psl_flower.flower import SplitLearning
import strategies

class Top(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(4, 1)

    def forward(self, left, right):
        return self.fc(torch.cat([left, right], 1))

app = ServerApp()

@app.main()
def main(grid, context):
    SplitLearning(
        Top, strategies.PARTIES, labels=torch.ones(20, 1), train=range(15), valid=range(15, 20), lr=0.1, batch_size=5,
        loss=torch.nn.MSELoss(), optimizer=torch.optim.Adam, epochs=2, workdir=context.run_config["workdir"],
        metrics={"from_its_own_folder": lambda outputs, targets: strategies.MARK == "second"},
    ).fit(grid)
""",
}
