"""Faults of training without a network: garbage numbers, wrong frames, a full disk, damaged checkpoints, a stop.

Each ends in one error that says what and where, leaves the last checkpoint whole, and a healthy run goes on from it.
"""

from __future__ import annotations

import errno
import os
import re

import pytest
import torch

from psl_flower.engine.exchange import Up, down_of, up_of
from psl_flower.engine.local import LocalExchange
from psl_flower.errors import FrameMismatch, ProtocolError, RunError, TrainingError, TrainingStopped
from psl_flower.wire.frames import decode_frame, frame_bytes
from tests.engines import Federation, differences, settings


@pytest.fixture(scope="module")
def config():
    return settings(cut="stem", uppers=2, steps_per_round=4)


@pytest.fixture(scope="module")
def oracle(config, stores_for, tmp_path_factory):
    """Return the parties of an undisturbed run after its last step; test_exact.py holds such a run to one process."""
    parts = Federation(config, stores_for(config), tmp_path_factory.mktemp("undisturbed"), small=True)
    parts.run(stop_step=4)
    return parts


@pytest.fixture
def make(config, stores_for, tmp_path):
    """Return a function that makes the parties of the run, in the same folder every time."""
    return lambda **options: Federation(
        config, stores_for(config), tmp_path, **({"checkpoint_every": 2, "small": True} | options)
    )


def resumes(make, oracle):
    """Check that fresh parties go on from the checkpoint of step 2 to the weights of an undisturbed run."""
    healthy = make()
    assert healthy.resume() == 2
    healthy.run(stop_step=4)
    return differences(oracle.snapshot(), healthy.snapshot()) == [] and healthy.losses == oracle.losses[2:]


class Tampering(LocalExchange):
    """Changes the answer of Upper 1 to the plan of one step."""

    def __init__(self, parts, step, change) -> None:
        super().__init__(parts.uppers, parts.wire)
        self._parts, self._step, self._change = parts, step, change

    def exchange(self, down, shapes, meanwhile):
        plan = down[1].turn.plan
        if plan is None or plan.id.step != self._step:
            return super().exchange(down, shapes, meanwhile)
        meanwhile()
        answers = {}
        for m, engine in self._parts.uppers.items():
            up = engine.handle(down[m])
            up = self._change(up) if m == 1 else up
            expected = self._parts.wire.expect_answer(down[m].turn, shapes[m])
            reply = bytearray(frame_bytes(self._parts.wire.frame(*up)))
            answers[m] = up_of(decode_frame(reply, expected, peer=f"Upper {m}"))
        return answers


class Blind(LocalExchange):
    """Must not be asked for an evaluation."""

    def __init__(self, parts) -> None:
        super().__init__(parts.uppers, parts.wire)

    def exchange(self, down, shapes, meanwhile):
        assert all(each.turn.plan is None or each.turn.plan.mode == "train" for each in down.values())
        return super().exchange(down, shapes, meanwhile)


def with_nan(up: Up) -> Up:
    up.tensor[0, 0, 0, 0, 0] = float("nan")
    return up


def one_sample_less(up: Up) -> Up:
    return up._replace(tensor=up.tensor[:-1])


def of_another_step(up: Up) -> Up:
    answer = type(up.answer)(type(up.answer.id)(0, 2))
    return up._replace(answer=answer)


SPOILT = {
    with_nan: (
        TrainingError,
        "step 3: the loss is nan; Upper 1 sent values that are not finite; the last checkpoint is kept. Begin anew",
    ),
    one_sample_less: (
        FrameMismatch,
        "Upper 1: Smashed frame: expected float32 (4, 2, 8, 8, 64), received float32 (3, 2, 8, 8, 64)",
    ),
    of_another_step: (ProtocolError, "Upper 1: Smashed frame: expected StepId(epoch=0, step=3, attempt=0), received"),
}


@pytest.mark.parametrize("change", SPOILT, ids=lambda change: change.__name__)
def test_a_spoilt_answer_stops_and_the_run_resumes(change, make, oracle):
    assert SPOILT
    parts = make()
    kind, message = SPOILT[change]
    with pytest.raises(kind, match=re.escape(message)) as caught:
        parts.run(Tampering(parts, 3, change))
    assert type(caught.value) is kind
    assert parts.checkpoints.steps() == [2]
    assert resumes(make, oracle)


def test_weights_that_are_not_finite_are_never_committed(make, oracle):
    """The loss of step 3 is finite, its update is not: without the check the run's last checkpoint would be useless."""
    parts = make()

    class Overflowing(LocalExchange):
        def exchange(self, down, shapes, meanwhile):
            trained = down[1].turn.gradient_of
            if trained is not None and trained.step == 3:
                down[1].tensor.fill_(float("inf"))
            return super().exchange(down, shapes, meanwhile)

    with pytest.raises(TrainingError, match="step 4: weights or momentum are not finite; the last checkpoint is kept"):
        parts.run(Overflowing(parts.uppers, parts.wire), stop_step=4)
    assert parts.checkpoints.steps() == [2]
    assert resumes(make, oracle)


