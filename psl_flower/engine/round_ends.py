"""Computes where the rounds of a training end, and which of them evaluate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from psl_flower.engine.task import Lessons


def round_goal(task: Lessons, step: int, evaluate_every: int | None, *, unfinished: bool = False) -> tuple[int, bool]:
    """Return the last step of the round that continues after `step`, and whether the round evaluates.

    Parameters
    ----------
    task : Lessons
        Steps of a round and of the run.
    step : int
        Steps applied.
    evaluate_every : int or None
        Rounds between evaluations; 0 for none but after the last step, None for none at all.
    unfinished : bool
        Whether `step` is a round's last, but the process ended before it was evaluated.
    """
    number = (step - unfinished) // task.steps_per_round + 1
    stop_step = min(number * task.steps_per_round, task.total_steps)
    last = stop_step == task.total_steps
    return stop_step, evaluate_every is not None and is_evaluated(number, evaluate_every, last=last)


def is_evaluated(number: int, evaluate_every: int, *, last: bool) -> bool:
    """Return True if round `number`, from 1, evaluates: every `evaluate_every` rounds (0: none), and the last."""
    return last or (evaluate_every > 0 and number % evaluate_every == 0)


def num_evaluations(rounds: int, evaluate_every: int, *, to_the_end: bool) -> int:
    """Return the number of evaluations in the first `rounds` rounds (`is_evaluated`); `to_the_end`: of all rounds."""
    regular = rounds // evaluate_every if evaluate_every else 0
    return regular + (to_the_end and not (evaluate_every and rounds % evaluate_every == 0))


def rounds_left(task: Lessons, done: int) -> int:
    """Return the rounds that have steps left after `done` of them; the last round may be shorter."""
    rounds = math.ceil(task.total_steps / task.steps_per_round)
    return 0 if done == task.total_steps else rounds - done // task.steps_per_round


def ends_round(task: Lessons, step: int) -> bool:
    """Return True if a round ends after `step` steps; the last round may be shorter."""
    return step > 0 and (step % task.steps_per_round == 0 or step == task.total_steps)


def is_unreported(task: Lessons, step: int, records: Iterable[Mapping[str, Any]]) -> bool:
    """Return True if a round ends after `step` steps, and none of the records of rounds is of that step."""
    return ends_round(task, step) and step not in [record["step"] for record in records]
