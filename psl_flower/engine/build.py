"""Builds every party of a run from settings and store description, identically on every machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from psl_flower.config import RunConfig, size_text
from psl_flower.engine.adaptation import AdaptationEngine, AdaptationNode
from psl_flower.engine.augment import Augmentation
from psl_flower.engine.automatic_settings import planned, split_training
from psl_flower.engine.batches import batch_order
from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.engine.distillation import LowerTeacher
from psl_flower.engine.freezing import Freezing
from psl_flower.engine.lower import LowerEngine
from psl_flower.engine.noise import CodeNoise, code_noise_of
from psl_flower.engine.optimizers import Adam, Optimizer, PartyOptimizer, Sgd, Together
from psl_flower.engine.rounding_feedback import GradientFeedback
from psl_flower.engine.schedule import Schedule
from psl_flower.engine.task import Task
from psl_flower.engine.upper import UpperOptions
from psl_flower.engine.upper_averaging import Averaging, weight_count
from psl_flower.errors import ConfigError, FrameMismatch
from psl_flower.models import AdaptationNet, PatchSplitNet
from psl_flower.models.architectures import BackboneSize
from psl_flower.models.split import (
    Lower,
    Upper,
    adaptation_seed,
    lower_seed,
    reset_parameters,
    smashed_size,
    upper_seed,
)
from psl_flower.patches import PatchGrid
from psl_flower.patches.description import StoreSetDescription
from psl_flower.text import printable


class CompressionTraining(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="training"):
    """A training of another network than the run's own, from weights that were put in place (`psl lighten`)."""

    size: BackboneSize
    #: Bits that its weights are rounded to (`psl_flower.lightening.quantising`); 0: no rounding.
    weight_bits: int = 0
    teacher: BackboneSize | None = None  #: Size of the teacher network, if there is one.


class OnnxInference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="onnx"):
    """Predictions by light Uppers, files that onnxruntime runs, in place of the run's own."""

    digests: dict[int, str]  #: SHA-256 of every Upper's file, as hexadecimal text.


