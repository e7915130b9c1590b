"""What is wrong with groups of holders, or with samples that parties name: one clear error each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from psl_flower.errors import AlignmentError, ConfigError, PslError
from psl_flower.flower import SplitLearning
from psl_flower.split import PartySide, Training, fit_local
from tests import parties_in_process as usual
from tests import plain_groups as groups
from tests import plain_split as plain

ADAM = torch.optim.Adam
N = plain.NUM_SAMPLES


def party_with(**changes: dict[str, Any]) -> Any:
    def party(name: str, context: Any) -> PartySide:
        kind, samples = name.partition("@")[0], groups.held()[name]
        told = {"net": plain.net(kind), "data": plain.columns()[kind][samples], "optimizer": ADAM, "samples": samples}
        return PartySide(**(told | changes.get(name.replace("@", "_"), {})))

    return party


def fit(party: Any, **changes: Any) -> Any:
    return fit_local(party, Training(plain.Top, groups.PARTIES, **usual.arguments(ADAM, epochs=1, **changes)))


@pytest.mark.parametrize(
    ("parties", "words"),
    [
        ({"scan@": (2,)}, "parties: 'scan@': expected a name"),
        ({"scan@a@b": (2,)}, "parties: 'scan@a@b': expected a name"),
        ({"top@a": (2,)}, "parties: 'top@a': expected a name"),
        ({"scan@a": (2,), "scan": (2,)}, "parties: 'scan@a' and 'scan': name the group of each holder"),
        ({"scan": (2,), "scan@a": (2,)}, "parties: 'scan' and 'scan@a': name the group of each holder"),
        (
            {"scan@a": (2,), "scan@b": (3,)},
            "parties: 'scan@a' and 'scan@b' are holders of one party; give them the same",
        ),
    ],
)
def test_names(parties: dict[str, tuple[int, ...]], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        Training(plain.Top, parties, **usual.arguments(ADAM))


@pytest.mark.parametrize(
    ("side", "error", "words"),
    [
        ({"samples": range(4)}, AlignmentError, "party 'fare@north': samples: expected the number of a sample for each of "
         "9 rows, got int64 (4,)"),
        ({"samples": np.arange(9) / 2}, AlignmentError, "for each of 9 rows, got float64 (9,)"),
        ({"samples": [0, 0, *range(1, 8)]}, AlignmentError, "party 'fare@north': samples: 1 occur more than once"),
        ({"samples": range(-1, 8)}, AlignmentError, "party 'fare@north': samples: expected numbers from 0, got -1"),
        ({"samples": range(52, 61)}, AlignmentError, "party 'fare@north' names sample 60, but there are 60"),
        ({"samples": range(9), "ids": range(9)}, ConfigError, "samples and ids both say which sample a row is"),
        ({"present": np.ones(9, bool)}, ConfigError, "party 'fare@north': present: rows that name their samples are all"),
        ({"samples": None}, AlignmentError, "party 'fare@north' holds 9 samples, but there are 60 labels"),
        ({"samples": [], "data": torch.zeros(0, 5)}, AlignmentError, "party 'fare@north': it has no rows"),
        ({"samples": range(N), "data": plain.columns()["fare"]}, AlignmentError,
         "'fare@north' and 'fare@south' both have 51 of the same samples; a sample of 'fare' has one holder"),
        ({"samples": None, "data": plain.columns()["fare"]}, AlignmentError,
         "'fare@north' and 'fare@south' both have 51 of the same samples"),
    ],
)  # fmt: skip
def test_what_a_holder_brings(side: dict[str, Any], error: type[PslError], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        fit(party_with(fare_north=side))


def test_samples_that_nobody_has_are_missing(tmp_path: Path) -> None:
    few = {
        "samples": groups.held()["fare@south"][:40],
        "data": plain.columns()["fare"][groups.held()["fare@south"][:40]],
    }
    party = party_with(fare_south=few)
    holding = groups.held() | {"fare@south": groups.held()["fare@south"][:40]}
    result = fit_local(party, Training(plain.Top, groups.PARTIES, **usual.arguments(ADAM)))
    found = plain.snapshot(result.nets, result.top) | {"outputs": result.outputs}
    assert plain.differing(found, groups.plain_loop(ADAM, holding)) == []
    dropped = fit_local(party, Training(plain.Top, groups.PARTIES, **usual.arguments(ADAM, missing="drop")))
    lacking = groups.held()["fare@south"][40:]
    expected = groups.plain_loop(
        ADAM, holding, pool=np.setdiff1d(plain.TRAIN, lacking), held_out=np.setdiff1d(plain.VALID, lacking)
    )
    assert len(expected["outputs"]) < len(plain.VALID)
    found = plain.snapshot(dropped.nets, dropped.top) | {"outputs": dropped.outputs}
    assert plain.differing(found, expected) == []


def test_holders_that_say_by_a_mask_what_they_have() -> None:
    def party(name: str, context: Any) -> PartySide:
        kind, present = name.partition("@")[0], np.zeros(N, bool)
        present[groups.held()[name]] = True
        return PartySide(plain.net(kind), plain.columns()[kind], ADAM, present=present)

    result = fit_local(party, Training(plain.Top, groups.PARTIES, **usual.arguments(ADAM)))
    found = plain.snapshot(result.nets, result.top) | {"outputs": result.outputs}
    assert plain.differing(found, groups.plain_loop(ADAM)) == []


def test_averaging_that_is_not_allowed(tmp_path: Path) -> None:
    yes = {name.replace("@", "_"): {"averaged": True} for name in groups.HOLDERS}
    with pytest.raises(ConfigError, match=re.escape("average_every: no party has several holders; name them")):
        usual.training(average_every=4)
    with pytest.raises(ConfigError, match="average_every: expected 0 or more, got -1"):
        usual.training(average_every=-1)
    with pytest.raises(ConfigError, match="average_every: party 'fare@south' does not allow it, or has no weights"):
        fit(party_with(**(yes | {"fare_south": {}})), average_every=4)
    other = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Linear(3, 6))
    words = "party 'fare@north' has a model of 262 numbers, party 'fare@south' one of 42; give the holders of a party"
    with pytest.raises(ConfigError, match=words):
        fit(party_with(**(yes | {"fare_south": {"averaged": True, "net": other}})), average_every=4)
    fit(party_with(**yes), average_every=4, workdir=tmp_path)
    with pytest.raises(PslError, match="average_every: the training began with 4, it is now 3"):
        fit(party_with(**yes), average_every=3, workdir=tmp_path)


def test_a_holder_that_allows_it_sends_no_weights_unasked() -> None:
    yes = {name.replace("@", "_"): {"averaged": True} for name in groups.HOLDERS}
    result = fit(party_with(**yes))
    assert result.rounds[-1]["bytes_up"] == fit(party_with()).rounds[-1]["bytes_up"]
    assert result.rounds[-1]["bytes_up"] < fit(party_with(**yes), average_every=4).rounds[-1]["bytes_up"]


class Masked(plain.Top):
    """Notes the masks that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[torch.Tensor] = []

    def forward(self, *outputs: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        assert present.shape == (len(outputs[0]), 3)
        self.masks.append(present)
        return super().forward(*outputs)


def test_the_mask_is_of_parties_not_of_holders() -> None:
    few = {"samples": [*range(9)], "data": plain.columns()["fare"][:9]}
    nobody = {"samples": [*range(9, 49)], "data": plain.columns()["fare"][9:49]}
    top = Masked()
    told = usual.arguments(ADAM, epochs=1, train=range(4, 20), valid=[3, 20, 55])
    fit_local(party_with(fare_north=few, fare_south=nobody), Training(top, groups.PARTIES, **told))
    assert top.masks[-1].tolist() == [[True] * 3, [True] * 3, [True, False, True]]


def test_a_holder_that_comes_back_with_other_samples(tmp_path: Path) -> None:
    fit(party_with(), workdir=tmp_path)
    swapped = groups.held()
    north, south = swapped["fare@north"].copy(), swapped["fare@south"].copy()
    north[0], south[0] = south[0], north[0]
    changes = {
        f"fare_{group}": {"samples": samples, "data": plain.columns()["fare"][samples]}
        for group, samples in (("north", north), ("south", south))
    }
    with pytest.raises(AlignmentError, match="which party has which of them, are others than when this training began"):
        fit(party_with(**changes), workdir=tmp_path)
    fit(party_with(), workdir=tmp_path)  # those of before do


def test_a_node_that_is_no_holder_of_this_run(tmp_path: Path) -> None:
    grid = usual.PartiesGrid(party_with(), tmp_path / "state", [*groups.HOLDERS[:-1], "family@west"])
    told = usual.arguments(ADAM, epochs=1, node_timeout_s=3.0, workdir=tmp_path / "run")
    with pytest.raises(
        PslError, match="node-config party: 'family@west' is none of this run's parties: person, fare@north"
    ):
        grid.fit(SplitLearning(plain.Top, groups.PARTIES, **told))
