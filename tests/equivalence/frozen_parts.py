"""Parties whose Uppers are frozen after the first of three rounds, with or without looks that are kept."""

from __future__ import annotations

from psl_flower.engine.local import LocalExchange
from psl_flower.engine.looks import looks_of
from tests.engines import Federation, settings

# Rounds of 2 steps; the Uppers learn in the first of three.
PER_ROUND, ROUNDS, FROZEN_AT, STEPS = 2, 3, 2, 6
CODE = {"backbone_width": 8, "protection": "code", "code_size": 6, "cut": "layer4"}
LOOKS = {"looks": 2, "uppers": 2} | CODE


def frozen(**changes):
    return settings(**({"rounds": ROUNDS, "steps_per_round": PER_ROUND, "freeze_uppers_after": 1} | changes))


class Parts(Federation):
    """A Federation with looks kept in its folder."""

    def __init__(self, config, stores, folder, **options):
        super().__init__(config, stores, folder, **options)
        self.looks = looks_of(self.blueprint, self.driver.task, folder / "looks", "run")
        self.driver._looks = self.looks


class Silent(LocalExchange):
    """Nobody may be asked anything."""

    def carry(self, frames, expected, meanwhile):
        raise AssertionError("a node was asked")


def resume(parts):
    """Go to the last commit, as the strategy does: the Uppers to the steps that they have applied and saved."""
    step = parts.checkpoints.steps()[-1]
    parts.lower.go_to(step, parts.checkpoints)
    for m, party in parts.parties.items():
        party.go_to(parts.driver.party_step, parts.lower.saved[m])
    return step
