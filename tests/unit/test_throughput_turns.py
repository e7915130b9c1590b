"""Turns of the throughput benchmark: real processes are stopped and go on, and what that cuts does not count."""

import subprocess
import sys
import time

import psutil
import pytest

from psl_flower.config import RunConfig
from psl_flower.errors import RunError
from simulations.throughput import turns as turns_module
from simulations.throughput.holding import Brake, breathe, cut_steps
from simulations.throughput.one_process import Job, Opponent
from simulations.throughput.results import Settings
from simulations.throughput.turns import Turns

SETTINGS = Settings(
    transports=("stream",), steps=6, warmup=1, turns=3, repetitions=1, threads=1, config={}, upper_threads=1, nodes=2
)
HELD_S = 1.5
# More than can be done before a hold, however late it comes on a busy machine: some seconds.
MANY_STEPS = 120
COMPUTING = "import time\nwhile True: sum(range(200_000)); time.sleep(0.02)"


@pytest.fixture
def job(tmp_path):
    config = RunConfig.of(
        max_train=16, max_test=2, batch_size=4, rounds=1, steps_per_round=MANY_STEPS, lr=0.01,
        schedule="constant", stores="plain", workspace=str(tmp_path),
    )  # fmt: skip
    return Job(config=config.to_mapping(), threads=1, steps=MANY_STEPS)


@pytest.fixture
def busy():
    """Return a function that starts a process which computes a little all the time, under a name."""
    started = []

    def start(name):
        process = subprocess.Popen([name, "-c", COMPUTING], executable=sys.executable)
        started.append(process)
        return psutil.Process(process.pid)

    yield start
    for process in started:
        process.kill()
        process.wait()


def computes(process):
    """Return whether a process gets on within 0.5 s; the first wait is for a signal to arrive."""
    time.sleep(0.1)
    before = process.cpu_times().user
    time.sleep(0.5)
    return process.cpu_times().user > before


@pytest.mark.parametrize(
    ("spans", "cut"),
    [
        ([], ()),
        ([(2.5, 2.6)], (2,)),
        ([(0.1, 0.2), (3.9, 5.0)], (0, 3)),
        ([(1.5, 3.5)], (1, 2, 3)),
        # Before the first step, and after the last one.
        ([(-5.0, -1.0), (4.5, 9.0)], ()),
        # As soon as a step is known to have ended: that one is whole.
        ([(2.0, 2.6)], (2,)),
        # Between a step's end and its stamp, which comes when the stop is over: of both steps.
        ([(0.5, 0.99)], (0, 1)),
    ],
)
def test_steps_that_a_hold_cut(spans, cut):
    assert cut_steps(0.0, [1.0, 2.0, 3.0, 4.0], spans) == cut


def test_a_stopped_group_does_not_advance(busy):
    group, ended = [busy("first"), busy("second")], busy("third")
    ended.kill()
    brake = Brake()
    brake.go()
    assert brake.spans == []
    before = time.time()
    brake.hold([*group, ended])
    assert not any(computes(process) for process in group)
    brake.go()
    ((since, until),) = brake.spans
    assert before <= since < until - 0.3
    assert all(computes(process) for process in group)


def test_processes_breathe(busy):
    process = busy("lower")
    brake = Brake()
    brake.hold([process])
    before = process.cpu_times().user
    breathe([process], 0.5)
    assert process.cpu_times().user > before
    assert not computes(process)


def test_the_opponent_is_held_and_goes_on(job):
    shown = []
    with Opponent(job, 60.0, shown.append) as opponent:
        opponent.wait_for(1)
        # Into a step: on a busy machine the report of one wakes this process before the next has begun.
        time.sleep(0.05)
        opponent.hold()
        time.sleep(HELD_S)
        measured = opponent.measured(3, 1, (4,) * job.steps)
        # Over: nothing to wait for, and nothing to hold.
        opponent.wait_for(job.steps + 1)
        opponent.hold()
        opponent.go()
    assert shown == list(range(1, job.steps + 1))
    assert (measured.repetition, measured.mode, len(measured.step_s)) == (3, "one-process", job.steps)
    longest = max(range(job.steps), key=measured.step_s.__getitem__)
    assert measured.step_s[longest] >= HELD_S
    assert longest in measured.cut
    assert measured.images_per_s > 4 / HELD_S


def test_an_opponent_that_fails_says_why_and_one_that_is_held_ends(job):
    failing = Job(config=job.config | {"lr": 1e30}, threads=1, steps=job.steps)
    with Opponent(failing, 60.0) as opponent, pytest.raises(RunError, match="one process failed: the loss of step"):
        opponent.wait_for(job.steps)
    with Opponent(job, 0.2) as opponent, pytest.raises(RunError, match=r"not said anything for 0.2 s"):
        opponent.hold()
        opponent.wait_for(1)
    assert not opponents()


def test_while_the_opponent_has_its_turn_what_computes_is_stopped(job, busy, monkeypatch):
    monkeypatch.setattr(turns_module, "_BREATH_EVERY_S", 3600.0)
    seen = []

    def look(done):
        seen.append((done, *(process.status() == psutil.STATUS_STOPPED for process in family)))

    family = []
    with Opponent(job, 60.0, look) as opponent:
        opponent.wait_for(SETTINGS.warmup)
        opponent.hold()
        family += [busy("flwr-simulation"), busy("ray::ClientAppActor.run"), busy("raylet")]
        turns = Turns(SETTINGS, opponent)
        turns.take(2, lambda: family)  # not due: the warm-up and two whole steps are 3
        assert turns.spans == []
        del seen[:]
        turns.take(3, lambda: family)
        # With the warm-up's: two whole ones, and the one that was cut.
        assert opponent.steps == 4
        assert seen
        assert all(told[1:] == (True, True, False) for told in seen)
        assert len(turns.spans) == 1
        assert all(computes(process) for process in family)
        turns.take(5, lambda: family)  # taken already
        turns.take(job.steps, lambda: family)  # the run has nothing left to hold
        assert len(turns.spans) == 1

        (process,) = opponents()
        process.kill()
        with pytest.raises(RunError, match="the one process failed"):
            turns.take(6, lambda: family)
        assert all(computes(process) for process in family)


def opponents():
    return [child for child in psutil.Process().children() if "one_process" in " ".join(child.cmdline())]
