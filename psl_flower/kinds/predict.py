"""A run that predicts with a trained run's model, without collecting it; see `psl_flower.runs.predictions`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from psl_flower.config.fields import RUN_NAME, Form, setting
from psl_flower.errors import ConfigError, RunError
from psl_flower.kinds.kind import Kind, Work, check_stores, trained_run
from psl_flower.patches.description import StoreSetDescription
from psl_flower.runs.folder import RunFolder, name_by_time
from psl_flower.runs.image_ids import parse_images
from psl_flower.runs.predictions import FOLDER
from psl_flower.system.files import disk_errors
from psl_flower.text import expanded

_UPPERS = Form(r"(\d{1,6}(,\d{1,6})*)?", 'numbers of Uppers, such as "0,3"')
_MAX_IDS_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Predict(Kind):
    """Predict a split of a run's dataset, or some of its images; the run stays as it is."""

    handler: ClassVar[str] = "server.predicting:predict"
    unit: ClassVar[str] = "batch"

    predict: str = setting(
        "", "predict with this run's model, without collecting it; nothing is trained", form=RUN_NAME
    )
    predict_split: str = setting("test", "which split to predict", choices=("test", "train"))
    predict_images: str = setting("", "instead: images such as 17,test:5, or a file of them", path=True)
    predict_without: str = setting(
        "", "Uppers to leave out, such as 0,3: zeros replace their smashed data", form=_UPPERS
    )
    predict_light: bool = setting(False, "predict with the light Uppers and Lower that psl lighten has put in place")

    @property
    def split(self) -> str:
        """The split that is predicted; empty if images are named."""
        return "" if self.predict_images else self.predict_split

    @property
    def without(self) -> frozenset[int]:
        """The Uppers that are left out."""
        return frozenset(int(text) for text in self.predict_without.split(",") if text)

    def find(self) -> Work:
        """Return the trained run, and the folder of the prediction: of the name given, or of the split and the time."""
        run, settings = trained_run(self.config, "predict", self.predict, "no model to predict with")
        return Work(config=settings, source=run, folder=self._free_folder(run))

    def begin(self) -> Work:
        """Make the folder and return the work; RunError also if the disk refuses."""
        work = self.find()
        with disk_errors(work.folder.path, "made", RunError):
            work.folder.path.mkdir(parents=True)
        return work

    def check(self, work: Work, description: StoreSetDescription) -> str:
        """Check that the stores are the run's, and that the requested images, Uppers and light model exist."""
        check_stores(work, description)
        self.samples(description)
        if not self.without < set(range(description.num_uppers)):
            raise ConfigError(
                f"predict-without: expected some of Uppers 0 to {description.num_uppers - 1}, but not all, "
                f"got {self.predict_without}"
            )
        if self.predict_light:
            from psl_flower.lightening.folder import light_model  # loads torch

            light_model(work.source, description.num_uppers)
        return ""

    def samples(self, description: StoreSetDescription) -> tuple[NDArray[np.int64], list[str]]:
        """Return the global indices (N,) of the images to predict, and the split of each.

        Raises
        ------
        ConfigError
            If an image is not in the dataset, none is named, or the file of images cannot be read.
        """
        if self.split:
            samples_N = description.samples_of(self.split)
            if not len(samples_N):
                raise ConfigError(f"predict-split: the dataset has no {self.split} images")
            return samples_N, [self.split] * len(samples_N)
        images = parse_images(_ids(self.predict_images), description)
        if not images:
            raise ConfigError(f"predict-images: {self.predict_images!r} names no image")
        return np.array(images, np.int64), [description.split_of(image)[0] for image in images]

    def _free_folder(self, run: RunFolder) -> RunFolder:
        folder, name = run.path / FOLDER, self.config.run.run_name
        if name and (folder / name).exists():
            raise RunError(f"{folder / name}: there is a prediction of this name already; choose another")
        return RunFolder(folder / (name or name_by_time(folder, self.split or "images")))


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
