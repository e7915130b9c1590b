"""The best checkpoint of a training with validation images: best.json in the run's folder, written at its end.

The Lower's newest checkpoint is then the best one, since later ones are dropped.
"""

from __future__ import annotations

import msgspec

from psl_flower.errors import RunError
from psl_flower.runs.folder import RunFolder
from psl_flower.system.records import read_record, write_record

_FILE = "best.json"


class BestCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """The weights that were kept."""

    step: int  #: Steps that they were trained for.
    trained: int  #: Steps after which training ended.
    monitor: str  #: The metric watched on the validation images.
    value: float | None  #: Its value at that step; None if it was always NaN.
    stopped_early: bool  #: Whether training ended before its last step, for lack of improvement.


def save_best(run: RunFolder, best: BestCheckpoint) -> None:
    """Write best.json durably; raises RunError if the disk refuses."""
    write_record(run.path / _FILE, best, RunError)


def load_best(run: RunFolder) -> BestCheckpoint | None:
    """Read best.json; None while training is not over, or without validation images.

    Raises
    ------
    RunError
        If the file is damaged.
    """
    path = run.path / _FILE
    return read_record(path, BestCheckpoint, RunError) if path.exists() else None
