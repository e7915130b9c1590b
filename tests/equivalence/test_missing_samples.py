"""Samples that a party lacks, dropped or as zeros with a mask: bit-equal to plain PyTorch, in one process and over nodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from psl_flower.errors import AlignmentError, ConfigError
from psl_flower.split import PartySide, Training, fit_local
from psl_flower.wire.plan import pack_mask, unpack_mask
from tests import parties_in_process as usual
from tests import plain_split as plain
from tests import plain_u_shape as u

pytestmark = pytest.mark.usefixtures("one_thread", "answered_soon")

ADAM = torch.optim.Adam
# Of training samples and of the evaluation's, one of them lacking at two parties.
LACKING = {"fare": [3, 8, 44], "family": [8, 20, 21, 50, 59]}


def left(samples: np.ndarray) -> np.ndarray:
    return np.setdiff1d(samples, np.concatenate([*LACKING.values()]))


def data() -> dict[str, torch.Tensor]:
    """Return the columns, NaN where a party has nothing: whoever read that would spoil all weights."""
    columns = plain.columns()
    for name, rows in LACKING.items():
        columns[name][rows] = torch.nan
    return columns


def party(name: str, context: Any) -> PartySide:
    present = np.ones(plain.NUM_SAMPLES, bool)
    present[LACKING.get(name, [])] = False
    return PartySide(plain.net(name), data()[name], ADAM, present=present)


def weights(result: Any) -> dict[str, torch.Tensor]:
    return plain.snapshot(result.nets, result.top) | {"outputs": result.outputs}


def dropped() -> dict[str, torch.Tensor]:
    return plain.plain_loop(ADAM, data=data(), pool=left(plain.TRAIN), held_out=left(plain.VALID))


STEPS = 3 * -(-len(left(plain.TRAIN)) // 8)


def test_dropped_from_training_and_evaluation() -> None:
    result = fit_local(party, usual.training(missing="drop"))
    assert result.rounds[-1]["step"] == STEPS
    assert plain.differing(weights(result), dropped()) == []
    assert len(result.outputs) == 14
    assert plain.differing(plain.snapshot(result.nets, result.top), plain.snapshot(*whole())) != []


def whole() -> tuple[dict[str, nn.Module], nn.Module]:
    result = fit_local(usual.party_with(ADAM), usual.training())
    return result.nets, result.top


@pytest.mark.parametrize("transport", ["stream", "flower"])
def test_dropped_over_nodes_and_resumed(transport: str, tmp_path: Path) -> None:
    grid = usual.PartiesGrid(party, tmp_path / "state")
    options = {"missing": "drop", "transport": transport, "workdir": tmp_path / "run"}

    def fail(record: Any) -> None:
        if (record["event"], record["step"]) == ("step", 8):
            raise RuntimeError("power cut")

    with pytest.raises(Exception, match="power cut"):
        grid.fit(usual.over_nodes(callbacks=[fail], **options))
    strategy = usual.over_nodes(**options)
    result = grid.fit(strategy)
    assert plain.differing(usual.weights_of(strategy, result, tmp_path, STEPS), dropped()) == []
    grid.begin()
    again = usual.over_nodes(**options)
    again.fit(grid)  # it is over, and stays so
    assert torch.equal(again.predict(grid, left(plain.VALID)), dropped()["outputs"])
    grid.join()


def test_dropped_where_a_party_has_the_labels(tmp_path: Path) -> None:
    """The holder has labels of samples that others lack; it is not asked for them."""
    kept = u.Kept()

    def shaped(name: str, context: Any) -> Any:
        return u.label_side(ADAM, on_evaluated=kept) if name == "clinic" else party(name, context)

    found = fit_local(shaped, u.training(ADAM, "clinic", missing="drop"))
    assert np.array_equal(kept.rows, left(plain.VALID))
    grid = usual.PartiesGrid(shaped, tmp_path / "state", u.seats("clinic"))
    result = grid.fit(u.over_nodes(ADAM, "clinic", missing="drop", workdir=tmp_path / "run"))
    assert plain.differing(u.node_weights(result, tmp_path, "clinic", kept, STEPS), u.local_weights(found)) == []


class Masked(plain.Top):
    """Doubles what it has of a sample for which a party lacks."""

    def forward(self, *outputs: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        assert present.dtype == torch.bool
        assert present.shape == (len(outputs[0]), 3)
        scale = 1.0 + (~present).any(1).float()
        return super().forward(*(part * scale.view(-1, *[1] * (part.dim() - 1)) for part in outputs))


class Seen(Masked):
    """The same, of zeros that it sees for itself."""

    def forward(self, *outputs: torch.Tensor) -> torch.Tensor:
        present = torch.stack([(part.flatten(1) != 0).any(1) for part in outputs], 1)
        return super().forward(*outputs, present=present)


class Holed(nn.Module):
    """Runs a net on the rows that are there."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.net, self.shape = plain.net(name), plain.PARTIES[name]

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        there = ~rows.isnan().any(1)
        zeros = torch.zeros(len(rows), *self.shape)
        return torch.index_put(zeros, (there.nonzero()[:, 0],), self.net(rows[there])) if there.any() else zeros


