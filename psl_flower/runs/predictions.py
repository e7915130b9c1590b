"""The folder of a prediction with a trained run's model, made without collecting it (`psl_flower.kinds.predict`).

    <run>/predictions/<name>/
        status.json, log.txt     as those of a run, see `psl_flower.runs.folder`
        predictions.csv          the same for people: image, label, predicted by their names, confidence
        predictions.npz          sample, label, predicted, confidence, split, as the run's own
        result.json              `Result`; written last, so a folder without it is unfinished

The run itself is not changed, and no prediction overwrites another.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import msgspec
import numpy as np

from psl_flower.errors import RunError
from psl_flower.patches.description import StoreSetDescription
from psl_flower.runs.folder import PREDICTIONS_FILE, RunFolder
from psl_flower.system.files import write_file
from psl_flower.system.records import read_record, write_record
from psl_flower.text import cell

FOLDER = "predictions"
TABLE = "predictions.csv"
_RESULT = "result.json"


class Absent(msgspec.Struct, frozen=True, kw_only=True):
    """An Upper that took no part, and its grid positions: zeros stood for their smashed data."""

    upper: int
    positions: tuple[int, ...]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What was predicted, and how accurately."""

    run: str  #: The run whose model it is.
    step: int  #: Steps that the model was trained for.
    split: str  #: "train" or "test"; empty for images that were named.
    images: int
    #: Share classified correctly, 0..1, and mean cross entropy, by the labels that the run knows.
    accuracy: float
    loss: float
    absent: tuple[Absent, ...] = ()  #: Uppers that took no part.
    light: bool = False  #: Whether the light model in place predicted; see `psl lighten`.

    @property
    def whole(self) -> bool:
        """Whether it is of all images of a split, by all Uppers, as the run's own evaluation is."""
        return bool(self.split) and not self.absent and not self.light


def write_table(folder: RunFolder, description: StoreSetDescription) -> None:
    """Write predictions.csv from predictions.npz: images as "test:17" and classes by their names.

    Raises
    ------
    RunError
        If the disk refuses.
    """
    with np.load(folder.path / PREDICTIONS_FILE, allow_pickle=False) as found:
        columns = zip(found["sample"], found["label"], found["predicted"], found["confidence"], strict=True)
        names, table = [cell(name) for name in description.class_names], io.StringIO(newline="")
        writer = csv.writer(table)
        writer.writerow(("image", "number", "label", "predicted", "confidence", "right"))
        for sample, label, predicted, confidence in columns:
            image, right = description.name_of(int(sample)), "yes" if label == predicted else "no"
            writer.writerow((image, sample, names[label], names[predicted], f"{confidence:.4f}", right))
    write_file(folder.path / TABLE, table.getvalue().encode(), RunError)


def save_result(folder: RunFolder, result: Result) -> None:
    """Write result.json, which marks the prediction as finished; raises RunError if the disk refuses."""
    write_record(folder.path / _RESULT, result, RunError)


def load_result(folder: Path) -> Result | None:
    """Return the result of a prediction; None of one that is unfinished. Raises RunError if the file is damaged."""
    path = folder / _RESULT
    return read_record(path, Result, RunError) if path.exists() else None


def predictions_of(run: Path) -> list[Path]:
    """Return the folders of a run's finished predictions that are of a whole split, by all Uppers."""
    results = {folder: load_result(folder) for folder in (run / FOLDER).glob("*/")}
    return [folder for folder, result in results.items() if result is not None and result.whole]
