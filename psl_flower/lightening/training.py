"""Trainings of a lightening: in one process, resumable after every epoch, and the Lower's part over the federation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from psl_flower.config import UNFROZEN, RunConfig
from psl_flower.engine.automatic_settings import MOST_BATCH, lr_for, planned
from psl_flower.engine.batches import batch_order
from psl_flower.engine.build import Blueprint, CompressionTraining
from psl_flower.engine.distillation import LowerTeacher, Teacher
from psl_flower.engine.lower import LowerEngine
from psl_flower.engine.one_process import OneProcessTrainer
from psl_flower.models import PatchSplitNet
from psl_flower.models.architectures import BackboneSize
from psl_flower.patches.description import StoreSetDescription
from psl_flower.patches.store import PatchStore
from psl_flower.stores.store_set import StoreSet
from psl_flower.system.devices import to_device
from psl_flower.text import OnProgress

# Of the run's own peak learning rate: rounding moves weights a little, and there is no BatchNorm to hold them.
_ROUNDING_LR_SHARE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class SizedTeacher(Teacher):
    """A teacher, with the size of its network."""

    size: BackboneSize


@dataclass(frozen=True, slots=True, kw_only=True)
class LightTraining:
    """One training of a lightening."""

    what: str  #: Its name in progress and errors.
    place: Path  #: The network's folder.
    size: BackboneSize  #: The network's.
    epochs: int  #: 1 or more.
    teacher: SizedTeacher | None = None  #: Teacher whose answers are learnt in addition to the labels.
    weight_bits: int = 0  #: Bits to which weights are rounded (`quantising.with_rounding`); 0: they are not.

    @property
    def on_nodes(self) -> CompressionTraining:
        """The training's message to nodes."""
        teacher = self.teacher.size if self.teacher else None
        return CompressionTraining(size=self.size, weight_bits=self.weight_bits, teacher=teacher)

    @property
    def stage(self) -> str:
        """Which of a network's trainings this is, for names of files."""
        return "rounding" if self.weight_bits else "training"

    @property
    def checkpoint(self) -> Path:
        """File of its state."""
        return self.place / f"{self.stage}.pt"


def epochs_of_run(config: RunConfig, description: StoreSetDescription) -> int:
    """Return the epochs that a run was trained for, rounded up."""
    config, per_epoch = planned(config, description), batch_order(config, description).steps_per_epoch
    return -(-config.training.rounds * (config.training.steps_per_round or per_epoch) // per_epoch)


def training_config(config: RunConfig, epochs: int, *, rounding: bool) -> RunConfig:
    """Return the settings of a training of `epochs` rounds, 1 or more, each an epoch, made from those of the run.

    With `rounding`, of weights, the learning rate is lower.
    """
    # Uppers whose channels were cut one by one are not averaged: a channel is not the same in all.
    changes: dict[str, Any] = {
        "alpha": 0.0, "adaptation_server": False, "adaptation_node": "", "average_every": 0, "rounds": epochs,
        "steps_per_round": 0, **UNFROZEN,
    }  # fmt: skip
    if rounding:
        # Rounding computes in float32.
        lr = config.training.lr or lr_for(config.training.optimizer, config.training.batch_size or MOST_BATCH)
        changes |= {"lr": lr * _ROUNDING_LR_SHARE, "schedule": "cosine", "autocast": False}
    return config.replace(**changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalTrainer:
    """Where networks are trained: the run's images, settings and device."""

    config: RunConfig  #: The run's.
    stores: StoreSet  #: The run's images, with labels.
    opened: Sequence[PatchStore]  #: The same, open, one for each Upper.
    device: torch.device  #: Device that it computes on.
    progress: OnProgress  #: Called as progress(what, steps done, steps in all).

    def train(self, training: LightTraining, net: PatchSplitNet) -> PatchSplitNet:
        """Train a network in place on the run's training images; return it, on the device and in eval mode.

        Batches, augmentation and learning rate are the run's own, without auxiliary losses. An interrupted
        training continues from its last epoch; its checkpoint is kept, so that a finished one is not repeated.

        Raises
        ------
        TrainingError
            If the loss is not finite any more.
        RunError
            If the disk refuses, or the checkpoint is damaged.
        """
        config = training_config(self.config, training.epochs, rounding=training.weight_bits > 0)
        stores, teacher = self.stores, training.teacher
        if teacher is not None:
            to_device(teacher.net, self.device)
        trainer = OneProcessTrainer(
            config, stores.description, stores.labels, self.opened, self.device, net=net, teacher=teacher
        )
        advice = "train the run with a lower lr"
        trainer.train_resumably(training.checkpoint, training.what, self.progress, advice=advice)
        return net.eval()


def lower_engine(blueprint: Blueprint, training: LightTraining, lower: nn.Module, device: torch.device) -> LowerEngine:
    """Return the Lower's engine in a training, which trains `lower` in place.

    `blueprint` is that of `training_config`. The Lower of the teacher, if there is one, is moved to the device.
    """
    teacher = None
    if training.teacher is not None:
        kept = to_device(training.teacher.net.lower, device)
        *_, C = blueprint.smashed_shapes(training.teacher.size)[0]
        teacher = LowerTeacher(lower=kept, share=training.teacher.share, channels=C)
    return blueprint.lower_engine(device, lower, teacher)


def shapes_up(blueprint: Blueprint, training: LightTraining) -> dict[int, tuple[int, int, int, int]]:
    """Return (K, h, w, C) of what each Upper sends up: the student's smashed data, and the teacher's behind them."""
    shapes = blueprint.smashed_shapes(training.size)
    if training.teacher is None:
        return shapes
    *_, teachers_C = blueprint.smashed_shapes(training.teacher.size)[0]
    return {m: (K, h, w, C + teachers_C) for m, (K, h, w, C) in shapes.items()}
