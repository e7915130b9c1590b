"""The same over Flower's nodes, in one process: bit-equal to plain PyTorch on both transports, also where a node dies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from psl_flower.flower import SplitLearning
from psl_flower.split import PartySide, fit_local
from tests import plain_split as plain
from tests.parties_in_process import PartiesGrid, arguments, over_nodes, party_with, weights_of

pytestmark = pytest.mark.usefixtures("one_thread", "answered_soon")

STEPS = 18


@pytest.mark.parametrize("transport", ["stream", "flower"])
@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_nodes_are_a_plain_loop(transport: str, name: str, tmp_path: Path) -> None:
    optimizer = plain.OPTIMIZERS[name]
    grid, strategy = (
        PartiesGrid(party_with(optimizer), tmp_path / "state"),
        over_nodes(optimizer, transport=transport, workdir=tmp_path / "run"),
    )
    result = grid.fit(strategy)
    assert plain.differing(weights_of(strategy, result, tmp_path, STEPS), plain.plain_loop(optimizer)) == []
    assert sorted(result.train_metrics_clientapp) == sorted(result.evaluate_metrics_serverapp) == [1, 2, 3]
    answers = plain.plain_loop(optimizer)["outputs"]
    assert result.evaluate_metrics_serverapp[3]["accuracy"] == plain.accuracy(answers, plain.labels()[plain.VALID])


@pytest.mark.parametrize("transport", ["stream", "flower"])
def test_a_node_dies_and_comes_back(transport: str, tmp_path: Path) -> None:
    grid = PartiesGrid(party_with(torch.optim.Adam), tmp_path / "state")
    sent = grid.lose(*{"stream": ("train.stream", 4), "flower": ("query.step", 30)}[transport])
    strategy = over_nodes(transport=transport, workdir=tmp_path / "run", checkpoint_every=2)
    result = grid.fit(strategy)
    assert sent.count("query.inventory") > 3  # the nodes were looked for again
    expected = plain.plain_loop(torch.optim.Adam)
    assert plain.differing(weights_of(strategy, result, tmp_path, STEPS), expected) == []


@pytest.mark.parametrize("transports", [("stream", "flower"), ("flower", "stream")])
def test_resumed_on_the_other_transport(transports: tuple[str, str], tmp_path: Path) -> None:
    """The server dies within the second round; started again, it goes on from the last checkpoint."""
    grid = PartiesGrid(party_with(torch.optim.Adam), tmp_path / "state")

    def fail(record: object) -> None:
        if isinstance(record, dict) and (record["event"], record["step"]) == ("step", 9):
            raise RuntimeError("power cut")

    with pytest.raises(Exception, match="power cut"):
        grid.fit(over_nodes(transport=transports[0], workdir=tmp_path / "run", callbacks=[fail]))
    told: list[dict[str, object]] = []
    strategy = over_nodes(transport=transports[1], workdir=tmp_path / "run", callbacks=[told.append])
    result = grid.fit(strategy)
    assert told[0]["step"] == 7
    expected = plain.plain_loop(torch.optim.Adam)
    assert plain.differing(weights_of(strategy, result, tmp_path, STEPS), expected) == []
    assert sorted(result.train_metrics_clientapp) == [1, 2, 3]


def test_rounded_on_the_wire_as_in_one_process(tmp_path: Path) -> None:
    codecs = {"wire_activations": "bfloat16", "wire_gradients": "int8"}
    grid, strategy = PartiesGrid(party_with(torch.optim.Adam), tmp_path), over_nodes(workdir=tmp_path / "run", **codecs)
    result = grid.fit(strategy)
    found = weights_of(strategy, result, tmp_path, STEPS)
    local = fit_local(party_with(torch.optim.Adam), over_nodes(**codecs))
    assert isinstance(local.outputs, torch.Tensor)
    expected = plain.snapshot(local.nets, local.top) | {"outputs": local.outputs}
    assert plain.differing(found, expected) == []
    assert plain.differing(found, plain.plain_loop(torch.optim.Adam)) != []


class TwoTensors(nn.Module):
    """Sends a row and a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.row, self.matrix = plain.net("person"), nn.Linear(3, 4)

    def forward(self, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.row(columns), self.matrix(columns).unflatten(1, (2, 2))


class OfTwo(plain.Top):
    def forward(self, pair: tuple[torch.Tensor, torch.Tensor], *others: torch.Tensor) -> torch.Tensor:
        row, matrix = pair
        return super().forward(row * matrix.mean((1, 2))[:, None], *others)


@pytest.mark.parametrize("transport", ["stream", "flower"])
def test_several_tensors_and_a_local_loss(transport: str, tmp_path: Path) -> None:
    """Over nodes as in one process, which `tests/unit/test_split_hooks.py` holds to plain PyTorch."""

    def party(name: str, context: object, weight: float = 0.3) -> PartySide:
        net = TwoTensors() if name == "person" else plain.net(name)
        local = (lambda sent, columns: weight * sent.square().mean()) if name == "fare" else None
        return PartySide(net, plain.columns()[name], torch.optim.Adam, local_loss=local)

    parties = plain.PARTIES | {"person": [(8,), (2, 2)]}
    told = arguments(torch.optim.Adam, node_timeout_s=20.0)
    strategy = SplitLearning(OfTwo, parties, **told, workdir=tmp_path / "run", transport=transport)
    found = weights_of(strategy, PartiesGrid(party, tmp_path / "state").fit(strategy), tmp_path, STEPS)
    for weight, equal in ((0.3, True), (0.4, False)):
        local = fit_local(
            lambda name, context, w=weight: party(name, context, w), SplitLearning(OfTwo, parties, **told)
        )
        expected = plain.snapshot(local.nets, local.top) | {"outputs": local.outputs}
        assert (plain.differing(found, expected) == []) == equal
