"""Runs with frozen Uppers that are killed, stopped or left by a node, amid learning, looks and frozen steps."""

from __future__ import annotations

import pytest

from psl_flower.engine.local import LocalExchange
from psl_flower.engine.looks import LookFile
from psl_flower.errors import PeerLost, TrainingStopped
from tests.engines import Oracle, StatelessExchange, differences, monolith_snapshot, same_predictions
from tests.equivalence.frozen_parts import FROZEN_AT, LOOKS, PER_ROUND, STEPS, Parts, Silent, frozen, resume


class Vanishing(LocalExchange):
    """A node is gone when the plan of a step goes out, or that of a look."""

    def __init__(self, parts, mode, number):
        super().__init__(parts.parties, parts.wire)
        self._mode, self._left = mode, number

    def exchange(self, down, shapes, meanwhile):
        plan = down[min(down)].turn.plan
        if plan is not None and plan.mode == self._mode:
            self._left -= 1
            if self._left < 0:
                raise PeerLost("node 1 vanished")
        return super().exchange(down, shapes, meanwhile)


# The node vanishes amid learning, as the first frozen step begins, amid frozen steps, and in evaluations; with looks amid
# those of the first view and of the second. View 0 is asked for as an evaluation is.
FROM_THE_START = {"freeze_uppers_after": 0}
INTERRUPTED = [
    ({}, "train", 1), ({}, "look", 0), ({}, "look", 3), ({}, "evaluate", 1), ({}, "evaluate", 3),
    (FROM_THE_START, "look", 1), (LOOKS, "evaluate", 1), (LOOKS, "evaluate", 4), (LOOKS, "look", 0), (LOOKS, "look", 3),
    (LOOKS | FROM_THE_START, "evaluate", 2),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "mode", "number"), INTERRUPTED)
def test_an_interrupted_run_resumes_to_the_same_weights(changes, mode, number, stores_for, tmp_path):
    config = frozen(**changes)
    stores = stores_for(config)
    whole = Oracle(config, stores, at=(STEPS,))
    first = Parts(config, stores, tmp_path, checkpoint_every=1)
    first.driver.commit_start()
    exchange = Vanishing(first, mode, number)
    with pytest.raises(PeerLost, match="node 1 vanished"):
        for stop in range(PER_ROUND, STEPS + 1, PER_ROUND):
            first.driver.run(exchange, stop, evaluate=True)
    second = Parts(config, stores, tmp_path, checkpoint_every=1)
    resume(second)
    predictions = second.run()
    assert differences(whole.after[STEPS], second.snapshot()) == []
    assert same_predictions(predictions, whole.predictions)


def test_uppers_of_one_node_are_asked_together_after_a_kill_between_their_looks(stores_for, tmp_path, monkeypatch):
    """A node serves its Uppers in turn: asked for one alone, it would wait for the other's turn for ever."""
    config = frozen(**LOOKS)
    stores = stores_for(config)
    whole = Oracle(config, stores, at=(STEPS,))
    first, append, kept = Parts(config, stores, tmp_path, checkpoint_every=1), LookFile.append, []
    first.driver.commit_start()
    first.driver.run(LocalExchange(first.parties, first.wire), FROZEN_AT, evaluate=True)

    def killed(self, smashed_BKhwC):
        kept.append(1)
        if len(kept) == 4:
            raise RuntimeError("killed")
        append(self, smashed_BKhwC)

    with monkeypatch.context() as patch:
        patch.setattr(LookFile, "append", killed)
        with pytest.raises(RuntimeError, match="killed"):
            first.driver.look(LocalExchange(first.parties, first.wire))

    class Together(LocalExchange):
        def exchange(self, down, shapes, meanwhile):
            assert sorted(down) == sorted(shapes) == [0, 1]
            return super().exchange(down, shapes, meanwhile)

    second = Parts(config, stores, tmp_path, checkpoint_every=1)
    resume(second)
    second.driver.look(Together(second.parties, second.wire))
    predictions = second.run()
    assert differences(whole.after[STEPS], second.snapshot()) == []
    assert same_predictions(predictions, whole.predictions)


@pytest.mark.parametrize("changes", [{}, LOOKS, {"freeze_uppers_after": 0}])
def test_uppers_that_forget_between_messages_are_bit_equal(changes, stores_for, tmp_path):
    config = frozen(**changes)
    whole, parts = Oracle(config, stores_for(config), at=(STEPS,)), Parts(config, stores_for(config), tmp_path)
    exchange = StatelessExchange(parts, saved=parts.lower.saved)
    for stop in range(PER_ROUND, STEPS + 1, PER_ROUND):
        report = parts.driver.run(exchange, stop, evaluate=True)
    for m, engine in parts.uppers.items():
        engine.go_to(parts.driver.party_step, parts.lower.saved[m])
    assert differences(whole.after[STEPS], parts.snapshot()) == []
    assert same_predictions(report.predictions, whole.predictions)
    # And on from the last commit, by other processes.
    again = Parts(config, stores_for(config), tmp_path)
    assert resume(again) == STEPS
    predictions = again.run(StatelessExchange(again, saved=again.lower.saved))
    assert same_predictions(predictions, whole.predictions)


def test_a_stop_amid_frozen_steps_and_amid_looks(stores_for, tmp_path):
    config = frozen(**LOOKS)
    stores = stores_for(config)
    whole = Oracle(config, stores, at=(STEPS,))
    asked = []
    parts = Parts(config, stores, tmp_path, stop_requested=lambda: bool(asked))
    parts.run(stop_step=FROZEN_AT)
    asked.append(True)
    with pytest.raises(TrainingStopped, match="stopped after step 2"):
        parts.driver.look(LocalExchange(parts.parties, parts.wire))
    assert [file.done for file in parts.looks._files.values()] == [1, 1]
    asked.clear()
    parts.driver._stop_requested = lambda: parts.lower.step == 5
    with pytest.raises(TrainingStopped, match="stopped after step 5"):
        parts.run()
    again = Parts(config, stores, tmp_path)
    assert resume(again) == 5
    assert again.looks.complete == (0, 1)
    again.run(Silent(again.parties, again.wire))
    assert differences(whole.after[STEPS], again.snapshot()) == []


def test_an_upper_without_looks_is_zeros(stores_for, tmp_path):
    """Its node went before it sent them; the others' suffice, and it takes part again when it is asked in time."""
    config, absent = frozen(**LOOKS | {"uppers": 4}), {1}
    stores = stores_for(config)
    whole = Oracle(config, stores, at=(FROZEN_AT,))
    whole.monolith.train(2, absent=absent)
    parts = Parts(config, stores, tmp_path)
    parts.run(stop_step=FROZEN_AT)
    parts.driver.look(LocalExchange(parts.parties, parts.wire), absent)
    assert parts.looks.complete == (0, 2, 3)
    assert not parts.driver.needs_nodes
    assert parts.driver.absent_for_good == (1,)
    parts.driver.run(None, FROZEN_AT + 2, evaluate=False, absent=(1,))
    assert differences(monolith_snapshot(whole.monolith), parts.snapshot()) == []
    again = Parts(config, stores, tmp_path)
    resume(again)
    assert again.driver.looks_due
    again.driver.look(LocalExchange(again.parties, again.wire))
    assert not again.driver.needs_nodes
    assert again.driver.absent_for_good == ()
