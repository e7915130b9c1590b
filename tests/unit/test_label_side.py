"""The party that has the labels: what it brings, what it is asked, and what is refused; one clear error each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.engine.exchange import WireFormat
from psl_flower.engine.stateless import stateless
from psl_flower.errors import (
    AlignmentError,
    ConfigError,
    DataError,
    FrameMismatch,
    ProtocolError,
    PslError,
    TrainingError,
)
from psl_flower.split import LabelSide, PartySide, fit_local
from psl_flower.split.labels import LabelEngine, RemoteLabels
from psl_flower.split.sent import Sent
from psl_flower.wire.frames import Frame, decode_frame, frame_bytes
from psl_flower.wire.messages import Keep, Saved, Step
from psl_flower.wire.mid_step import Judge, Judged, Scored
from psl_flower.wire.plan import Plan, StepId, pack_samples
from tests import parties_in_process as parties
from tests import plain_split as plain
from tests import plain_u_shape as u

ADAM = torch.optim.Adam
WIRE = WireFormat()
OUTPUTS = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))


def fit(party: Any = None, **changes: Any) -> Any:
    return fit_local(party or u.party_with(ADAM, "clinic"), u.training(ADAM, "clinic", epochs=1, **changes))


def both(name: str) -> tuple[PartySide, LabelSide]:
    return PartySide(plain.net(name), plain.columns()[name], ADAM), u.label_side(ADAM)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"loss": plain.bce}, ConfigError, "loss: party 'clinic' has the labels; its LabelSide takes these"),
        ({"loss": plain.bce, "metrics": {"accuracy": plain.accuracy}}, ConfigError, "loss and metrics: party 'clinic' has"),
        ({"labels": plain.labels()}, ConfigError, "loss: the server has the labels, so give a loss; or name the party"),
        ({"labels": None}, ConfigError, "the server: labels: expected a tensor or an array of numbers"),
        ({"labels": "../x"}, ConfigError, "labels: '../x': expected the name of a party"),
        ({"labels": "top"}, ConfigError, "labels: 'top': expected the name of a party"),
        ({"labels": "ward"}, ConfigError, "party 'ward': expected the function to return a PartySide, got NoneType"),
        ({"labels": "fare"}, ConfigError, "party 'fare': the server expects the labels of it; let its function return"),
        ({"valid": [3]}, ConfigError, "valid: 1 of its samples are in train, too"),
        ({"valid": [-1]}, ConfigError, "valid: expected sample numbers from 0, got -1"),
        ({"valid": [60]}, AlignmentError, "train or valid names sample 60, but the parties hold 60, counted from 0"),
        ({"train": np.arange(61) < 40}, AlignmentError, "party 'person' holds 60 samples, but the server's ids or masks "
         "are of 61"),
        ({"ids": range(61)}, AlignmentError, "party 'person' holds 60 samples, but the server's ids or masks are of 61"),
        ({"ids": range(60)}, AlignmentError, "party 'person' gives no ids for its samples, the server gives its own"),
        ({"top": nn.Flatten}, TrainingError, "top raised TypeError"),
        ({"top": lambda: u.Body().double()}, TrainingError, "top raised RuntimeError"),
    ],
)  # fmt: skip
def test_what_the_server_says(changes: dict[str, Any], error: type[PslError], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        fit(**changes)


class Whole(nn.Module):
    def forward(self, *outputs: torch.Tensor) -> torch.Tensor:
        return outputs[0].mean()


class Doubles(nn.Module):
    def forward(self, *outputs: torch.Tensor) -> torch.Tensor:
        return outputs[0].double()


@pytest.mark.parametrize(
    ("top", "words"),
    [
        (Whole, "top: expected it to return tensors with one row per sample, got Tensor"),
        (Doubles, "top: expected its net to return float32 numbers, got torch.float64"),
    ],
)
def test_what_the_servers_model_returns(top: type[nn.Module], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        fit(top=top)


def diverging(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return plain.bce(outputs, targets) * torch.nan


def raising(*_: object) -> float:
    raise KeyError("age")


@pytest.mark.parametrize(
    ("side", "error", "words"),
    [
        ({"labels": torch.zeros(59)}, AlignmentError, "party 'person' holds 60 samples, party 'clinic' (labels) 59; all"),
        ({"labels": torch.tensor(1.0)}, ConfigError, "party 'clinic' (labels): labels: expected one row per sample"),
        ({"ids": range(60)}, AlignmentError, "party 'clinic' (labels) gives other ids for its samples, the server gives none"),
        ({"ids": [7] * 60}, AlignmentError, "party 'clinic' (labels): 59 ids occur more than once"),
        ({"head": nn.Linear(5, 1)}, TrainingError, "party 'clinic' (labels): its head raised RuntimeError"),
        ({"loss": lambda outputs, targets: outputs}, TrainingError, "its loss: expected one number, got a tensor of shape"),
        ({"loss": diverging}, TrainingError, "step 0: the loss is nan; the last checkpoint is kept"),
        ({"loss": raising}, TrainingError, "party 'clinic' (labels): its loss raised KeyError: 'age'"),
        ({"metrics": {"loss": plain.accuracy}}, ConfigError, "metrics: loss: a round's record has that name already"),
        ({"metrics": {"age": raising}}, TrainingError, "the metric 'age' raised KeyError: 'age' (after step 6)"),
        ({"on_evaluated": raising}, TrainingError, "party 'clinic' (labels): its on_evaluated raised KeyError: 'age'"),
        ({"optimizer": ADAM(nn.Linear(1, 1).parameters())}, ConfigError, "parameters that are not of its model"),
    ],
)  # fmt: skip
def test_what_the_holder_brings(side: dict[str, Any], error: type[PslError], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        fit(u.party_with(ADAM, "clinic", **side))


@pytest.mark.parametrize("labels", [plain.labels(), "clinic"])
def test_a_party_that_sends_values_that_are_not_finite_is_named(labels: Any) -> None:
    def party(name: str, context: Any) -> Any:
        if name == "clinic":
            return u.label_side(ADAM)
        data = plain.columns()[name].clone()
        data[:] = torch.nan if name == "family" else data
        return PartySide(plain.net(name), data, ADAM)

    train = u.training(ADAM, "clinic", epochs=1) if labels == "clinic" else parties.training(ADAM, epochs=1)
    words = r"step 0: the loss is nan.*; party 'family' sent values that are not finite"
    with pytest.raises(TrainingError, match=words):
        fit_local(party, train)


def test_labels_given_twice() -> None:
    party = u.party_with(ADAM, "family")
    usual = {"labels": plain.labels(), "loss": plain.bce}
    words = "party 'family' brings labels, but the server has its own; give the server labels='family', or return no"
    with pytest.raises(ConfigError, match=re.escape(words)):
        fit(party, **usual)


def test_two_holders() -> None:
    usual = u.party_with(ADAM, "clinic")
    words = "party 'family' brings labels, but the server expects them of party 'clinic'; only one may have them"
    with pytest.raises(ConfigError, match=re.escape(words)):
        fit(lambda name, context: both(name) if name == "family" else usual(name, context))


def test_a_holder_that_brings_inputs_nobody_asked_for() -> None:
    def party(name: str, context: Any) -> Any:
        side = PartySide(nn.Linear(3, 3), plain.columns()["person"], ADAM)
        return (side, u.label_side(ADAM)) if name == "clinic" else u.party_with(ADAM, "clinic")(name, context)

    with pytest.raises(ConfigError, match="party 'clinic' brings inputs, but the server's parties do not name it"):
        fit(party)


@pytest.mark.parametrize("brings", [(), (1, 2), "twice"])
def test_a_party_that_brings_something_else(brings: Any) -> None:
    def party(name: str, context: Any) -> Any:
        return (u.label_side(ADAM), u.label_side(ADAM)) if brings == "twice" else brings

    with pytest.raises(ConfigError, match="party 'person': expected the function to return a PartySide, got"):
        fit(party)


def test_either_order_will_do() -> None:
    usual = u.party_with(ADAM, "family")

    def party(name: str, context: Any) -> Any:
        found = usual(name, context)
        return found[::-1] if isinstance(found, tuple) else found

    results = [fit_local(each, u.training(ADAM, "family", epochs=1)) for each in (usual, party)]
    assert plain.differing(*map(u.local_weights, results)) == []


def test_a_training_resumed_with_other_labels(tmp_path: Path) -> None:
    fit(workdir=tmp_path)
    with pytest.raises(PslError, match="labels: the training began with 'clinic', it is now 'family'"):
        fit_local(u.party_with(ADAM, "family"), u.training(ADAM, "family", epochs=1, workdir=tmp_path))


# What a holder is asked, frame by frame.


def engine(folder: Path, **changes: Any) -> LabelEngine:
    torch.manual_seed(3)
    return LabelEngine(
        3, "clinic", Sent(((8,),)), u.label_side(ADAM, **changes), Checkpoints(folder), evaluate_batch_size=256
    )


def judge(step: int = 0, mode: Any = "train", samples: Any = (4, 9, 1)) -> Judge:
    return Judge(Plan(StepId(0, step), mode, 0.01, pack_samples(samples), 5))


def send(party: Any, message: Any, tensor: torch.Tensor | None = OUTPUTS, expected: Any = None) -> Frame:
    sent = frame_bytes(WIRE.frame(message, tensor))
    return party.reply(decode_frame(sent, expected or party.expects(WIRE)), WIRE)


def weights(party: LabelEngine) -> list[torch.Tensor]:
    return [value.clone() for value in party.head.state_dict().values()]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(left, right, strict=True))


def test_a_step_and_an_evaluation(tmp_path: Path) -> None:
    party = engine(tmp_path)
    before = weights(party)
    answer = send(party, judge())
    assert isinstance(answer.message, Judged)
    assert answer.tensor.shape == OUTPUTS.shape
    assert party.step == 1
    after = weights(party)
    assert not same(before, after)
    scored = send(party, judge(1, "evaluate")).message
    assert isinstance(scored, Scored)
    assert set(scored.figures) == {"valid_loss", "accuracy"}
    assert same(weights(party), after)  # BatchNorm's statistics among them
    assert party.step == 1


@pytest.mark.parametrize(
    ("message", "tensor", "error", "words"),
    [
        (judge(1), OUTPUTS, ProtocolError, "party 'clinic' (labels) has applied 0 steps, expected 1"),
        (judge(1, "evaluate"), OUTPUTS, ProtocolError, "has applied 0 steps, expected 1"),
        (Keep(1), None, ProtocolError, "has applied 0 steps, expected 1"),
        (judge(samples=(4, 60, 1)), OUTPUTS, DataError, "party 'clinic' (labels): asked for a sample outside its 60"),
        (judge(samples=(4, -1, 1)), OUTPUTS, DataError, "asked for a sample outside its 60"),
        (judge(samples=(4, 1)), OUTPUTS, FrameMismatch, "Judge frame: expected float32 (2, 8), received float32 (3, 8)"),
        (judge(), OUTPUTS[:, :7], FrameMismatch, "Judge frame: expected float32 (3, 8), received float32 (3, 7)"),
        (Step(), None, ProtocolError, "expected Judge or Keep or Finish, received Step"),
    ],
)  # fmt: skip
def test_what_a_holder_refuses(
    message: Any, tensor: torch.Tensor | None, error: type[PslError], words: str, tmp_path: Path
) -> None:
    party = engine(tmp_path)
    before = weights(party)
    with pytest.raises(error, match=re.escape(words)):
        send(party, message, tensor)
    assert party.step == 0
    assert same(weights(party), before)
    send(party, judge())  # a proper one is answered afterwards
    assert party.step == 1


def test_a_step_is_applied_once_or_not_at_all(tmp_path: Path) -> None:
    """A message that comes twice is refused by a process that lives on, and answered alike by one that starts anew."""
    party = engine(tmp_path / "stream")
    send(party, judge())
    with pytest.raises(ProtocolError, match="has applied 1 steps, expected 0"):
        send(party, judge())

    def single(step: int, message: Any, tensor: torch.Tensor | None = OUTPUTS, saved: int | None = None) -> Frame:
        host = stateless(engine(tmp_path / "flower"), tmp_path / "flower" / "live.pt")
        return send(host, message, tensor, host.expects(WIRE, step, saved))

    first = [single(step, judge(step)) for step in range(2)]
    assert single(2, Keep(2), None).message == Saved(2)
    third = [single(2, judge(2)) for _ in range(2)]  # the second time from the checkpoint
    assert torch.equal(third[0].tensor, third[1].tensor)
    with pytest.raises(PslError, match="step 1"):
        single(1, judge(1))  # there is no way back to a step that is not committed
    again = engine(tmp_path / "other")
    expected = [send(again, judge(step)) for step in range(3)]
    found = [*first, third[0]]
    assert all(torch.equal(left.tensor, right.tensor) for left, right in zip(found, expected, strict=True))


def test_a_checkpoint_of_another_party_or_head(tmp_path: Path) -> None:
    party = engine(tmp_path)
    state = party.state()
    with pytest.raises(PslError, match="the checkpoint is not of party 'clinic'"):
        party.restore(state | {"upper": 2})
    with pytest.raises(PslError, match="the checkpoint is of another network"):
        party.restore(state | {"model": nn.Linear(2, 1).state_dict()})


def test_figures_cannot_overwrite_a_rounds_record() -> None:
    class Holder:
        wire = WIRE

        def carry(self, frames: Any, expected: Any, meanwhile: Any) -> dict[int, Frame]:
            return {3: Frame(Scored({"valid_loss": 0.5, "step": 7.0}))}

    exchange: Any = Holder()
    with pytest.raises(ProtocolError, match="the label holder: expected metrics of other names, received \\['step'\\]"):
        RemoteLabels(exchange, 3).score(judge(0, "evaluate").plan, OUTPUTS)
