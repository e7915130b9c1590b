"""The examples through real `flwr run`, on both transports, killed and resumed: bit-equal to a loop of plain PyTorch."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from psl_flower.launch.superlink import LocalSuperLink
from tests import plain_split as plain
from tests.e2e.conftest import wait_until
from tests.plain_examples import EXAMPLES, NAMES, example, expected, rounds, weights

pytestmark = pytest.mark.usefixtures("one_thread")


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


@pytest.mark.parametrize("transport", ["stream", pytest.param("flower", marks=pytest.mark.slow)])
def test_tabular(transport: str, tmp_path: Path) -> None:
    words = run_app(EXAMPLES / "tabular", tmp_path / "run", 3, epochs=2, transport=transport)
    assert [record["round"] for record in rounds(tmp_path / "run")] == [1, 2], words
    assert words.startswith("finished:completed")
    assert plain.differing(weights(tmp_path / "run"), expected(example("tabular"), 2)) == []
    assert plain.differing(weights(tmp_path / "run"), expected(example("tabular"), 1)) != []


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
    assert plain.differing(weights(workdir), expected(example("tabular"), len(after))) == []


# Of each example, epochs and what is measured after them, at least. Of the sound alone a third of the keys can be told at
# most, of the text a quarter.
OTHERS = {
    "patches": (2, "accuracy", 0.8),
    "vit": (3, "accuracy", 0.6),
    "audio_text": (4, "accuracy", 0.8),
    "u_shape": (2, "auc", 0.9),
    "groups": (2, "auc", 0.9),
}


@pytest.mark.parametrize("transport", ["stream", pytest.param("flower", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", OTHERS)
def test_others(name: str, transport: str, tmp_path: Path) -> None:
    epochs, metric, least = OTHERS[name]
    module, workdir = example(name), tmp_path / "run"
    words = run_app(EXAMPLES / name, workdir, len(module.PARTIES), epochs=epochs, transport=transport)
    assert words.startswith("finished:completed"), words
    assert plain.differing(weights(workdir), expected(module, epochs)) == []
    assert plain.differing(weights(workdir), expected(module, epochs - 1)) != []
    assert rounds(workdir)[-1][metric] > least


def test_sound_and_words_stay_as_they_are() -> None:
    module = example("audio_text")
    sides = {name: module.party(name, None) for name in module.PARTIES}
    assert {name: side.data.dtype for name, side in sides.items()} == {"audio": torch.float32, "text": torch.int64}


@pytest.mark.parametrize("name", NAMES)
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
