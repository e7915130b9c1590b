"""Which evaluation was the best, and when training ends."""

import math

import pytest

from psl_flower.engine.stopping import Monitor


def rounds(values, name="valid_loss"):
    return [{"step": 10 * (i + 1), "valid_accuracy": 0.5, name: value} for i, value in enumerate(values)]


@pytest.mark.parametrize(("values", "patience", "step", "since", "ended"), [
    ([], 2, 0, 0, False),
    ([3.0, 2.0, 2.5], 2, 20, 1, False),
    ([3.0, 2.0, 2.5, 2.0], 2, 20, 2, True),  # equal is no improvement
    ([3.0, 2.0, 2.5, 2.6, 2.7], 0, 20, 3, False),
    ([math.nan, math.nan], 2, 0, 2, True),
    ([math.nan, 2.0, None], 2, 20, 1, False),
])  # fmt: skip
def test_loss(values, patience, step, since, ended):
    found = Monitor(name="loss", patience=patience).verdict(rounds(values))
    assert (found.step, found.since, found.ended) == (step, since, ended)


def test_scores_are_better_when_higher():
    found = Monitor(name="macro-f1", patience=2).verdict(rounds([0.1, 0.5, 0.4], "valid_macro_f1"))
    assert (found.step, found.value, found.since) == (20, 0.5, 1)


def test_rounds_without_validation_do_not_count():
    given = [*rounds([0.5, 0.6]), {"step": 25, "accuracy": 1.0}, {"step": 30, "valid_accuracy": None}]
    assert Monitor(name="loss", patience=2).verdict(given).since == 1
