"""The party that has the labels, on a node: missing, twice, unasked for, or failing; one clear error on either transport."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from psl_flower.errors import AlignmentError, NodeError, PositionError, PositionMissing, PslError
from tests import parties_in_process as usual
from tests import plain_split as plain
from tests import plain_u_shape as u

pytestmark = pytest.mark.usefixtures("answered_soon")

ADAM = torch.optim.Adam


SEATS = u.seats("clinic")


def grid_of(folder: Path, names: Any = SEATS, holder: str = "clinic", **side: Any) -> usual.PartiesGrid:
    return usual.PartiesGrid(u.party_with(ADAM, holder, **side), folder, names)


def fails(grid: usual.PartiesGrid, folder: Path, error: type[PslError], words: str, **changes: Any) -> None:
    with pytest.raises(error, match=re.escape(words)):
        grid.fit(u.over_nodes(ADAM, "clinic", workdir=folder / "run", **({"node_timeout_s": 1.0} | changes)))
    assert not list(folder.rglob("step-00000006.pt"))  # nothing was trained


def test_no_node_has_the_labels(tmp_path: Path) -> None:
    fails(
        grid_of(tmp_path, list(plain.PARTIES)), tmp_path, PositionMissing, "no node is party 'clinic' (asked: node 100"
    )


def test_two_nodes_have_the_labels(tmp_path: Path) -> None:
    words = "node 104 (clinic) and node 103 (clinic) both are party 'clinic'; stop one of them"
    fails(grid_of(tmp_path, [*u.seats("clinic"), "clinic"]), tmp_path, PositionError, words)


def test_another_party_has_labels_too(tmp_path: Path) -> None:
    words = "party 'family' brings labels, but the server expects them of party 'clinic'; only one may have them"
    fails(grid_of(tmp_path, holder="family"), tmp_path, NodeError, words)


def test_the_server_has_labels_too(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, list(plain.PARTIES), "family")
    words = "party 'family' brings labels, but the server has its own; give the server labels='family'"
    with pytest.raises(NodeError, match=re.escape(words)):
        grid.fit(usual.over_nodes(ADAM, workdir=tmp_path / "run", node_timeout_s=1.0))


def test_labels_are_of_other_samples(tmp_path: Path) -> None:
    words = "node 100 (person) holds 60 samples, node 103 (clinic) 59; all must hold the same"
    fails(grid_of(tmp_path, labels=torch.zeros(59)), tmp_path, AlignmentError, words)


def test_a_sample_of_the_evaluation_is_unknown_to_the_holder(tmp_path: Path) -> None:
    words = "train or valid names sample 60, but the parties hold 60, counted from 0"
    fails(grid_of(tmp_path), tmp_path, AlignmentError, words, valid=[50, 60])


@pytest.mark.parametrize("transport", ["stream", "flower"])
@pytest.mark.parametrize(
    ("side", "words"),
    [
        ({"head": nn.Linear(5, 1)}, "party 'clinic' (labels): its own code raised RuntimeError; its words, which may tell"),
        ({"loss": lambda outputs, targets: plain.bce(outputs, targets) * torch.nan}, "step 0: the loss is nan; the last"),
    ],
)  # fmt: skip
def test_the_holder_fails(transport: str, side: dict[str, Any], words: str, tmp_path: Path) -> None:
    fails(grid_of(tmp_path, **side), tmp_path, NodeError, words, transport=transport)


@pytest.mark.parametrize("transport", ["stream", "flower"])
def test_a_metric_of_the_holder_raises_and_the_step_is_kept(transport: str, tmp_path: Path) -> None:
    def raising(*_: object) -> float:
        raise KeyError("age")

    grid = grid_of(tmp_path, metrics={"age": raising})
    strategy = u.over_nodes(ADAM, "clinic", workdir=tmp_path / "run", transport=transport)
    with pytest.raises(
        NodeError, match="its own code raised KeyError; its words, which may tell a label, are in the log of this party"
    ):
        grid.fit(strategy)
    kept = u.Kept()
    whole = grid_of(tmp_path, on_evaluated=kept)
    whole.state, whole.config = grid.state, grid.config
    result = whole.fit(u.over_nodes(ADAM, "clinic", workdir=tmp_path / "run", transport=transport))
    assert sorted(result.train_metrics_clientapp) == [1, 2, 3]
    assert plain.differing(u.node_weights(result, tmp_path, "clinic", kept), u.plain_loop(ADAM, "clinic")) == []
