"""Learning rates: one-cycle against torch's own, cosine and constant by hand."""

import math

import pytest
import torch

from psl_flower.engine.schedule import SCHEDULES, Schedule
from psl_flower.errors import ConfigError

LENGTHS = [4, 5, 6, 10, 23, 200, 1000]


@pytest.mark.parametrize("total", LENGTHS)
def test_one_cycle_equals_torch(total):
    """To 1e-12 of the peak: both compute the same half cosines in double precision."""
    assert LENGTHS
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=total, cycle_momentum=False)
    ours = Schedule(kind="one-cycle", peak=0.1, total_steps=total)
    for step in range(total):
        assert ours.lr(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-13), step
        optimizer.step()
        if step < total - 1:
            theirs.step()


def test_one_cycle_of_a_few_steps_still_trains():
    # torch's rule would give a run of one step peak / 250,000.
    rates = {n: [Schedule(kind="one-cycle", peak=1.0, total_steps=n).lr(s) for s in range(n)] for n in (1, 2, 3)}
    assert rates[1] == pytest.approx([0.04])
    assert rates[2] == pytest.approx([0.04, 1.0])
    assert rates[3] == pytest.approx([0.04, 1.0, 0.04 / 1e4])


def test_cosine_falls_from_the_peak_to_zero():
    schedule = Schedule(kind="cosine", peak=0.2, total_steps=5)
    expected = [0.2, 0.1 + 0.1 * math.sqrt(0.5), 0.1, 0.1 - 0.1 * math.sqrt(0.5), 0.0]
    assert [schedule.lr(step) for step in range(5)] == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["constant", "cosine"])
def test_the_rate_warms_up_in_proportion(kind):
    schedule = Schedule(kind=kind, peak=0.4, total_steps=9, warm_up=3)
    assert [schedule.lr(step) for step in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    without = Schedule(kind=kind, peak=0.4, total_steps=6)
    assert [schedule.lr(step + 3) for step in range(6)] == pytest.approx([without.lr(step) for step in range(6)])


def test_one_cycle_peaks_after_its_warm_up():
    rates = [Schedule(kind="one-cycle", peak=1.0, total_steps=20, warm_up=2).lr(step) for step in range(20)]
    assert rates[:3] == pytest.approx([0.04, 0.52, 1.0])
    assert rates[2:] == sorted(rates[2:], reverse=True)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_warm_up_longer_than_the_run_ends_with_it(kind):
    rates = [Schedule(kind=kind, peak=1.0, total_steps=3, warm_up=9).lr(step) for step in range(5)]
    assert rates == sorted(rates)
    assert 0.0 < rates[0] <= rates[-1] <= 1.0


def test_constant():
    assert {Schedule(kind="constant", peak=0.3, total_steps=9).lr(step) for step in range(9)} == {0.3}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_every_rate_is_a_usable_number(kind):
    assert SCHEDULES
    for total in (1, 2, 3, 7):
        schedule = Schedule(kind=kind, peak=0.1, total_steps=total)
        # Also beyond the end, where a rounding of rounds may lead.
        assert all(0.0 <= schedule.lr(step) <= 0.1 for step in range(total + 2))


def test_unknown_kind_is_refused():
    with pytest.raises(ConfigError, match="schedule: expected one of one-cycle, cosine, constant, got 'step'"):
        Schedule(kind="step", peak=0.1, total_steps=1)
