"""Learning rate as a function of the step alone: the Lower sends it, nothing of it needs saving."""

from __future__ import annotations

import math
from dataclasses import dataclass

from psl_flower.config import SCHEDULES
from psl_flower.errors import ConfigError

# OneCycleLR's defaults in torch: start at peak/25, end at start/10,000, peak after 30 % of the steps.
_START_DIVISOR = 25.0
_END_DIVISOR = 1e4
_WARM_UP_SHARE = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A learning-rate schedule."""

    #: "one-cycle", "cosine" or "constant": "one-cycle" rises to `peak` and falls again, both along a half cosine (Smith
    #: and Topin, 2019, as in torch's OneCycleLR without momentum cycling); "cosine" falls from `peak` to 0.
    kind: str
    peak: float  #: Highest learning rate, above 0.
    total_steps: int  #: Steps of the whole run.
    #: Steps in which the rate rises to `peak`, in proportion to the step. "one-cycle" rises along its half cosine in
    #: this number of steps, or in 30 % of all for 0.
    warm_up: int = 0

    def __post_init__(self) -> None:
        if self.kind not in SCHEDULES:
            raise ConfigError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {self.kind!r}")

    def lr(self, step: int) -> float:
        """Return the learning rate of step `step`, counted from 0."""
        if self.kind != "one-cycle" and step < self.warm_up:
            return self.peak * (step + 1) / (self.warm_up + 1)
        if self.kind == "constant":
            return self.peak
        last = max(1, self.total_steps - 1)
        if self.kind == "cosine":
            return _half_cosine(self.peak, 0.0, (step - self.warm_up) / max(1, last - self.warm_up))
        start = self.peak / _START_DIVISOR
        # As torch counts. A run of up to 3 steps, in which that would never rise, peaks at its second step.
        turn = float(self.warm_up) or (_WARM_UP_SHARE * self.total_steps - 1 if self.total_steps > 3 else 1.0)
        if step <= turn:
            return _half_cosine(start, self.peak, step / turn)
        return _half_cosine(self.peak, start / _END_DIVISOR, (step - turn) / max(1.0, last - turn))


def _half_cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * min(1.0, share))) / 2