class _Encoded(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    config: dict[str, str | int | float | bool]
    description: StoreSetDescription
    override: CompressionTraining | OnnxInference | None = None


@dataclass(frozen=True, slots=True)
class Blueprint:
    """Builds the models and engines of all parties of a run, each on its own machine.

    In all methods, `size` is that of the network's backbone, its own by default.
    """

    #: The run's settings, with numbers where those given leave them to the dataset
    #: (`psl_flower.engine.automatic_settings`).
    config: RunConfig
    description: StoreSetDescription  #: Description of the stores that the run uses.
    override: CompressionTraining | OnnxInference | None = None  #: Replaces the run's own Uppers on nodes.

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", planned(self.config, self.description))

    def encode(self) -> bytes:
        """Return the bytes that `NodeTask.settings` carries."""
        return msgspec.msgpack.encode(
            _Encoded(config=self.config.to_mapping(), description=self.description, override=self.override)
        )

    @classmethod
    def decode(cls, settings: bytes) -> Blueprint:
        """Return the blueprint that `encode` wrote.

        Raises
        ------
        FrameMismatch
            If the bytes are malformed.
        ConfigError
            If the settings are not valid.
        """
        try:
            encoded = msgspec.msgpack.decode(settings, type=_Encoded)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise FrameMismatch(f"malformed settings from the Lower: {printable(error, 200)}") from None
        config = RunConfig.from_mapping(encoded.config)
        return cls(config, encoded.description, encoded.override)

    @property
    def grid(self) -> PatchGrid:
        """The grid as the network cuts images: its margin is the Uppers' context, not the stores'."""
        return self.description.grid().with_margin(self.config.network.context)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of a patch with its context, as an Upper takes it."""
        return (self.description.channels, *self.grid.field_size)

    def upper(self, m: int, size: BackboneSize | None = None) -> Upper:
        """Return Upper model m with its initial weights."""
        model = Upper(
            in_channels=self.description.channels,
            padding=self.config.network.padding,
            context=self.config.network.context,
            **self._architecture(size),
        )
        reset_parameters(model, upper_seed(self.config.training.seed, m, self.config.network.upper_init))
        return model

    def lower(self, size: BackboneSize | None = None) -> Lower:
        """Return the Lower model with its initial weights."""
        description = self.description
        model = Lower(grid=self.grid, num_classes=description.num_classes, **self._architecture(size))
        reset_parameters(model, lower_seed(self.config.training.seed))
        return model

    def network(self, size: BackboneSize | None = None) -> PatchSplitNet:
        """Return the whole network with the initial weights of all parties."""
        description = self.description
        return PatchSplitNet(
            grid=self.grid,
            num_uppers=description.num_uppers,
            num_classes=description.num_classes,
            in_channels=description.channels,
            # The stores', not the setting's: an owner's rotation may have moved positions.
            assignment=description.assignment,
            seed=self.config.training.seed,
            upper_init=self.config.network.upper_init,
            padding=self.config.network.padding,
            **self._architecture(size),
        )

    def _architecture(self, size: BackboneSize | None) -> dict[str, Any]:
        network = self.config.network
        return {
            "backbone": network.backbone,
            "cut": network.cut,
            "stem": network.stem_for(self.description.image_size),
            "protection": network.cut_protection,
            "size": size or network.size,
        }

    def adaptation(self) -> AdaptationNet | None:
        """Return the Adaptation Net with its initial weights; None if alpha is 0."""
        if self.config.network.alpha == 0:
            return None
        _, h, w, C = self.smashed_shapes()[0]
        net = AdaptationNet((h, w), self.description.num_classes, C)
        reset_parameters(net, adaptation_seed(self.config.training.seed))
        return net

    def lower_engine(
        self, device: torch.device, lower: nn.Module | None = None, teacher: LowerTeacher | None = None
    ) -> LowerEngine:
        """Return the Lower's side of a run; with `lower` as its model, and taught by `teacher`, if given."""
        network = self.config.network
        return LowerEngine(
            self.lower() if lower is None else lower,
            None if network.adaptation_server else self.adaptation_engine(device),
            self.description.assignment,
            adaptation_elsewhere=network.adaptation_server,
            teacher=teacher,
            feedback=self.gradient_feedback(),
            device=device,
            **self._learning,
        )

    def gradient_feedback(self) -> GradientFeedback | None:
        """Return the error feedback of a new training; None if it has none."""
        wire = self.config.wire
        return GradientFeedback(wire.wire_gradients) if wire.gradient_feedback else None

    def adaptation_engine(self, device: torch.device) -> AdaptationEngine | None:
        """Return the Adaptation Net's side of a run; None if alpha is 0."""
        net = self.adaptation()
        return (
            None if net is None else AdaptationEngine(net, self.description.assignment, device=device, **self._learning)
        )

    @property
    def _learning(self) -> dict[str, Any]:
        return {
            "alpha": self.config.network.alpha,
            "make_optimizer": self.optimizer,
            "use_autocast": self.config.machine.autocast,
            "label_smoothing": self.config.training.label_smoothing,
        }

    def adaptation_node(self, device: torch.device, checkpoints: Checkpoints) -> AdaptationNode:
        """Return the Adaptation Net as a party of a run, on a separate node.

        Raises
        ------
        ConfigError
            If the run has none, or too few training images.
        """
        engine = self.adaptation_engine(device)
        if engine is None:
            raise ConfigError("adaptation-server: with alpha = 0 there is no Adaptation Net")
        return AdaptationNode(
            engine,
            smashed_shape=self.smashed_shapes()[0][1:],
            num_classes=self.description.num_classes,
            num_samples=batch_order(self.config, self.description).num_samples,
            checkpoints=checkpoints,
        )

    def upper_options(self, device: torch.device) -> UpperOptions:
        """Return an Upper's options: all but its model and store."""
        return UpperOptions(
            make_optimizer=self.upper_optimizer,
            mean=self.description.mean,
            std=self.description.std,
            augmentation=self.augmentation(),
            autocast=self.config.machine.autocast,
            device=device,
            averaged=self._averages,
            frozen_after=None if self.freezing is None else self.freezing.after,
            noise=self.code_noise,
            lessons=None if self.code_noise is None else self._lessons,
        )

    def _lessons(self) -> Task:
        """Return the training task where labels are not known: they have no part in a plan. Raises what `task` does."""
        return self.task(np.zeros(self.description.num_samples, np.int64))

    @property
    def code_noise(self) -> CodeNoise | None:
        """The source of the noise on codes; None without noise."""
        return code_noise_of(self.config)

    def averaging(self) -> Averaging | None:
        """Return the interval of averaging; None if the Uppers are not averaged, or there is only one."""
        if not self._averages:
            return None
        return Averaging(every=self.config.network.average_every, weight_count=weight_count(self.upper(0)))

    @property
    def _averages(self) -> bool:
        return self.config.network.average_every > 0 and self.description.num_uppers > 1

    def task(self, labels: NDArray[np.int64]) -> Task:
        """Return the training task; `labels` are those of all samples.

        Raises
        ------
        ConfigError
            If there are too few training images, or the augmentation does not fit them.
        """
        training, order = self.config.training, batch_order(self.config, self.description)
        return Task(
            order=order,
            schedule=self.schedule(),
            labels=labels,
            augmentation=self.augmentation(),
            test=self.description.samples_of("test"),
            valid=split_training(self.config, self.description)[1],
            evaluate_batch_size=training.evaluate_batch_size,
            steps_per_round=self.steps_per_round,
            class_weights_K=self._class_weights(labels[order.pool]),
            freezing=self.freezing,
        )

    @property
    def freezing(self) -> Freezing | None:
        """When the Uppers no longer learn; None for never. ConfigError if there are too few training images."""
        training = self.config.training
        if training.freeze_uppers_after < 0:
            return None
        return Freezing(
            after=training.freeze_uppers_after * self.steps_per_round, views=training.looks, seed=training.seed
        )

    @property
    def steps_per_round(self) -> int:
        """Steps of a round; ConfigError if there are too few training images."""
        return self.config.training.steps_per_round or batch_order(self.config, self.description).steps_per_epoch

    def schedule(self) -> Schedule:
        """Return the learning rate by step; raises ConfigError if there are too few training images."""
        training = self.config.training
        return Schedule(
            kind=training.schedule,
            peak=training.lr,
            total_steps=training.rounds * self.steps_per_round,
            warm_up=training.warm_up_steps,
        )

    def smashed_shapes(self, size: BackboneSize | None = None) -> dict[int, tuple[int, int, int, int]]:
        """Return (K, h, w, C) of each Upper's smashed data, without the batch."""
        description = self.description
        C, h, w = smashed_size(self.upper(0, size), self.input_shape)
        return {m: (len(description.positions_of(m)), h, w, C) for m in range(description.num_uppers)}

    def augmentation(self) -> Augmentation:
        """Return the transforms that the settings ask for.

        Raises
        ------
        ConfigError
            If a cut-out would be as large as the images, or a shift as the patches, whose size the images decided, or
            the stores' margin is smaller than shift and context together.
        """
        training, description = self.config.training, self.description
        self.config.check_margin(description.margin)
        if not description.margin:
            training.check_shift(description.patch_size)
        if training.cutout >= min(description.image_size):
            raise ConfigError(
                f"cutout: a square of {training.cutout} pixels may blank whole images of "
                f"{size_text(description.image_size)}; choose less, such as {min(description.image_size) // 2}"
            )
        return Augmentation(
            grid=description.grid(),
            context=self.config.network.context,
            flip=training.flip,
            shift=training.shift,
            cutout=training.cutout,
            mixup=training.mixup,
            patch_dropout=training.patch_dropout,
        )

    def _class_weights(self, labels_N: NDArray[np.int64]) -> torch.Tensor | None:
        """Return N / (classes among them * images of the class), as scikit-learn's "balanced"; 0 of other classes."""
        if self.config.training.class_weights == "none":
            return None
        counts_K = np.bincount(labels_N, minlength=self.description.num_classes)
        present = counts_K > 0
        weights_K = np.zeros(len(counts_K))
        weights_K[present] = len(labels_N) / (present.sum() * counts_K[present])
        return torch.from_numpy(weights_K).float()

    def optimizer(self, parameters: Iterable[nn.Parameter], lr_scale: float = 1.0) -> PartyOptimizer:
        """Return the settings' optimiser for one party's parameters."""
        training = self.config.training
        options = {"clip_norm": training.clip_norm, "lr_scale": lr_scale}
        if training.optimizer == "sgd":
            return Sgd(parameters, training.momentum, training.weight_decay, nesterov=training.nesterov, **options)
        return Adam(parameters, training.weight_decay, decoupled=training.optimizer == "adamw", **options)

    def upper_optimizer(self, parameters: Iterable[nn.Parameter]) -> PartyOptimizer:
        """Return the optimiser for an Upper's parameters, whose learning rate may be scaled."""
        return self.optimizer(parameters, self.config.training.upper_lr_scale)

    def optimizer_of_all(self, net: PatchSplitNet, adaptation: AdaptationNet | None) -> Optimizer:
        """Return the optimisers of all parties as one, for one process."""
        uppers = [self.upper_optimizer(upper.parameters()) for upper in net.uppers]
        others = [net.lower, *([adaptation] if adaptation is not None else [])]
        return Together([*uppers, *(self.optimizer(part.parameters()) for part in others)])
