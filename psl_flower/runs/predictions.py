"""Predictions with a trained run's model where it lies: which run and images, and the folder of what comes out.

    <run>/predictions/<name>/
        status.json, log.txt     as those of a run, see `psl_flower.runs.folder`
        predictions.npz          sample, label, predicted, confidence, split, as the run's own
        result.json              `Result`; written last, so a folder without it is unfinished

The run itself is not changed, and no prediction overwrites another.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from psl_flower.config import GROUP_OF, RunConfig
from psl_flower.errors import ConfigError, NoCheckpoint, OtherDataset, RunError
from psl_flower.patches.description import StoreSetDescription
from psl_flower.runs.folder import RunFolder, open_run
from psl_flower.runs.image_ids import parse_images
from psl_flower.runs.resuming import settings_of
from psl_flower.system.files import disk_errors, read_file, write_file
from psl_flower.text import expanded

if TYPE_CHECKING:
    from psl_flower.engine.rounds import Predictions

FOLDER = "predictions"
_RESULT = "result.json"
_MAX_IDS_BYTES = 64 * 1024 * 1024


class Absent(msgspec.Struct, frozen=True, kw_only=True):
    """An Upper that took no part, and its grid positions: zeros stood for their smashed data."""

    upper: int
    positions: tuple[int, ...]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a prediction was of, and how well it went.

    Attributes
    ----------
    run : str
        The run whose model it is.
    step : int
        Steps that the model was trained for.
    split : str
        "train" or "test"; empty for images that were named.
    images : int
        Images predicted.
    accuracy, loss : float
        Share classified rightly, 0..1, and mean cross entropy, by the labels that the run knows.
    absent : tuple[Absent, ...]
        Uppers that took no part.
    light : bool
        Whether it is by the light model in place, see `psl lighten`.
    """

    run: str
    step: int
    split: str
    images: int
    accuracy: float
    loss: float
    absent: tuple[Absent, ...] = ()
    light: bool = False

    @property
    def whole(self) -> bool:
        """Whether it is of all images of a split, by all Uppers: what the run itself would have said of them."""
        return bool(self.split) and not self.absent and not self.light

    @classmethod
    def of(
        cls, run: RunFolder, step: int, config: RunConfig, predictions: Predictions, absent: Sequence[Absent]
    ) -> Result:
        """Describe predictions that were made as `config` asks."""
        return cls(
            run=run.name,
            step=step,
            split="" if config.run.predict_images else config.run.predict_split,
            images=len(predictions.sample),
            accuracy=predictions.accuracy,
            loss=predictions.loss,
            absent=tuple(absent),
            light=config.run.predict_light,
        )


def begin(config: RunConfig) -> tuple[RunConfig, RunFolder, RunFolder]:
    """Return the settings to predict with, the run whose model it is, and the new folder of the prediction.

    Raises
    ------
    NoCheckpoint
        If the run has trained nothing yet.
    RunError
        If there is no such run, a prediction of this name already, or the disk refuses.
    ConfigError
        If a setting is given that the run did not train with.
    """
    settings, run = prediction_of(config)
    folder = free_folder(run, config)
    with disk_errors(folder.path, "made", RunError):
        folder.path.mkdir(parents=True)
    return settings, run, folder


def prediction_of(config: RunConfig) -> tuple[RunConfig, RunFolder]:
    """Return the settings to predict with and the run whose model it is; see `begin`."""
    run = open_run(config.workspace_path(), config.run.predict)
    settings = settings_of(run, config, "predict")
    if not any(run.checkpoints.steps()):
        raise NoCheckpoint(f"{run.path}: the run has no checkpoint of a step yet, so there is no model to predict with")
    asked = {name: config.value(name) for name in GROUP_OF if name.startswith("predict")}
    return settings.replace(run_name="", resume="", restore="", **asked), run


