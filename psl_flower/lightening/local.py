"""Lightening in one process, on whole images: for those who have the images and need not keep them apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from psl_flower.inference.evaluation import images_in, stores_of
from psl_flower.inference.onnx_files import open_session
from psl_flower.inference.trained_model import load_trained_model
from psl_flower.lightening.artefacts import WHOLE_FILE, Artefacts, check_packages, make_int8
from psl_flower.lightening.folder import LighteningFolder
from psl_flower.lightening.judging import Speed, answers, measure_speed
from psl_flower.lightening.method import Answers, Lightened, Lightening
from psl_flower.lightening.settings import Request
from psl_flower.lightening.training import LightTraining, LocalTrainer
from psl_flower.models import PatchSplitNet
from psl_flower.runs.folder import RunFolder
from psl_flower.system.devices import choose_device
from psl_flower.text import OnProgress


def lighten(
    run: RunFolder,
    request: Request,
    progress: OnProgress,
    say: Callable[[str], None] = lambda line: None,
) -> Lightened:
    """Find a light model of a run that has a trained model; rerun after an interruption, it keeps finished work.

    `progress` is called as progress(what, done, in all), `say` with lines for the user; see `Lightening.find`.

    Raises
    ------
    PslError
        If the run, its images, a setting or the runtime does not allow it.
    """
    check_packages()
    trained = load_trained_model(run, choose_device("auto"))
    # The labels that the run was trained with, as over the federation, even if some were corrected since.
    stores = stores_of(run, trained, progress, labels_version=trained.description.labels_version)
    with stores.opened() as opened:
        trainer = LocalTrainer(
            config=trained.config, stores=stores, opened=opened, device=trained.device, progress=progress
        )
        goals, settings = request
        backend = LocalBackend(trainer, threads=settings.threads, batch=settings.batch)
        return Lightening(LighteningFolder(run, settings), trained, settings, backend).find(goals, say)


class LocalBackend:
    """A machine that has whole images: implements `psl_flower.lightening.method.Backend`."""

    def __init__(self, trainer: LocalTrainer, *, threads: int, batch: int) -> None:
        self._trainer, self._threads, self._batch = trainer, threads, batch

    def train(self, training: LightTraining, net: PatchSplitNet) -> PatchSplitNet:
        """Train a network in place; see `LocalTrainer.train`."""
        return self._trainer.train(training, net)

    def quantise(self, made: Artefacts, samples_N: NDArray[np.int64], bits: int) -> Artefacts:
        """Return a network in int8, calibrated on these images."""
        stores = self._trainer.stores
        images = torch.cat([images for images, _ in images_in(stores, samples_N, len(samples_N))])
        return make_int8(stores.description, made, images, bits)

    def answers(self, name: str, place: Path, samples_N: NDArray[np.int64]) -> Answers:
        """Return the predictions of the whole network's file for these images."""
        labels: list[NDArray[np.int64]] = []
        session = open_session(place / WHOLE_FILE, self._threads)
        return Answers(answers(session, self._images(name, samples_N, labels)), np.concatenate(labels))

    def speed(self, place: Path) -> Speed:
        """Return the speed of the whole network's file on test images."""
        stores = self._trainer.stores
        samples_N = np.resize(stores.description.samples_of("test"), self._batch)
        images = torch.cat([images for images, _ in images_in(stores, samples_N, self._batch)])
        return measure_speed(open_session(place / WHOLE_FILE, self._threads), images)

    def _images(
        self, what: str, samples_N: NDArray[np.int64], labels: list[NDArray[np.int64]]
    ) -> Iterator[torch.Tensor]:
        """Yield images in batches, and note their labels."""
        trainer, done = self._trainer, 0
        for images_BCHW, labels_B in images_in(trainer.stores, samples_N, trainer.config.training.evaluate_batch_size):
            labels.append(labels_B)
            done += len(labels_B)
            yield images_BCHW
            trainer.progress(f"judging {what}", done, len(samples_N))
