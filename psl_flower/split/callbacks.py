"""Callbacks that inform the user during a training, and that can end it."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from psl_flower.errors import ConfigError, PslError, TrainingError

Record = Mapping[str, Any]
# Called with a flat record of every "event": "step", "round" or "end". True ends the training after this round.
Callback = Callable[[Record], bool | None]
log = logging.getLogger("psl_flower")
# Words in the names of metrics that say which values are better.
_SMALLER = {"loss", "error", "err", "mse", "rmse", "mae", "mape", "deviance", "perplexity", "brier"}
_LARGER = {"accuracy", "acc", "auc", "auroc", "auprc", "f1", "precision", "recall", "r2", "correlation", "kappa", "mcc"}


class EarlyStopping:
    """Ends a training once a metric has not improved for some rounds. It is a callback.

    Parameters
    ----------
    metric : str
        Name of a metric, or "loss", the mean of the round's training losses.
    patience : int
        Rounds without improvement after which the training ends, 1 or more.
    mode : {"max", "min"}, optional
        Whether larger or smaller is better; by default as the metric's name says, such as "auc" or "rmse".
    least_change : float
        What counts as an improvement.

    Attributes
    ----------
    best : float
        The best value so far.
    best_round : int
        The round that had it; 0 before the first.

    Raises
    ------
    ConfigError
        If the mode is missing and the metric's name does not tell it.
    """

    def __init__(self, metric: str, patience: int = 5, *, mode: str = "", least_change: float = 0.0) -> None:
        if patience < 1:
            raise ConfigError(f"EarlyStopping: patience: expected 1 round or more, got {patience}")
        mode = mode or _mode_of(metric)
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
        over = number - self.best_round >= self._patience
        if over:
            log.info(
                "early stopping: %s has not improved since round %d (%g), %d rounds ago",
                self._metric, self.best_round, self.best, self._patience,
            )  # fmt: skip
        return over

    def resume(self, rounds: Iterable[Record]) -> bool:
        """Load the earlier rounds of a resumed training; return True if it had already ended."""
        return any([self(record) for record in rounds][-1:])


def _mode_of(metric: str) -> str:
    words = set(re.split(r"[^a-z0-9]+", metric.lower()))
    if bool(words & _SMALLER) == bool(words & _LARGER):
        raise ConfigError(
            f"EarlyStopping: {metric!r} does not tell whether larger or smaller is better; add mode='max' or mode='min'"
        )
    return "min" if words & _SMALLER else "max"


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
        """Call all callbacks; raises TrainingError if one of them raises."""
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
