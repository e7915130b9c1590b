"""Reads metrics.jsonl, one object per round, from a run's folder, which may be a stranger's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from psl_flower.errors import RunError
from psl_flower.system.files import read_file

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
    if not path.exists():
        return []
    lines = read_file(path, RunError).split(b"\n")[:-1]
    return [_round(line, f"{path}: line {number}") for number, line in enumerate(lines, 1) if line]


def _round(line: bytes, where: str) -> dict[str, Any]:
    try:
        metrics: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RunError(f"{where} is damaged: {error}; remove the line, or the run") from None
    needed = {"round", "step"} - metrics.keys()
    wrong = [key for key in _NUMBERS & metrics.keys() if not isinstance(metrics[key], int | float | None)]
    if needed or wrong:
        raise RunError(f"{where} is damaged: {min([*needed, *wrong])!r} is no number; remove the line, or the run")
    return metrics