def masked(top: Callable[[], nn.Module]) -> dict[str, torch.Tensor]:
    found = plain.plain_loop(ADAM, Holed, top, data=data())
    return {name.replace(".net.", "."): value for name, value in found.items()}


@pytest.mark.parametrize("transport", ["local", "stream", "flower"])
def test_zeros_and_a_mask(transport: str, tmp_path: Path) -> None:
    told = usual.arguments(ADAM)
    if transport == "local":
        found = weights(fit_local(party, Training(Masked, plain.PARTIES, **told)))
    else:
        grid = usual.PartiesGrid(party, tmp_path / "state")
        strategy = usual.SplitLearning(Masked, plain.PARTIES, **told, transport=transport, workdir=tmp_path / "run")
        found = usual.weights_of(strategy, grid.fit(strategy), tmp_path, 18)
    assert plain.differing(found, masked(Seen)) == []
    assert plain.differing(found, masked(plain.Top)) != []  # without the mask


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing: expected 'zeros' or 'drop', got 'mean'"):
        usual.training(missing="mean")

    def nothing(name: str, context: Any) -> PartySide:
        return PartySide(plain.net(name), plain.columns()[name], ADAM, present=np.arange(60) > 41)

    with pytest.raises(ConfigError, match="training needs 2 or more samples, the dataset has 1"):
        fit_local(nothing, usual.training(missing="drop"))
    fit_local(party, usual.training(missing="drop", workdir=tmp_path, epochs=1))
    with pytest.raises(Exception, match="left: the training began with 39, it is now 43"):
        fit_local(usual.party_with(ADAM), usual.training(missing="drop", workdir=tmp_path, epochs=1))


def test_a_party_that_lacks_others_on_coming_back_or_says_nonsense() -> None:
    made = usual.training(missing="drop")
    claims = {m: claim_of(name, m) for m, name in enumerate(plain.PARTIES)}
    made.take(claims)
    made.take(claims)
    with pytest.raises(AlignmentError, match="a party lacks other samples than when this training began"):
        made.take(claims | {0: msgspec.structs.replace(claims[0], missing=pack_mask(np.arange(60) < 2))})
    with pytest.raises(
        AlignmentError, match="party 'person': the samples that it lacks: expected a mask of 60 samples"
    ):
        made.take(claims | {0: msgspec.structs.replace(claims[0], missing=b"x")})


def claim_of(name: str, m: int) -> Any:
    from psl_flower.split.side import Reader

    return Reader(party(name, None), name).claim(m)


def test_masks_come_back_as_they_were() -> None:
    for number in (1, 7, 8, 9, 60):
        mask = np.random.default_rng(number).random(number) < 0.5
        assert np.array_equal(unpack_mask(pack_mask(mask), number), mask)
