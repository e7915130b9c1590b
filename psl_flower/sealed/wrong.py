"""Which images a run got wrong, worst first. Reads ``<run>/predictions.npz``."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from psl_flower.errors import RunError

FILE = "predictions.npz"
_FIELDS = ("sample", "label", "predicted", "confidence", "split")


@dataclass(frozen=True, slots=True)
class Mistake:
    """One image that a run got wrong: its label then, what it was taken for, and how surely (0..1)."""

    image: int
    label: int
    predicted: int
    confidence: float


def mistakes(run: Path, *, split: str = "", limit: int = 0, labels_N: NDArray[np.int64] | None = None) -> list[Mistake]:
    """Return a run's mistakes, the surest first.

    Parameters
    ----------
    run : Path
        Run folder.
    split : str, optional
        Only "train" or "test"; by default both.
    limit : int, optional
        At most so many; 0 returns all.
    labels_N : NDArray[np.int64], optional
        Labels as of now: an image whose label has been corrected to what the run said is left out.

    Raises
    ------
    RunError
        If there are no predictions, or they are damaged.
    """
    path = run / FILE if run.is_dir() else run
    try:
        with np.load(path, allow_pickle=False) as file:
            sample, label, predicted, confidence, splits = (file[name] for name in _FIELDS)
    except FileNotFoundError:
        raise RunError(f"{path} does not exist: evaluate the run first") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        raise RunError(f"{path} is damaged: evaluate the run again") from None
    columns = (sample, label, predicted, confidence, splits)
    if any(column.ndim != 1 or len(column) != len(sample) for column in columns) or sample.dtype.kind not in "iu":
        raise RunError(f"{path} is damaged: its columns do not fit each other")
    wrong = label != predicted
    if split:
        wrong &= splits == split
    if labels_N is not None:
        if len(sample) and not 0 <= int(sample.min()) <= int(sample.max()) < len(labels_N):
            raise RunError(f"{path}: its images are not those of this dataset")
        wrong &= labels_N[sample] != predicted
    rows = np.flatnonzero(wrong)
    rows = rows[np.argsort(-confidence[rows].astype(np.float64), kind="stable")][: limit or None]
    return [Mistake(int(sample[k]), int(label[k]), int(predicted[k]), float(confidence[k])) for k in rows]
