"""A run that goes on without an Upper, and takes it back, is bit-equal to one process that leaves its patches out."""

from __future__ import annotations

import pytest

from psl_flower.engine.checkpoints import save_state
from psl_flower.engine.local import LocalExchange
from tests.engines import (
    Federation,
    Oracle,
    StatelessExchange,
    differences,
    monolith_snapshot,
    same_predictions,
    settings,
)

GONE, BACK, END = 2, 4, 6
ABSENT = 1


@pytest.fixture(scope="module")
def config():
    # Two positions each, so that leaving out an Upper is not leaving out a position.
    return settings(uppers=2)


@pytest.fixture(scope="module")
def oracle(config, stores_for):
    """Return the network in one process after all steps; its predictions without the Upper, and with it as it was."""
    whole = Oracle(config, stores_for(config), at=(GONE,))
    losses = whole.losses
    whole.monolith.train(BACK - GONE, lambda _, loss, __: losses.append(loss), absent={ABSENT})
    without = whole.monolith.evaluate(absent={ABSENT})
    back = whole.monolith.evaluate()
    whole.monolith.train(END - BACK, lambda _, loss, __: losses.append(loss))
    whole.after[END] = monolith_snapshot(whole.monolith)
    return whole, without, back


def local(parts):
    return LocalExchange(parts.uppers, parts.wire)


def stateless(parts):
    return StatelessExchange(parts, saved=parts.lower.saved)


def leave(parts):
    """Let the Upper go while it has a step saved, and one between messages, that nobody has committed."""
    engine = parts.uppers[ABSENT]
    stray = {**engine.state(), "step": GONE + 1, "model": parts.uppers[0].model.state_dict()}
    engine._checkpoints.save(GONE + 1, stray)
    save_state(parts.folder / f"live-{ABSENT}.pt", {**stray, "step": BACK, "pending": ""})


def come_back(parts):
    """Start a new process of the Upper, as a node does for a round."""
    parts.uppers[ABSENT] = parts.upper(ABSENT)
    parts.uppers[ABSENT].go_to(parts.lower.step, parts.lower.saved[ABSENT])


@pytest.mark.parametrize("exchange", [local, stateless])
def test_an_absent_upper_is_taken_back(exchange, oracle, config, stores_for, tmp_path):
    whole, without, back = oracle
    parts = Federation(config, stores_for(config), tmp_path)
    parts.driver.run(exchange(parts), GONE, evaluate=False)
    leave(parts)
    report = parts.driver.run(exchange(parts), BACK, evaluate=True, absent={ABSENT})
    assert report.absent == (ABSENT,)
    assert same_predictions(report.predictions, without)
    assert parts.lower.saved == {0: BACK, ABSENT: GONE}
    if exchange is local:
        come_back(parts)
    # Over more than one batch: the Upper that is back has no state between messages yet.
    assert len(list(parts.driver.task.evaluation_plans(0))) > 1
    assert same_predictions(parts.driver.run(exchange(parts), BACK, evaluate=True).predictions, back)
    parts.driver.run(exchange(parts), END, evaluate=False)
    if exchange is stateless:
        for engine in parts.uppers.values():
            engine.go_to(END)
    assert differences(whole.after[END], parts.snapshot()) == []
    assert parts.losses == whole.losses
    assert parts.lower.saved == {0: END, ABSENT: END}
    assert GONE + 1 not in parts.uppers[ABSENT]._checkpoints.steps()


def test_what_was_never_committed_would_be_noticed(oracle, config, stores_for, tmp_path):
    """The control: an Upper that comes back with its stray step ends elsewhere."""
    whole, *_ = oracle
    parts = Federation(config, stores_for(config), tmp_path)
    parts.driver.run(local(parts), GONE, evaluate=False)
    leave(parts)
    parts.driver.run(local(parts), BACK, evaluate=False, absent={ABSENT})
    parts.uppers[ABSENT].go_to(BACK, GONE + 1)
    parts.driver.run(local(parts), END, evaluate=False)
    assert "uppers.1.conv1.weight" in differences(whole.after[END], parts.snapshot())


def test_a_run_without_the_upper_resumes(oracle, config, stores_for, tmp_path):
    """The Lower's checkpoint says which state each Upper is to go to."""
    whole, *_ = oracle
    first = Federation(config, stores_for(config), tmp_path)
    first.driver.run(local(first), GONE, evaluate=False)
    first.driver.run(local(first), BACK, evaluate=False, absent={ABSENT})
    second = Federation(config, stores_for(config), tmp_path)
    second.lower.go_to(BACK, second.checkpoints)
    for m, engine in second.uppers.items():
        engine.go_to(BACK, second.lower.saved[m])
    second.driver.run(local(second), END, evaluate=False)
    assert differences(whole.after[END], second.snapshot()) == []