class Repeating(LocalExchange):
    """Delivers the gradients of step 1 twice, as a transport that repeats a lost message would."""

    def exchange(self, down, shapes, meanwhile):
        answers = super().exchange(down, shapes, meanwhile)
        trained = down[0].turn.gradient_of
        if trained is not None and trained.step == 1:
            frame = decode_frame(
                bytearray(frame_bytes(self.wire.frame(*down[0]))),
                self.wire.expect_turn(tuple(down[0].tensor.shape)),
            )
            self._parties[0].handle(down_of(frame))
        return answers


def test_a_repeated_gradient_is_refused(make, oracle):
    parts = make()
    with pytest.raises(
        ProtocolError,
        match=re.escape(
            "expected the gradient of StepId(epoch=0, step=2, attempt=0), received that of StepId(epoch=0, step=1"
        ),
    ):
        parts.run(Repeating(parts.uppers, parts.wire))
    # It came before the Lower committed step 2; the Uppers had saved it, which alone is no commit.
    assert parts.checkpoints.steps() == []
    assert parts.uppers[0].step == 2


def test_a_plan_of_the_wrong_step_is_refused(make):
    parts = make()
    parts.uppers[1].step = 1
    with pytest.raises(ProtocolError, match="expected the plan of step 1, received that of step 0"):
        parts.run()


def test_a_stop_leaves_a_checkpoint(make, oracle):
    parts = make(stop_requested=lambda: len(parts.losses) == 2, checkpoint_every=0)
    with pytest.raises(TrainingStopped, match="stopped after step 2, as asked; a checkpoint of it is written"):
        parts.run(stop_step=4)
    assert parts.checkpoints.steps() == [2]
    assert resumes(make, oracle)


def test_a_stop_at_the_end_of_a_round_is_one_without_evaluation(make, oracle):
    parts = make(stop_requested=lambda: len(parts.losses) == 2)
    with pytest.raises(TrainingStopped, match="stopped after step 2"):
        parts.run(stop_step=2, exchange=Blind(parts))
    assert parts.checkpoints.steps() == [2]
    with pytest.raises(TrainingStopped, match="stopped after step 2"):
        parts.run(stop_step=4)  # nor is another step begun
    assert resumes(make, oracle)


def test_a_stop_at_the_last_step_is_a_complete_run(make):
    parts = make(stop_requested=lambda: len(parts.losses) == 4)
    parts.run(stop_step=4)
    assert parts.checkpoints.steps()[-1] == 4


PARTIES = {"lower": "lower", "upper": "upper-1"}


@pytest.mark.parametrize("party", PARTIES.values(), ids=PARTIES.keys())
def test_a_full_disk_keeps_the_old_checkpoint(party, make, oracle, monkeypatch):
    assert PARTIES
    parts = make()
    parts.run(stop_step=2)
    kept = {path: path.read_bytes() for path in parts.folder.rglob("*.pt")}
    assert len(kept) == 3
    real = os.fsync

    def full(descriptor):
        if f"/{party}/" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(
            RunError, match=rf"{party}/step-00000004\.pt: cannot be written: No space left on device; free"
        ):
            parts.run(stop_step=4)
    assert parts.checkpoints.steps() == [2]
    assert {path: path.read_bytes() for path in kept} == kept
    assert not list((parts.folder / party).glob(".*"))
    assert resumes(make, oracle)


def damage(path, how):
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        place = len(content) // 2
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])


@pytest.mark.parametrize("how", ["truncated", "empty", "one bit flipped"])
def test_a_damaged_checkpoint_is_refused(how, make):
    parts = make()
    parts.run(stop_step=2)
    for path in parts.folder.rglob("step-00000002.pt"):
        damage(path, how)
    fresh = make()
    with pytest.raises(RunError, match=r"lower/step-00000002\.pt: cannot be read: the file is damaged"):
        fresh.lower.go_to(2, fresh.checkpoints)
    with pytest.raises(RunError, match=r"upper-1/step-00000002\.pt: cannot be read: the file is damaged"):
        fresh.uppers[1].go_to(2)
    # What was there before is untouched.
    untouched = make()
    assert differences(untouched.snapshot(), fresh.snapshot()) == []


def test_a_checkpoint_of_another_upper_is_refused(make):
    parts = make()
    parts.run(stop_step=2)
    state = parts.uppers[0].state()
    with pytest.raises(RunError, match="the checkpoint is not of Upper 1 and this dataset"):
        parts.uppers[1].restore(state)
    assert torch.isfinite(parts.uppers[1].model.conv1.weight).all()
