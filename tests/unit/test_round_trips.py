"""How often a server waits for its nodes, as a dry run says it, held to the exchanges of a training."""

from __future__ import annotations

import pytest

from psl_flower.engine.build import Blueprint
from psl_flower.engine.footprint import footprint
from psl_flower.engine.local import LocalExchange
from tests.engines import settings
from tests.equivalence.test_frozen import Parts

SMALL = {"backbone_width": 4, "rounds": 3, "steps_per_round": 2}
CASES = {
    "plain": SMALL,
    "averaged, validated": SMALL | {"average_every": 2, "valid_fraction": 0.2},
    "Adaptation Net elsewhere, evaluated every other round": SMALL | {"adaptation_server": True, "evaluate_every": 2},
    "frozen": SMALL | {"freeze_uppers_after": 1},
    "two looks": SMALL | {"freeze_uppers_after": 1, "looks": 2, "valid_fraction": 0.2},
    "one look from the start": SMALL | {"freeze_uppers_after": 0, "looks": 1, "evaluate_every": 0},
}


class Counting(LocalExchange):
    """Counts the times that the server waits: exchanges, but for those within another one."""

    def __init__(self, parts) -> None:
        super().__init__(parts.parties, parts.wire)
        self.waits, self._depth = 0, 0

    def carry(self, frames, expected, meanwhile):
        self.waits, self._depth = self.waits + (not self._depth), self._depth + 1
        answers = super().carry(frames, expected, meanwhile)
        self._depth -= 1
        return answers


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_waits_are_those_of_a_training(changes, stores_for, tmp_path):
    config = settings(**changes)
    parts = Parts(config, stores_for(config), tmp_path)
    exchange, training = Counting(parts), parts.blueprint.config.training
    for number in range(1, 4):
        every = training.evaluate_every
        evaluate = number == 3 or (every > 0 and number % every == 0)
        parts.driver.run(exchange, 2 * number, evaluate=evaluate)
    if training.valid_fraction:
        # After the last round the test split is run through once.
        parts.driver.task = parts.driver.task.testing()
        parts.driver.run(exchange, 6, evaluate=True)
    assert footprint(parts.blueprint, 4).round_trips == exchange.waits


def test_one_look_ends_the_waiting(stores_for):
    config = settings(**SMALL)
    description = stores_for(config).description
    few, many = (
        footprint(Blueprint(config.replace(freeze_uppers_after=1, looks=1, rounds=rounds), description), 4).round_trips
        for rounds in (3, 300)
    )
    assert few == many
