"""With average-every all Uppers go on from the mean of their weights, at the same steps as in one process, bit by bit."""

from __future__ import annotations

import pytest
import torch

from psl_flower.engine import rounds
from psl_flower.engine.local import LocalExchange
from psl_flower.engine.upper import UpperEngine
from psl_flower.engine.upper_averaging import weight_vector
from psl_flower.errors import PeerLost, ProtocolError
from psl_flower.wire.messages import Average, Share
from tests.engines import (
    STEPS,
    Federation,
    Oracle,
    StatelessExchange,
    differences,
    monolith_snapshot,
    same_predictions,
    settings,
)

EVERY = 2
# These only with `make slow`.
SLOW = ("without Adaptation Net", "int8 on the wire", "augmented")
CASES = {
    "every two steps": {},
    "every step, overlapping, two Uppers": {"stride": (4, 4), "uppers": 2, "average_every": 1},
    "an interval that the round does not end with": {"average_every": 4},
    "without Adaptation Net": {"alpha": 0.0},
    "Adaptation Net elsewhere": {"adaptation_server": True},
    "int8 on the wire": {"wire_activations": "int8", "wire_gradients": "int8"},
    "autocast": {"autocast": True, "wire_activations": "bfloat16", "wire_gradients": "bfloat16"},
    "augmented": {"mixup": 0.2, "cutout": 4, "patch_dropout": 0.25},
}


def averaged(**changes):
    return settings(**({"average_every": EVERY} | changes))


@pytest.fixture(scope="module")
def oracle(stores_for):
    return Oracle(averaged(), stores_for(averaged()))


def local(parts):
    return LocalExchange(parts.parties, parts.wire)


def of_upper(snapshot, m):
    """Return what an Upper shares, by its own names."""
    return {
        name.removeprefix(f"uppers.{m}."): tensor
        for name, tensor in snapshot.items()
        if name.startswith(f"uppers.{m}.") and tensor.is_floating_point()
    }


