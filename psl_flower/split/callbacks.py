"""What a training tells its user while it runs, and how the user can end it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from psl_flower.errors import ConfigError, PslError, TrainingError

Record = Mapping[str, Any]
# Called with a flat record of every "event": "step", "round" or "end". True ends the training after this round.
Callback = Callable[[Record], bool | None]


class EarlyStopping:
    """Ends a training once a metric has not improved for some rounds. It is a callback.

    Parameters
    ----------
    metric : str
        Name of a metric, or "loss", the mean of the round's training losses.
    patience : int
        Rounds without improvement after which the training ends, 1 or more.
    mode : {"max", "min"}
        Whether larger or smaller is better.
    least_change : float
        What counts as an improvement.

    Attributes
    ----------
    best : float
        The best value so far.
    best_round : int
        The round that had it; 0 before the first.
    """

    def __init__(self, metric: str, patience: int = 5, *, mode: str = "max", least_change: float = 0.0) -> None:
        if patience < 1:
            raise ConfigError(f"EarlyStopping: patience: expected 1 round or more, got {patience}")
        if mode not in ("max", "min"):
            raise ConfigError(f"EarlyStopping: mode: expected 'max' or 'min', got {mode!r}")
        self._metric, self._patience, self._least = metric, patience, least_change
        self._sign = 1.0 if mode == "max" else -1.0
        self.best, self.best_round = math.nan, 0

    def __call__(self, record: Record) -> bool:
        """Look at a record of a round; return True to end the training.

        Raises
        ------
        ConfigError
            If the round has no such metric.
        """
        if record["event"] != "round":
            return False
        if self._metric not in record:
            known = ", ".join(sorted(key for key, value in record.items() if isinstance(value, float)))
            raise ConfigError(f"EarlyStopping: a round has no metric {self._metric!r}; there are: {known}")
        value, number = float(record[self._metric]), int(record["round"])
        if number == 1:
            self.best_round = 0  # it may have served another training before
        if self.best_round == 0 or self._sign * (value - self.best) > self._least:
            self.best, self.best_round = value, number
        return number - self.best_round >= self._patience

    def resume(self, rounds: Iterable[Record]) -> bool:
        """Take up the rounds of before, where a training is resumed; return whether it was over by then."""
        return any([self(record) for record in rounds][-1:])


class Told:
    """All callbacks of a training.

    Attributes
    ----------
    ending : bool
        Whether one of them has asked for the end.
    """

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        self._callbacks: Sequence[Callback] = list(callbacks)
        self.ending = False

    def resume(self, rounds: Sequence[Record]) -> None:
        """Tell callbacks with a method `resume` of the rounds of before."""
        for callback in self._callbacks:
            if hasattr(callback, "resume"):
                self.ending = bool(callback.resume(rounds)) or self.ending

    def __call__(self, record: Record) -> None:
        """Tell all callbacks; raises TrainingError if one of them raises."""
        for callback in self._callbacks:
            try:
                self.ending = bool(callback(record)) or self.ending
            except PslError:
                raise
            except Exception as error:
                name = getattr(callback, "__name__", type(callback).__name__)
                raise TrainingError(
                    f"the callback {name} raised {type(error).__name__}: {error} (at the {record['event']} of step "
                    f"{record['step']}); the last checkpoint is kept"
                ) from error
