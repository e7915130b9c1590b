"""Formats the summary shown at a terminal after a training: result, time, folders, and next commands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from psl_flower.text import counted, duration

if TYPE_CHECKING:
    from psl_flower.runs.folder import RunFolder, Status

_NAMES = 10  # characters of the widest name and the space behind it


def closing_lines(run: RunFolder, status: Status, seconds: float) -> Iterator[str]:
    """Yield the lines of the table on a completed training, which took `seconds` from the command to its end."""
    from rich.filesize import decimal

    from psl_flower.runs.housekeeping import size_of

    if status.accuracy is not None:
        yield _row("accuracy", f"{status.accuracy:.2%} on the test split")
    rounds = f"{counted(status.rounds, 'round')}, " if status.rounds else ""
    yield _row("time", f"{duration(seconds)} for {rounds}{counted(status.step, 'step')}")
    yield _row("run", f"{run.name}, {decimal(size_of(run.path))}")
    yield _row("folder", str(run.path))
    for name, path in (("model", run.model), ("metrics", run.path / "metrics.jsonl"), ("curves", run.tensorboard)):
        if path.exists():
            yield _row(name, str(path.relative_to(run.path)) + " in that folder")
    for number, command in enumerate(next_commands(run)):
        yield _row("" if number else "next", command)


def next_commands(run: RunFolder) -> tuple[str, str, str]:
    """Return three commands for a completed training."""
    if run.has_model:
        evaluate, predict = f"psl evaluate {run.name}", f"psl predict --run {run.name} IMAGE-OR-FOLDER"
        return evaluate, predict, f"psl export {run.name} --format onnx"
    return (
        f"psl predict --in-place {run.name}",
        f"psl train resume={run.name} collect-model=true",
        f"tensorboard --logdir {run.tensorboard}",
    )


def _row(name: str, value: str) -> str:
    return f"{name:{_NAMES}}{value}"
