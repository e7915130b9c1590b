"""Makes the third model's rivals: the reference quantised directly, whole and cut to the third's size."""

from __future__ import annotations

import copy
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn

from psl_flower.engine.build import Blueprint
from psl_flower.engine.inputs import normalise
from psl_flower.inference.evaluation import images_in
from psl_flower.lightening.artefacts import make_float, make_int8
from psl_flower.lightening.judging import images_to_calibrate
from psl_flower.lightening.pruning import ladder, prune
from psl_flower.lightening.quantising import folded
from psl_flower.lightening.settings import LighteningSettings
from psl_flower.lightening.sizing import choose_second, cost_of
from psl_flower.lightening.training import LightTraining, LocalTrainer, epochs_of_run
from psl_flower.models import PatchSplitNet
from psl_flower.models.architectures import BackboneSize
from simulations.lightening.judge import Artefact

_CALIBRATION_BATCH = 64


class Rivals:
    """Makes the rivals of the third model from the reference, `first`; `trainer` trains one of them."""

    def __init__(self, first: PatchSplitNet, trainer: LocalTrainer) -> None:
        self._first, self._trainer = first, trainer
        self._config, self._description = trainer.config, trainer.stores.description
        self._blueprint = Blueprint(self._config, self._description)

    def reference_files(self, folder: Path) -> tuple[Path, Path]:
        """Make and return files of the reference in float32 and directly in int8."""
        made = make_float(folded(self._first), self._description)
        int8 = make_int8(self._description, made, self._calibration_images(), LighteningSettings().weight_bits)
        return made.save(folder / "float32"), int8.save(folder / "int8")

    def at_degree(
        self, degree: int, settings: LighteningSettings, folder: Path, names: tuple[str, str]
    ) -> list[Artefact]:
        """Return the reference cut to the size of the third at a degree and quantised: without, and with training.

        It has the same width in every stage, but none wider than the reference's. Without training, BatchNorm's
        statistics are measured again; the training has as many epochs as the third's in all, from the labels alone.
        """
        size = self._size(degree, settings)
        cut = prune(self._first, self._blueprint.network(size)).eval()
        files = [(self._int8(self._measured_again(cut), settings, folder / names[0]), 0.0)]
        began, epochs = time.monotonic(), settings.epochs or epochs_of_run(self._config, self._description)
        epochs += settings.rounding_epochs or max(1, epochs // 4)
        training = LightTraining(what="cut reference", place=folder / f"degree-{degree:03d}", size=size, epochs=epochs)
        taught = self._trainer.train(training, cut.requires_grad_(True))
        files.append((self._int8(taught.cpu(), settings, folder / names[1]), time.monotonic() - began))
        parameters, multiply_adds = cost_of(self._blueprint, size)
        return [
            Artefact(
                name=name, degree=None, path=path, parameters=parameters, multiply_adds=multiply_adds, train_s=train_s
            )
            for name, (path, train_s) in zip(names, files, strict=True)
        ]

    def _size(self, degree: int, settings: LighteningSettings) -> BackboneSize:
        first = self._config.network.size
        second = choose_second(
            first,
            partial(cost_of, self._blueprint),
            ratio=settings.second_ratio,
            measure=settings.measure,
            growth=settings.growth,
        )
        third = ladder(second, settings.max_pruned, settings.degrees)[degree]
        a, b, c, d = (min(pair) for pair in zip(first.widths, third.widths, strict=True))
        return BackboneSize(depths=first.depths, widths=(a, b, c, d))

    @torch.no_grad()
    def _measured_again(self, net: PatchSplitNet) -> PatchSplitNet:
        """Return a copy whose BatchNorms have the statistics of training images as they now see them."""
        result = copy.deepcopy(net)
        for module in result.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None  # the mean of all batches
        for images_BCHW in self._calibration_images().split(_CALIBRATION_BATCH):
            result.train()(normalise(images_BCHW, self._description.mean, self._description.std))
        return result.eval()

    def _int8(self, net: PatchSplitNet, settings: LighteningSettings, folder: Path) -> Path:
        made, images_BCHW = make_float(folded(net), self._description), self._calibration_images()
        return make_int8(self._description, made, images_BCHW, settings.weight_bits).save(folder)

    def _calibration_images(self) -> torch.Tensor:
        """Return training images (B, C, H, W), the same every time."""
        drawn = images_to_calibrate(self._config, self._description)
        return torch.cat([images for images, _ in images_in(self._trainer.stores, drawn, len(drawn))])
