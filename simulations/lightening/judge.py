"""Measures the files of light models: their answers to the test images, and their speeds in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from psl_flower.config import RunConfig
from psl_flower.inference.evaluation import images_in
from psl_flower.inference.onnx_files import open_session
from psl_flower.lightening.judging import Speed, answers, measure_speed
from psl_flower.stores.store_set import StoreSet
from simulations.lightening.results import Model
from simulations.reports import Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    """A file to be measured; attributes are those of `simulations.lightening.results.Model`."""

    name: str
    degree: int | None
    path: Path
    parameters: int
    multiply_adds: int
    train_s: float

    def measured(self, right: str, speeds: Mapping[str, Sequence[Speed]], reference: str) -> Model:
        """Return the model with what was measured: its answers, and the speeds of every file in every turn."""
        own, base = speeds[self.name], speeds[reference]
        return Model(
            name=self.name,
            degree=self.degree,
            right=right,
            num_bytes=self.path.stat().st_size,
            parameters=self.parameters,
            multiply_adds=self.multiply_adds,
            images_per_s=Spread.of(speed.images_per_s for speed in own),
            latency_ms=Spread.of(speed.latency_ms for speed in own),
            times_as_fast=Spread.of(a.images_per_s / b.images_per_s for a, b in zip(own, base, strict=True)),
            train_s=self.train_s,
        )


class Judge:
    """Measures the ONNX files of light models with onnxruntime."""

    def __init__(self, config: RunConfig, stores: StoreSet, threads: int, batch: int) -> None:
        self._stores, self._threads, self._batch = stores, threads, batch
        self._test = stores.description.samples_of("test")
        self._evaluation_batch = config.training.evaluate_batch_size

    def right(self, path: Path) -> str:
        """Return for every test image "1" where the answer is right, otherwise "0"."""
        labels: list[NDArray[np.int64]] = []

        def images() -> Iterator[torch.Tensor]:
            for images_BCHW, labels_B in images_in(self._stores, self._test, self._evaluation_batch):
                labels.append(labels_B)
                yield images_BCHW

        found_N = answers(open_session(path, self._threads), images())
        return "".join("01"[int(right)] for right in found_N == np.concatenate(labels))

    def speed_of(self, path: Path) -> Speed:
        """Return the speed of one file."""
        return measure_speed(open_session(path, self._threads), self._images())

    def in_turns(
        self, artefacts: Sequence[Artefact], repetitions: int, show: Callable[[int], None]
    ) -> dict[str, list[Speed]]:
        """Return the speeds of every file, by name, one of each turn; every other turn goes backwards.

        `show` is called with the number of turns done.
        """
        images_BCHW = self._images()
        sessions = {artefact.name: open_session(artefact.path, self._threads) for artefact in artefacts}
        speeds: dict[str, list[Speed]] = {name: [] for name in sessions}
        for turn in range(repetitions):
            for name in list(sessions)[:: 1 if turn % 2 == 0 else -1]:
                speeds[name].append(measure_speed(sessions[name], images_BCHW))
            show(turn + 1)
        return speeds

    def _images(self) -> torch.Tensor:
        samples_N = np.resize(self._test, self._batch)
        return torch.cat([images for images, _ in images_in(self._stores, samples_N, self._batch)])