@pytest.mark.parametrize(
    "changes", [pytest.param(CASES[case], id=case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES]
)
def test_averaging_is_bit_equal_to_one_process(changes, stores_for, tmp_path):
    config = averaged(**changes)
    stores = stores_for(config)
    whole, parts = Oracle(config, stores), Federation(config, stores, tmp_path)
    predictions = parts.run()
    assert differences(whole.after[STEPS], parts.snapshot()) == []
    assert parts.losses == whole.losses
    assert same_predictions(predictions, whole.predictions)


def test_uppers_are_alike_after_an_averaging_and_only_then(stores_for, tmp_path):
    parts = Federation(averaged(), stores_for(averaged()), tmp_path)
    taken = []
    for stop_step in (1, EVERY):
        parts.driver.run(local(parts), stop_step, evaluate=False)
        taken.append(parts.snapshot())
    apart, alike = taken
    assert differences(of_upper(apart, 0), of_upper(apart, 1)) != []
    assert differences(of_upper(alike, 0), of_upper(alike, 3)) == []
    # Momentum stays each one's own.
    momentum = [alike[f"momentum of uppers.{m}.conv1.weight"] for m in (0, 1)]
    assert not torch.equal(*momentum)


def test_the_mean_is_that_of_the_weights_the_step_led_to(stores_for, tmp_path):
    """Against the same run without averaging, whose weights after the first averaging step are what is shared there."""
    plain, parts = (
        Federation(averaged(average_every=every), stores_for(averaged()), tmp_path / str(every)) for every in (0, EVERY)
    )
    for federation in (plain, parts):
        federation.driver.run(local(federation), EVERY, evaluate=False)
    before, after = plain.snapshot(), parts.snapshot()
    for name in ("conv1.weight", "layer1.1.bn2.bias", "bn1.running_mean"):
        expected = torch.stack([before[f"uppers.{m}.{name}"].double() for m in range(4)]).mean(0)
        assert torch.allclose(after[f"uppers.2.{name}"].double(), expected, rtol=1e-6, atol=1e-8), name
        assert not torch.equal(after[f"uppers.2.{name}"], before[f"uppers.2.{name}"]), name
    # An averaging changes nothing of the Lower.
    assert torch.equal(after["lower.fc.weight"], before["lower.fc.weight"])


def test_without_averaging_the_comparison_differs(oracle, stores_for, tmp_path):
    parts = Federation(settings(), stores_for(settings()), tmp_path)
    parts.run()
    assert "uppers.0.conv1.weight" in differences(oracle.after[STEPS], parts.snapshot())


class Stubborn(UpperEngine):
    """Upper 0 keeps its own weights."""

    def _take_over(self, step, average_N):
        if self.store.meta.upper == 0:
            average_N = weight_vector(self.model)
        super()._take_over(step, average_N)


def test_an_upper_that_keeps_its_own_is_noticed(oracle, stores_for, tmp_path):
    parts = Federation(averaged(), stores_for(averaged()), tmp_path, make_engine=Stubborn)
    parts.driver.run(local(parts), STEPS, evaluate=False)
    assert "uppers.0.conv1.weight" in differences(oracle.after[STEPS], parts.snapshot())


def test_a_mean_without_one_upper_is_noticed(oracle, stores_for, tmp_path, monkeypatch):
    mean = rounds.mean
    monkeypatch.setattr(rounds, "mean", lambda rows: mean(rows[:-1]))
    parts = Federation(averaged(), stores_for(averaged()), tmp_path)
    parts.driver.run(local(parts), STEPS, evaluate=False)
    assert "uppers.0.conv1.weight" in differences(oracle.after[STEPS], parts.snapshot())


def test_uppers_that_forget_between_messages(oracle, stores_for, tmp_path):
    parts = Federation(averaged(), stores_for(averaged()), tmp_path)
    predictions = parts.run(StatelessExchange(parts))
    for engine in parts.uppers.values():
        engine.go_to(STEPS)
    assert differences(oracle.after[STEPS], parts.snapshot()) == []
    assert parts.losses == oracle.losses
    assert same_predictions(predictions, oracle.predictions)


class Backwards(LocalExchange):
    """The last Upper answers first, as it may over streams."""

    def carry(self, frames, expected, meanwhile):
        return dict(reversed(super().carry(frames, expected, meanwhile).items()))


def test_the_order_of_answers_does_not_matter(oracle, stores_for, tmp_path):
    """Sums of three and more numbers depend on their order, and a mean of weights is one."""
    parts = Federation(averaged(), stores_for(averaged()), tmp_path)
    assert len(parts.uppers) > 2
    parts.run(Backwards(parts.parties, parts.wire))
    assert differences(oracle.after[STEPS], parts.snapshot()) == []


class Vanishing(LocalExchange):
    """Node 1 is gone at an averaging: when weights are asked for, or when the average goes out; node 0 has done it."""

    def __init__(self, parts, at):
        super().__init__(parts.parties, parts.wire)
        self._parts, self._at = parts, at

    def exchange(self, down, shapes, meanwhile):
        turn = down[0].turn
        if isinstance(turn, self._at) and turn.tensor_of.step == 3:
            meanwhile()
            self._parts.uppers[0].handle(down[0])
            raise PeerLost("node 1 vanished")
        return super().exchange(down, shapes, meanwhile)


@pytest.mark.parametrize("at", [Share, Average])
@pytest.mark.parametrize("every", [EVERY, 3])
def test_an_interrupted_averaging_is_done_again(at, every, oracle, stores_for, tmp_path):
    """Checkpoints lie at averagings and between them; what was not committed by all is forgotten."""
    stores = stores_for(averaged())
    first = Federation(averaged(), stores, tmp_path, checkpoint_every=every)
    with pytest.raises(PeerLost, match="node 1 vanished"):
        first.run(Vanishing(first, at))
    committed = first.checkpoints.steps()[-1]
    assert committed == every
    second = Federation(averaged(), stores, tmp_path, checkpoint_every=every)
    assert second.resume() == committed
    predictions = second.run()
    assert differences(oracle.after[STEPS], second.snapshot()) == []
    assert first.losses[:committed] + second.losses == oracle.losses
    assert same_predictions(predictions, oracle.predictions)


@pytest.mark.parametrize("fail_at", [4, 5])
def test_uppers_that_forget_resume_from_what_was_committed(fail_at, oracle, stores_for, tmp_path):
    """Node 1 vanishes as the average of step 3 and the plan of step 4 go out, or at the step after it."""
    stores = stores_for(averaged())
    first = Federation(averaged(), stores, tmp_path, checkpoint_every=3)
    with pytest.raises(PeerLost, match="node 1 vanished"):
        first.run(StatelessExchange(first, fail_at=fail_at))
    second = Federation(averaged(), stores, tmp_path, checkpoint_every=3)
    assert second.resume() == 3
    second.run(StatelessExchange(second, saved=second.lower.saved))
    for engine in second.uppers.values():
        engine.go_to(STEPS)
    assert differences(oracle.after[STEPS], second.snapshot()) == []
    assert first.losses[:3] + second.losses == oracle.losses


def test_a_late_writer_of_an_upper_that_forgets_is_noticed(stores_for, tmp_path):
    """The state from before the average, written again after it, must not pass for the one after it."""
    parts = Federation(averaged(), stores_for(averaged()), tmp_path)

    class Late(StatelessExchange):
        def carry(self, frames, expected, meanwhile):
            answers = super().carry(frames, expected, meanwhile)
            if isinstance(frames[0].message, Share):
                self.before = (tmp_path / "live-0.pt").read_bytes()
            return answers

    exchange = Late(parts)
    parts.driver.run(exchange, EVERY, evaluate=False)
    (tmp_path / "live-0.pt").write_bytes(exchange.before)
    with pytest.raises(ProtocolError, match=r"expected the Uppers' average after StepId\(.*, received none"):
        parts.driver.run(exchange, STEPS, evaluate=False)


def test_one_upper_alone_is_not_averaged(stores_for, tmp_path):
    config = averaged(uppers=1)
    parts = Federation(config, stores_for(config), tmp_path)
    assert parts.uppers[0].weight_count == 0
    parts.run()
    assert differences(Oracle(settings(uppers=1), stores_for(config)).after[STEPS], parts.snapshot()) == []


def test_an_absent_upper_has_no_part_in_it(stores_for, tmp_path):
    """It is averaged with the others again when it is back."""
    config, absent = averaged(uppers=3), {1}
    whole = Oracle(config, stores_for(config), at=(1,))
    whole.monolith.train(3, absent=absent)
    whole.monolith.train(2)
    parts = Federation(config, stores_for(config), tmp_path)
    parts.driver.run(local(parts), 1, evaluate=False)
    parts.driver.run(local(parts), 4, evaluate=False, absent=absent)
    parts.uppers[1] = parts.upper(1)
    parts.uppers[1].go_to(4, parts.lower.saved[1])
    parts.driver.run(local(parts), 6, evaluate=False)
    after = parts.snapshot()
    assert differences(monolith_snapshot(whole.monolith), after) == []
    assert differences(of_upper(after, 0), of_upper(after, 1)) == []
    assert differences(of_upper(after, 0), of_upper(after, 2)) == []