def free_folder(run: RunFolder, config: RunConfig) -> RunFolder:
    """Return the folder of a new prediction: of the name given, or of one made of the split and the time.

    Raises
    ------
    RunError
        If the name given is taken.
    """
    folder = run.path / FOLDER
    if config.run.run_name:
        if (folder / config.run.run_name).exists():
            raise RunError(
                f"{folder / config.run.run_name}: there is a prediction of this name already; choose another"
            )
        return RunFolder(folder / config.run.run_name)
    stem = f"{'images' if config.run.predict_images else config.run.predict_split}-{time.strftime('%Y%m%d-%H%M%S')}"
    candidates = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
    return RunFolder(next(folder / candidate for candidate in candidates if not (folder / candidate).exists()))


def samples_asked(config: RunConfig, description: StoreSetDescription) -> tuple[NDArray[np.int64], list[str]]:
    """Return the global indices (N,) of the images to predict, and the split of each.

    Raises
    ------
    ConfigError
        If an image is not in the dataset, none is named, or the file of images cannot be read.
    """
    if not config.run.predict_images:
        samples_N = description.samples_of(config.run.predict_split)
        if not len(samples_N):
            raise ConfigError(f"predict-split: the dataset has no {config.run.predict_split} images")
        return samples_N, [config.run.predict_split] * len(samples_N)
    images = parse_images(_ids(config.run.predict_images), description)
    if not images:
        raise ConfigError(f"predict-images: {config.run.predict_images!r} names no image")
    return np.array(images, np.int64), [description.split_of(image)[0] for image in images]


def check(config: RunConfig, run: RunFolder, description: StoreSetDescription) -> None:
    """Check that what is asked for can be predicted with a run's model on these patch stores.

    Raises
    ------
    OtherDataset
        If the weights of the run belong to other stores.
    ConfigError
        If an image or an Upper is asked for that is not there, or no Upper would be left.
    """
    if description.fingerprint != run.read_description().fingerprint:
        raise OtherDataset(
            f"{config.data.dataset}: its patch stores are not those that run {run.name} was trained on, to which the "
            "nodes' weights belong; put those back, or train anew"
        )
    samples_asked(config, description)
    if not config.run.uppers_left_out() < set(range(description.num_uppers)):
        raise ConfigError(
            f"predict-without: expected some of Uppers 0 to {description.num_uppers - 1}, but not all, "
            f"got {config.run.predict_without}"
        )


def save_result(folder: RunFolder, result: Result) -> None:
    """Write result.json, which marks the prediction as finished.

    Raises
    ------
    RunError
        If the disk refuses.
    """
    write_file(folder.path / _RESULT, msgspec.json.format(msgspec.json.encode(result), indent=2), RunError)


def load_result(folder: Path) -> Result | None:
    """Return the result of a prediction; None of one that is unfinished.

    Raises
    ------
    RunError
        If the file is damaged.
    """
    path = folder / _RESULT
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(read_file(path, RunError), type=Result)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from error


def predictions_of(run: Path) -> list[Path]:
    """Return the folders of a run's finished predictions that are of a whole split, by all Uppers."""
    results = {folder: load_result(folder) for folder in (run / FOLDER).glob("*/")}
    return [folder for folder, result in results.items() if result is not None and result.whole]


def _ids(text: str) -> list[str]:
    """Return the images that the setting names, also in files: by line, or with commas."""
    if "," in text and not os.path.isfile(expanded(text, "predict-images")):
        return [image for part in text.split(",") if part.strip() for image in _ids(part.strip())]
    path = expanded(text, "predict-images")
    if text.rpartition(":")[2].isdecimal() and not os.path.isfile(path):
        return [text]
    try:
        if path.stat().st_size > _MAX_IDS_BYTES:
            raise ConfigError(f"predict-images: {path} is larger than {_MAX_IDS_BYTES} bytes")
        return path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"predict-images: expected images such as 17,test:5 or a file of them, got {text!r} ({error})"
        ) from None
