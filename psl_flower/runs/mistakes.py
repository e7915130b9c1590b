"""Lists the images that a run misclassified, worst first.

Reads ``<run>/predictions.npz``, which the run wrote, and ``<run>/predictions/*/predictions.npz``, which later
predictions with its model wrote (`psl_flower.runs.predictions`); only the newest of each split is used.
"""

from __future__ import annotations

import os
import tokenize
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from psl_flower.errors import OtherDataset, RunError
from psl_flower.runs.folder import PREDICTIONS_FILE, RunFolder
from psl_flower.runs.predictions import predictions_of
from psl_flower.sealed.manifest import Manifest
from psl_flower.system.files import open_regular

# As numpy writes it, nothing in it is compressed; a stranger's could unpack to anything.
_MOST_BYTES = 1 << 30
_FIELDS = ("sample", "label", "predicted", "confidence", "split")

# A claimed size that no memory holds, and a header that is no Python, are among what numpy raises.
_DAMAGED = (
    OSError, ValueError, KeyError, EOFError, MemoryError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile,
    zipfile.LargeZipFile, NotImplementedError,
)  # fmt: skip

_Columns = tuple[NDArray[Any], ...]


@dataclass(frozen=True, slots=True)
class Mistake:
    """One image that a run got wrong: its label then, the predicted class, and the confidence (0..1)."""

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
        The largest number; 0 returns all.
    labels_N : NDArray[np.int64], optional
        Current labels: images whose label was corrected to the run's prediction are left out.

    Raises
    ------
    RunError
        If there are no predictions of the split asked for, or they are damaged.
    """
    sample, label, predicted, confidence, _ = columns_of(run, split)
    wrong = label != predicted
    if labels_N is not None:
        if len(sample) and not 0 <= int(sample.min()) <= int(sample.max()) < len(labels_N):
            raise RunError(f"{run}: its images are not those of this dataset")
        wrong &= labels_N[sample] != predicted
    rows = np.flatnonzero(wrong)
    rows = rows[np.argsort(-confidence[rows].astype(np.float64), kind="stable")][: limit or None]
    return [Mistake(int(sample[k]), int(label[k]), int(predicted[k]), float(confidence[k])) for k in rows]


def check_dataset(run: Path, manifest: Manifest) -> None:
    """Check that a run was on this dataset, in this or another of its generations.

    The run's manifest.json holds the fingerprint of the state of the dataset that it was on, and all that goes into
    it but the dataset's id, which appending, relabelling and rotating do not change.

    Raises
    ------
    OtherDataset
        If it was on another one.
    RunError
        If manifest.json is missing.
    StoreError
        If it is damaged.
    """
    folder = run if run.is_dir() else run.parent
    # The folder of a prediction, in runs/NAME/predictions/, has no manifest.
    holders = (RunFolder(place) for place in (folder, *folder.absolute().parents[:2]))
    holder = next((holder for holder in holders if holder.has_description), None)
    if holder is None:
        lacks = "has no manifest.json" if run.exists() else "there is no such folder"
        raise RunError(f"{run}: {lacks}; give the folder of a run, such as WORKSPACE/runs/NAME")
    began = holder.read_description()
    if not manifest.is_dataset_of(began):
        raise OtherDataset(
            f"{run}: was a run on other stores, of {began.dataset}; the images that it got wrong are not those of "
            f"{manifest.name}, dataset {manifest.dataset.hex()}: name the manifest of its stores, or a run on these"
        )


def columns_of(run: Path, split: str) -> _Columns:
    """Return the columns of a run's newest predictions of a split, or of each split."""
    files = [run]
    if run.is_dir():
        candidates = [folder / PREDICTIONS_FILE for folder in (run, *predictions_of(run))]
        files = sorted((path for path in candidates if path.exists()), key=_written, reverse=True)
    found: dict[str, _Columns] = {}
    for path in files:
        columns = _read(path)
        for name in sorted(set(columns[-1].tolist()) - set(found)):
            found[name] = tuple(column[columns[-1] == name] for column in columns)
    if not files:
        raise RunError(
            f"{run / PREDICTIONS_FILE} does not exist: evaluate the run first, as `psl predict --in-place` does"
        )
    if split and split not in found:
        held = " and ".join(sorted(found)) or "no"
        raise RunError(
            f"{run}: holds predictions of {held} images; for those of the {split} split: "
            f"psl predict --in-place {run.name} --split {split}"
        )
    wanted = [found[split]] if split else list(found.values()) or [_read(files[0])]
    return tuple(np.concatenate(parts) for parts in zip(*wanted, strict=True))


def _check_size(content: BinaryIO) -> None:
    """Raise ValueError if a file would unpack to much more than predictions are."""
    with zipfile.ZipFile(content) as file:
        if any(part.compress_type or part.file_size > _MOST_BYTES for part in file.infolist()):
            raise ValueError("it is compressed, or larger than predictions are")
    content.seek(0)


def check_classes(run: Path, label_N: NDArray[Any], predicted_N: NDArray[Any], num_classes: int) -> None:
    """Raise RunError unless all are classes of the run."""
    for classes_N in (label_N, predicted_N):
        if classes_N.dtype.kind not in "iu" or (
            len(classes_N) and not 0 <= classes_N.min() <= classes_N.max() < num_classes
        ):
            raise RunError(
                f"{run}: {PREDICTIONS_FILE} is damaged: it names classes that the run has not; evaluate the run again"
            )


def confusion(
    label_N: Sequence[int] | NDArray[Any], predicted_N: Sequence[int] | NDArray[Any], num_classes: int
) -> NDArray[np.int64]:
    """Return the confusion matrix (K, K): true class by row, predicted class by column."""
    counts_KK = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts_KK, (np.asarray(label_N, np.int64), np.asarray(predicted_N, np.int64)), 1)
    return counts_KK


def _written(path: Path) -> float:
    return path.stat().st_mtime


def _read(path: Path) -> _Columns:
    try:
        with os.fdopen(open_regular(path), "rb") as content:
            _check_size(content)
            with np.load(content, allow_pickle=False) as file:
                columns = tuple(file[name] for name in _FIELDS)
    except FileNotFoundError:
        raise RunError(f"{path} does not exist: evaluate the run first, as `psl predict --in-place` does") from None
    except _DAMAGED:
        raise RunError(f"{path} is damaged: evaluate the run again") from None
    sample = columns[0]
    if any(column.ndim != 1 or len(column) != len(sample) for column in columns) or sample.dtype.kind not in "iu":
        raise RunError(f"{path} is damaged: its columns do not fit each other")
    return columns
