"""Reads metrics.jsonl, one object per round, from a run's folder, which may be a stranger's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from psl_flower.errors import RunError
from psl_flower.system.records import read_records

_ADVICE = "remove the line, or the run"
# What is counted with; "round" and "step" are in every object, and others may be missing or None.
_NUMBERS = frozenset({
    "round", "step", "loss", "lower_loss", "upper_loss", "train_accuracy", "accuracy", "balanced_accuracy", "macro_f1",
    "test_loss", "images_per_s", "bytes_up", "bytes_down", "seconds", "train_s", "step_s", "upper_s", "lower_s",
    "wire_s", "valid_accuracy", "valid_loss",
})  # fmt: skip


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return all rounds, without a last line that a crash left unfinished; none where there is no file.

    Raises
    ------
    RunError
        If the file is damaged.
    """
    rounds = read_records(path, dict[str, Any], RunError, _ADVICE)
    for number, metrics in enumerate(rounds, 1):
        needed = {"round", "step"} - metrics.keys()
        wrong = [key for key in _NUMBERS & metrics.keys() if not isinstance(metrics[key], int | float | None)]
        if needed or wrong:
            raise RunError(f"{path}: object {number} is damaged: {min([*needed, *wrong])!r} is no number; {_ADVICE}")
    return rounds
