"""Builds every party's part of a run from the settings and the description of the stores, alike wherever it runs."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from psl_flower.config import RunConfig, size_text
from psl_flower.engine.adaptation import AdaptationEngine, AdaptationNode
from psl_flower.engine.augment import Augmentation
from psl_flower.engine.batches import BatchOrder, batch_order
from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.engine.lower import LowerEngine
from psl_flower.engine.optimizers import Optimizer, Sgd
from psl_flower.engine.rounds import Task
from psl_flower.engine.schedule import Schedule
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
from psl_flower.patches.description import StoreSetDescription


class CompressionTraining(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="phase"):
    """A training of another network than the run's own, from weights that were put in place (`psl lighten`).

    Attributes
    ----------
    size : BackboneSize
        Of the network.
    weight_bits : int
        To how many bits weights are rounded in it (`psl_flower.lightening.quantising`); 0: not at all.
    teacher : BackboneSize or None
        Of the network whose answers it learns, if it does.
    """

    size: BackboneSize
    weight_bits: int = 0
    teacher: BackboneSize | None = None


class OnnxInference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="shipped"):
    """Predictions by light Uppers, files that onnxruntime runs, in place of the run's own.

    Attributes
    ----------
    digests : dict[int, str]
        SHA-256 of every Upper's file, as hexadecimal text.
    """

    digests: dict[int, str]


class _Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    config: dict[str, str | int | float | bool]
    description: StoreSetDescription
    override: CompressionTraining | OnnxInference | None = None


def encode_settings(
    config: RunConfig, description: StoreSetDescription, override: CompressionTraining | OnnxInference | None = None
) -> bytes:
    """Return what a node builds its models from, as `NodeTask.settings` carries it.

    `override` names other models than the run's own.
    """
    return msgspec.msgpack.encode(_Settings(config=config.to_mapping(), description=description, override=override))


def decode_settings(settings: bytes) -> tuple[RunConfig, StoreSetDescription]:
    """Return the settings and the description of the stores that `encode_settings` was given.

    Raises
    ------
    FrameMismatch
        If the bytes are not that.
    ConfigError
        If the settings are not valid.
    """
    told = _decoded(settings)
    return RunConfig.from_mapping(told.config), told.description


def decode_override(settings: bytes) -> CompressionTraining | OnnxInference | None:
    """Return what other models `encode_settings` was told of; errors as of `decode_settings`."""
    return _decoded(settings).override


def _decoded(settings: bytes) -> _Settings:
    try:
        return msgspec.msgpack.decode(settings, type=_Settings)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FrameMismatch(f"malformed settings from the Lower: {str(error)[:200]}") from None


def make_upper(
    config: RunConfig, description: StoreSetDescription, upper: int, size: BackboneSize | None = None
) -> Upper:
    """Return the Upper model of index `upper` with its initial weights; `size` as in `make_network`."""
    model = Upper(
        backbone=config.network.backbone,
        cut=config.network.cut,
        stem=config.network.stem_for(description.image_size),
        in_channels=description.channels,
        protection=config.network.protection,
        size=size,
    )
    reset_parameters(model, upper_seed(config.training.seed, upper, config.network.upper_init))
    return model


def make_lower(config: RunConfig, description: StoreSetDescription, size: BackboneSize | None = None) -> Lower:
    """Return the Lower model with its initial weights; `size` as in `make_network`."""
    model = Lower(
        grid=description.grid(),
        num_classes=description.num_classes,
        backbone=config.network.backbone,
        cut=config.network.cut,
        stem=config.network.stem_for(description.image_size),
        protection=config.network.protection,
        size=size,
    )
    reset_parameters(model, lower_seed(config.training.seed))
    return model


def make_network(
    config: RunConfig, description: StoreSetDescription, size: BackboneSize | None = None
) -> PatchSplitNet:
    """Return the whole network with the initial weights of all parties; `size` is the backbone's own by default."""
    net = PatchSplitNet(
        grid=description.grid(),
        num_uppers=description.num_uppers,
        num_classes=description.num_classes,
        in_channels=description.channels,
        backbone=config.network.backbone,
        cut=config.network.cut,
        stem=config.network.stem_for(description.image_size),
        # The stores', not the setting's: an owner's rotation may have moved positions.
        assignment=description.assignment,
        protection=config.network.protection,
        size=size,
        seed=config.training.seed,
        upper_init=config.network.upper_init,
    )
    return net


def make_adaptation(config: RunConfig, description: StoreSetDescription) -> AdaptationNet | None:
    """Return the Adaptation Net with its initial weights; None where alpha is 0."""
    if config.network.alpha == 0:
        return None
    _, h, w, C = smashed_shapes(config, description)[0]
    net = AdaptationNet((h, w), description.num_classes, C)
    reset_parameters(net, adaptation_seed(config.training.seed))
    return net


