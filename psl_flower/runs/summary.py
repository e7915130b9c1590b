"""A run's results, as its report and comparisons with other runs show them.

Suffixes: K classes.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psl_flower.config import RunConfig
from psl_flower.errors import RunError
from psl_flower.patches.description import StoreSetDescription
from psl_flower.runs.folder import PREDICTIONS_FILE, RunFolder
from psl_flower.runs.mistakes import Mistake, check_classes, columns_of, confusion, mistakes

# Settings of a run's place and display, not of what it trains.
_NOT_COMPARED = frozenset({"run-name", "workspace", "progress-every-s", "keys", "owner", "tracker", "tracker-uri"})
_WORST = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A run's result."""

    #: The run's name and state.
    name: str
    state: str
    settings: dict[str, Any]  #: All settings by their keys.
    description: StoreSetDescription  #: The images and the grid.
    rounds: list[dict[str, Any]]  #: The objects of metrics.jsonl.
    #: Test images by class (row) and predicted class (column) of the last evaluation, int64; None before the first.
    confusion_KK: NDArray[np.int64] | None
    worst: list[Mistake]  #: The test images that it got wrong, the surest first.
    reason: str = ""  #: Why it failed, if it did.

    @classmethod
    def of(cls, run: RunFolder) -> Summary:
        """Read a run's folder.

        Raises
        ------
        RunError
            If it has no metrics yet, or a file is damaged.
        StoreError
            If manifest.json is damaged.
        """
        rounds = run.read_metrics()
        if not rounds:
            raise RunError(f"{run.path}: the run has completed no round yet")
        status, description = run.read_status(), run.read_description()
        confusion_KK, worst = None, list[Mistake]()
        if (run.path / PREDICTIONS_FILE).exists():
            _, label_N, predicted_N, _, _ = columns_of(run.path / PREDICTIONS_FILE, "test")
            check_classes(run.path, label_N, predicted_N, description.num_classes)
            confusion_KK = confusion(label_N, predicted_N, description.num_classes)
            worst = mistakes(run.path / PREDICTIONS_FILE, split="test", limit=_WORST)
        return cls(
            name=run.name,
            state=status.shown if status else "unknown",
            settings=run.read_config().to_mapping(),
            description=description,
            rounds=rounds,
            confusion_KK=confusion_KK,
            worst=worst,
            reason=status.reason if status else "",
        )

    def last(self, key: str) -> float | None:
        """Return the last known value of a metric; None without one."""
        return next((row[key] for row in reversed(self.rounds) if row.get(key) is not None), None)

    def total(self, key: str) -> float:
        """Return the sum of a metric over the rounds."""
        return float(sum(row.get(key) or 0 for row in self.rounds))

    @property
    def changed(self) -> dict[str, Any]:
        """The settings that differ from their defaults."""
        defaults = RunConfig().to_mapping()
        kept = {key: value for key, value in self.settings.items() if key not in _NOT_COMPARED}
        return {key: value for key, value in kept.items() if value != defaults.get(key)}

    @property
    def command(self) -> str:
        """The command that trains the same again, under a new name."""
        words = [f"{key}={_text(value)}" for key, value in self.changed.items()]
        return " ".join(["psl", "train", *map(shlex.quote, words)])


def differences(summaries: Sequence[Summary]) -> dict[str, list[str]]:
    """Return the settings in which runs differ: by key, the value of each run."""
    keys = dict.fromkeys(key for summary in summaries for key in summary.settings if key not in _NOT_COMPARED)
    values = {key: [_text(summary.settings.get(key, "")) for summary in summaries] for key in keys}
    return {key: found for key, found in values.items() if len(set(found)) > 1}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
