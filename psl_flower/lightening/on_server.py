"""The Lower's part in a training of a lightening."""

from __future__ import annotations

import torch
from torch import nn

from psl_flower.config import RunConfig
from psl_flower.engine.build import optimizer, smashed_shapes
from psl_flower.engine.distillation import LowerTeacher
from psl_flower.engine.lower import LowerEngine
from psl_flower.lightening.training import Training
from psl_flower.patches.description import StoreSetDescription


def lower_engine(
    config: RunConfig, description: StoreSetDescription, training: Training, lower: nn.Module, device: torch.device
) -> LowerEngine:
    """Return the Lower's engine in a training, with the Lower of the teacher beside it, if there is one.

    Parameters
    ----------
    config, description : RunConfig, StoreSetDescription
        Of the training (`training_config`).
    training : Training
        What is trained; its teacher's Lower is moved to the device.
    lower : nn.Module
        With the weights to begin with; trained in place.
    device : torch.device
        Where it computes.
    """
    teacher = None
    if training.teacher is not None:
        kept = training.teacher.net.lower.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        *_, C = smashed_shapes(config, description, training.teacher_size)[0]
        teacher = LowerTeacher(lower=kept, share=training.teacher.share, channels=C)
    return LowerEngine(
        lower,
        None,
        description.assignment,
        alpha=config.network.alpha,
        make_optimizer=lambda parameters: optimizer(config, parameters),
        use_autocast=config.machine.autocast,
        device=device,
        label_smoothing=config.training.label_smoothing,
        teacher=teacher,
    )


def shapes_up(
    config: RunConfig, description: StoreSetDescription, training: Training
) -> dict[int, tuple[int, int, int, int]]:
    """Return (K, h, w, C) of what each Upper sends up: the student's smashed data, and the teacher's behind them."""
    shapes = smashed_shapes(config, description, training.size)
    if training.teacher is None:
        return shapes
    *_, taught = smashed_shapes(config, description, training.teacher_size)[0]
    return {m: (K, h, w, C + taught) for m, (K, h, w, C) in shapes.items()}
