"""Early stopping: which evaluation on the validation images was best, and whether training ends.

A verdict follows only from recorded values, so a killed and resumed run ends where an undisturbed one does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from psl_flower.config.training import TrainingSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class BestSoFar:
    """What the evaluations on validation images say."""

    step: int = 0  #: Steps applied at the best evaluation, the earliest of equals; 0 if none has a number.
    value: float = math.nan  #: Its measured value.
    since: int = 0  #: Evaluations after it.
    ended: bool = False  #: Whether training ends.


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitor:
    """What is watched on the validation images."""

    name: str  #: One of `psl_flower.config.training.MONITORS`.
    patience: int  #: Evaluations without improvement after which training ends; 0: it never does.

    @classmethod
    def of(cls, training: TrainingSettings) -> Monitor | None:
        """Return the monitor that the settings ask for; None without validation images."""
        if not training.valid_fraction:
            return None
        return cls(name=training.monitor, patience=training.patience)

    @property
    def key(self) -> str:
        """The key of its values in metrics.jsonl."""
        return f"valid_{self.name.replace('-', '_')}"

    def verdict(self, rounds: Iterable[Mapping[str, Any]]) -> BestSoFar:
        """Return the verdict over the rounds of metrics.jsonl, in order; those without a validation do not count."""
        found = BestSoFar()
        for metrics in rounds:
            # A loss that is no number is null in the file, an accuracy is always there.
            if metrics.get("valid_accuracy") is None:
                continue
            value = metrics[self.key]
            if value is not None and math.isfinite(value) and self._improves(value, found.value):
                found = BestSoFar(step=metrics["step"], value=value)
            else:
                since = found.since + 1
                found = BestSoFar(step=found.step, value=found.value, since=since, ended=0 < self.patience <= since)
        return found

    def _improves(self, value: float, best: float) -> bool:
        if math.isnan(best):
            return True
        return value < best if self.name == "loss" else value > best
