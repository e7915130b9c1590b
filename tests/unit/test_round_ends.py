"""Where rounds end and which of them evaluate, counted one by one."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from psl_flower.engine.round_ends import ends_round, is_evaluated, num_evaluations


class Steps(NamedTuple):
    steps_per_round: int
    total_steps: int


@pytest.mark.parametrize("every", range(5))
@pytest.mark.parametrize("rounds", range(1, 9))
@pytest.mark.parametrize("to_the_end", [True, False])
def test_evaluations_are_as_many_as_rounds_that_evaluate(rounds: int, every: int, to_the_end: bool) -> None:
    counted = [is_evaluated(number, every, last=number == rounds and to_the_end) for number in range(1, rounds + 1)]
    assert num_evaluations(rounds, every, to_the_end=to_the_end) == sum(counted)


def test_a_round_ends_after_its_steps_and_the_last_with_the_training() -> None:
    assert [step for step in range(9) if ends_round(Steps(3, 8), step)] == [3, 6, 8]