def make_lower_engine(config: RunConfig, description: StoreSetDescription, device: torch.device) -> LowerEngine:
    """Return the Lower's side of a run."""
    return LowerEngine(
        make_lower(config, description),
        None if config.network.adaptation_server else make_adaptation_engine(config, description, device),
        description.assignment,
        alpha=config.network.alpha,
        make_optimizer=lambda parameters: optimizer(config, parameters),
        use_autocast=config.machine.autocast,
        device=device,
        adaptation_elsewhere=config.network.adaptation_server,
        label_smoothing=config.training.label_smoothing,
    )


def make_adaptation_engine(
    config: RunConfig, description: StoreSetDescription, device: torch.device
) -> AdaptationEngine | None:
    """Return the Adaptation Net's side of a run; None where alpha is 0."""
    net = make_adaptation(config, description)
    if net is None:
        return None
    return AdaptationEngine(
        net,
        description.assignment,
        alpha=config.network.alpha,
        make_optimizer=lambda parameters: optimizer(config, parameters),
        use_autocast=config.machine.autocast,
        device=device,
        label_smoothing=config.training.label_smoothing,
    )


def make_adaptation_node(
    config: RunConfig, description: StoreSetDescription, device: torch.device, checkpoints: Checkpoints
) -> AdaptationNode:
    """Return the Adaptation Net as a party of a run, on a node of its own.

    Raises
    ------
    ConfigError
        If the run has none, or too few training images.
    """
    engine = make_adaptation_engine(config, description, device)
    if engine is None:
        raise ConfigError("adaptation-server: with alpha = 0 there is no Adaptation Net")
    return AdaptationNode(
        engine,
        smashed_shape=smashed_shapes(config, description)[0][1:],
        num_classes=description.num_classes,
        num_samples=batch_order(config, description).num_samples,
        checkpoints=checkpoints,
    )


def upper_options(config: RunConfig, description: StoreSetDescription, device: torch.device) -> UpperOptions:
    """Return what an Upper needs to know besides its model and store."""
    return UpperOptions(
        make_optimizer=lambda parameters: optimizer(config, parameters),
        mean=description.mean,
        std=description.std,
        augmentation=augmentation(config, description),
        autocast=config.machine.autocast,
        device=device,
        averaged=_averages(config, description),
    )


def make_averaging(config: RunConfig, description: StoreSetDescription) -> Averaging | None:
    """Return when the Uppers are averaged; None where they are not, or there is but one."""
    if not _averages(config, description):
        return None
    return Averaging(every=config.network.average_every, weight_count=weight_count(make_upper(config, description, 0)))


def _averages(config: RunConfig, description: StoreSetDescription) -> bool:
    return config.network.average_every > 0 and description.num_uppers > 1


def make_task(config: RunConfig, description: StoreSetDescription, labels: NDArray[np.int64]) -> Task:
    """Return what is trained on which samples.

    Raises
    ------
    ConfigError
        If there are too few training images, or the augmentation does not fit them.
    """
    order = batch_order(config, description)
    total_steps = config.training.rounds * steps_per_round(config, order)
    return Task(
        order=order,
        schedule=Schedule(kind=config.training.schedule, peak=config.training.lr, total_steps=total_steps),
        labels=labels,
        augmentation=augmentation(config, description),
        test=description.samples_of("test"),
        evaluate_batch_size=config.training.evaluate_batch_size,
    )


def steps_per_round(config: RunConfig, order: BatchOrder) -> int:
    """Return the steps of a round: the setting, or one epoch."""
    return config.training.steps_per_round or order.steps_per_epoch


def smashed_shapes(
    config: RunConfig, description: StoreSetDescription, size: BackboneSize | None = None
) -> dict[int, tuple[int, int, int, int]]:
    """Return (K, h, w, C) of each Upper's smashed data, without the batch; `size` as in `make_network`."""
    C, h, w = smashed_size(make_upper(config, description, 0, size), description.patch_shape)
    return {m: (len(description.positions_of(m)), h, w, C) for m in range(description.num_uppers)}


def augmentation(config: RunConfig, description: StoreSetDescription) -> Augmentation:
    """Return the transforms that the settings ask for.

    Raises
    ------
    ConfigError
        If a cut-out would be as large as the images, or a shift as the patches, whose size the images decided.
    """
    config.training.check_shift(description.patch_size)
    if config.training.cutout >= min(description.image_size):
        raise ConfigError(
            f"cutout: a square of {config.training.cutout} pixels may blank whole images of "
            f"{size_text(description.image_size)}; choose less, such as {min(description.image_size) // 2}"
        )
    return Augmentation(
        grid=description.grid(),
        flip=config.training.flip,
        shift=config.training.shift,
        cutout=config.training.cutout,
        mixup=config.training.mixup,
        patch_dropout=config.training.patch_dropout,
    )


def optimizer(config: RunConfig, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Return the optimiser that the settings ask for."""
    return Sgd(parameters, config.training.momentum, config.training.weight_decay)
