"""Parties on nodes that are missing, misplaced, misaligned or broken: one clear error each, on either transport."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from psl_flower.errors import AlignmentError, NodeError, PositionError, PositionMissing, PslError
from psl_flower.flower import PartySide
from tests import plain_split as plain
from tests.parties_in_process import PartiesGrid, over_nodes, party_with

pytestmark = pytest.mark.usefixtures("answered_soon")

ADAM = torch.optim.Adam


def side(name: str, **changes: Any) -> Callable[[str, Any], PartySide]:
    """Return parties of which one brings something else."""

    def party(asked: str, context: Any) -> PartySide:
        told = {"net": plain.net(asked), "data": plain.columns()[asked], "optimizer": ADAM}
        return PartySide(**(told | (changes if asked == name else {})))

    return party


def fails(grid: PartiesGrid, folder: Path, error: type[PslError], words: str, **changes: Any) -> None:
    with pytest.raises(error, match=re.escape(words)):
        grid.fit(over_nodes(workdir=folder / "run", **({"node_timeout_s": 1.0} | changes)))
    assert not list(folder.rglob("step-00000006.pt"))  # nothing was trained


def test_a_party_is_missing(tmp_path: Path) -> None:
    grid = PartiesGrid(party_with(ADAM), tmp_path, ["person", "family"])
    fails(grid, tmp_path, PositionMissing, "no node is party 'fare' (asked: node 100 (person), node 101 (family))")


def test_no_node_is_a_party(tmp_path: Path) -> None:
    grid = PartiesGrid(party_with(ADAM), tmp_path)
    for config in grid.config.values():
        del config["party"]
    fails(grid, tmp_path, PositionMissing, "no node is a party of this run; start SuperNodes with --node-config")


def test_two_nodes_are_one_party(tmp_path: Path) -> None:
    grid = PartiesGrid(party_with(ADAM), tmp_path, ["person", "fare", "family", "fare"])
    fails(grid, tmp_path, PositionError, "node 103 (fare) and node 101 (fare) both are party 'fare'; stop one of them")


def test_a_node_names_a_party_that_there_is_not(tmp_path: Path) -> None:
    grid = PartiesGrid(party_with(ADAM), tmp_path, ["person", "fare", "fairy"])
    words = "node-config party: 'fairy' is none of this run's parties: person, fare, family"
    fails(grid, tmp_path, NodeError, words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": plain.columns()["fare"][:50]}, "node 100 (person) holds 60 samples, node 101 (fare) 50; all must hold"),
        ({"ids": range(60)}, "node 100 (person) and node 101 (fare) hold samples of different datasets, or with different"),
    ],
)  # fmt: skip
def test_parties_do_not_hold_the_same_samples(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    fails(PartiesGrid(side("fare", **changes), tmp_path), tmp_path, AlignmentError, words)


def test_labels_are_of_other_samples(tmp_path: Path) -> None:
    grid, words = PartiesGrid(party_with(ADAM), tmp_path), "party 'person' holds 60 samples, but there are 61 labels"
    fails(grid, tmp_path, AlignmentError, words, labels=torch.zeros(61))


@pytest.mark.parametrize("transport", ["stream", "flower"])
def test_a_net_returns_another_shape(transport: str, tmp_path: Path) -> None:
    grid = PartiesGrid(side("fare", net=nn.Linear(5, 7)), tmp_path)
    words = "party 'fare': for 8 samples its net returned (8, 7), the training expects (8, 6); change the net"
    fails(grid, tmp_path, NodeError, words, transport=transport)


@pytest.mark.parametrize("transport", ["stream", "flower"])
def test_a_net_raises(transport: str, tmp_path: Path) -> None:
    grid = PartiesGrid(side("fare", net=nn.Linear(4, 6)), tmp_path)
    fails(grid, tmp_path, NodeError, "party 'fare': its net raised RuntimeError: ", transport=transport)


def test_a_party_that_raises(tmp_path: Path) -> None:
    def party(name: str, context: Any) -> PartySide:
        raise FileNotFoundError("fares.csv")

    words = "party 'person' raised FileNotFoundError: fares.csv"
    fails(PartiesGrid(party, tmp_path), tmp_path, NodeError, words)
