"""Builds every party's part of a run from the settings and the manifest, alike wherever it runs."""

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
from psl_flower.engine.upper_averaging import Averaging, num_shared
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
from psl_flower.patches.description import Manifest


class Phase(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="phase"):
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


class Shipped(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="shipped"):
    """Predictions by light Uppers, files that onnxruntime runs, in place of the run's own.

    Attributes
    ----------
    digests : dict[int, str]
        SHA-256 of every Upper's file, as hexadecimal text.
    """

    digests: dict[int, str]


class _Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    config: dict[str, str | int | float | bool]
    manifest: Manifest
    instead: Phase | Shipped | None = None


def encode_settings(config: RunConfig, manifest: Manifest, instead: Phase | Shipped | None = None) -> bytes:
    """Return what a node builds its models from, as `NodeTask.settings` carries it.

    `instead` tells of other models than the run's own.
    """
    return msgspec.msgpack.encode(_Settings(config=config.to_mapping(), manifest=manifest, instead=instead))


def decode_settings(settings: bytes) -> tuple[RunConfig, Manifest]:
    """Return the settings and the manifest that `encode_settings` was given.

    Raises
    ------
    FrameMismatch
        If the bytes are not that.
    ConfigError
        If the settings are not valid.
    """
    told = _decoded(settings)
    return RunConfig.from_mapping(told.config), told.manifest


def decode_instead(settings: bytes) -> Phase | Shipped | None:
    """Return what other models `encode_settings` was told of; errors as of `decode_settings`."""
    return _decoded(settings).instead


def _decoded(settings: bytes) -> _Settings:
    try:
        return msgspec.msgpack.decode(settings, type=_Settings)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FrameMismatch(f"malformed settings from the Lower: {str(error)[:200]}") from None


def make_upper(config: RunConfig, manifest: Manifest, upper: int, size: BackboneSize | None = None) -> Upper:
    """Return the Upper model of index `upper` with its initial weights; `size` as in `make_network`."""
    model = Upper(
        backbone=config.backbone,
        cut=config.cut,
        stem=config.stem_for(manifest.image_size),
        in_channels=manifest.channels,
        protection=config.protection,
        size=size,
    )
    reset_parameters(model, upper_seed(config.seed, upper, config.upper_init))
    return model


def make_lower(config: RunConfig, manifest: Manifest, size: BackboneSize | None = None) -> Lower:
    """Return the Lower model with its initial weights; `size` as in `make_network`."""
    model = Lower(
        grid=manifest.grid(),
        num_classes=manifest.num_classes,
        backbone=config.backbone,
        cut=config.cut,
        stem=config.stem_for(manifest.image_size),
        protection=config.protection,
        size=size,
    )
    reset_parameters(model, lower_seed(config.seed))
    return model


def make_network(config: RunConfig, manifest: Manifest, size: BackboneSize | None = None) -> PatchSplitNet:
    """Return the whole network with the initial weights of all parties; `size` is the backbone's own by default."""
    net = PatchSplitNet(
        grid=manifest.grid(),
        num_uppers=manifest.num_uppers,
        num_classes=manifest.num_classes,
        in_channels=manifest.channels,
        backbone=config.backbone,
        cut=config.cut,
        stem=config.stem_for(manifest.image_size),
        # The manifest's, not the setting's: an owner's rotation may have moved positions.
        assignment=manifest.assignment,
        protection=config.protection,
        size=size,
        seed=config.seed,
        upper_init=config.upper_init,
    )
    return net


def make_adaptation(config: RunConfig, manifest: Manifest) -> AdaptationNet | None:
    """Return the Adaptation Net with its initial weights; None where alpha is 0."""
    if config.alpha == 0:
        return None
    _, h, w, C = smashed_shapes(config, manifest)[0]
    net = AdaptationNet((h, w), manifest.num_classes, C)
    reset_parameters(net, adaptation_seed(config.seed))
    return net


def make_lower_engine(config: RunConfig, manifest: Manifest, device: torch.device) -> LowerEngine:
    """Return the Lower's side of a run."""
    return LowerEngine(
        make_lower(config, manifest),
        None if config.adaptation_server else make_adaptation_engine(config, manifest, device),
        manifest.assignment,
        alpha=config.alpha,
        make_optimizer=lambda parameters: optimizer(config, parameters),
        use_autocast=config.autocast,
        device=device,
        adaptation_elsewhere=config.adaptation_server,
        label_smoothing=config.label_smoothing,
    )


def make_adaptation_engine(config: RunConfig, manifest: Manifest, device: torch.device) -> AdaptationEngine | None:
    """Return the Adaptation Net's side of a run; None where alpha is 0."""
    net = make_adaptation(config, manifest)
    if net is None:
        return None
    return AdaptationEngine(
        net,
        manifest.assignment,
        alpha=config.alpha,
        make_optimizer=lambda parameters: optimizer(config, parameters),
        use_autocast=config.autocast,
        device=device,
        label_smoothing=config.label_smoothing,
    )


def make_adaptation_node(
    config: RunConfig, manifest: Manifest, device: torch.device, checkpoints: Checkpoints
) -> AdaptationNode:
    """Return the Adaptation Net as a party of a run, on a node of its own.

    Raises
    ------
    ConfigError
        If the run has none, or too few training images.
    """
    engine = make_adaptation_engine(config, manifest, device)
    if engine is None:
        raise ConfigError("adaptation-server: with alpha = 0 there is no Adaptation Net")
    return AdaptationNode(
        engine,
        smashed_shape=smashed_shapes(config, manifest)[0][1:],
        num_classes=manifest.num_classes,
        num_samples=batch_order(config, manifest).num_samples,
        checkpoints=checkpoints,
    )


def upper_options(config: RunConfig, manifest: Manifest, device: torch.device) -> UpperOptions:
    """Return what an Upper needs to know besides its model and store."""
    return UpperOptions(
        make_optimizer=lambda parameters: optimizer(config, parameters),
        mean=manifest.mean,
        std=manifest.std,
        augmentation=augmentation(config, manifest),
        autocast=config.autocast,
        device=device,
        averaged=_averages(config, manifest),
    )


def make_averaging(config: RunConfig, manifest: Manifest) -> Averaging | None:
    """Return when the Uppers are averaged; None where they are not, or there is but one."""
    if not _averages(config, manifest):
        return None
    return Averaging(every=config.average_every, num_shared=num_shared(make_upper(config, manifest, 0)))


def _averages(config: RunConfig, manifest: Manifest) -> bool:
    return config.average_every > 0 and manifest.num_uppers > 1


def make_task(config: RunConfig, manifest: Manifest, labels: NDArray[np.int64]) -> Task:
    """Return what is trained on which samples.

    Raises
    ------
    ConfigError
        If there are too few training images, or the augmentation does not fit them.
    """
    order = batch_order(config, manifest)
    total_steps = config.rounds * steps_per_round(config, order)
    return Task(
        order=order,
        schedule=Schedule(kind=config.schedule, peak=config.lr, total_steps=total_steps),
        labels=labels,
        augmentation=augmentation(config, manifest),
        test=manifest.samples_of("test"),
        evaluate_batch_size=config.evaluate_batch_size,
    )


def steps_per_round(config: RunConfig, order: BatchOrder) -> int:
    """Return the steps of a round: the setting, or one epoch."""
    return config.steps_per_round or order.steps_per_epoch


def smashed_shapes(
    config: RunConfig, manifest: Manifest, size: BackboneSize | None = None
) -> dict[int, tuple[int, int, int, int]]:
    """Return (K, h, w, C) of each Upper's smashed data, without the batch; `size` as in `make_network`."""
    C, h, w = smashed_size(make_upper(config, manifest, 0, size), (manifest.channels, *manifest.patch_size))
    return {m: (len(manifest.positions_of(m)), h, w, C) for m in range(manifest.num_uppers)}


def augmentation(config: RunConfig, manifest: Manifest) -> Augmentation:
    """Return the transforms that the settings ask for.

    Raises
    ------
    ConfigError
        If a cut-out would be as large as the images, or a shift as the patches, whose size the images decided.
    """
    config.check_shift(manifest.patch_size)
    if config.cutout >= min(manifest.image_size):
        raise ConfigError(
            f"cutout: a square of {config.cutout} pixels may blank whole images of {size_text(manifest.image_size)}; "
            f"choose less, such as {min(manifest.image_size) // 2}"
        )
    return Augmentation(
        grid=manifest.grid(),
        flip=config.flip,
        shift=config.shift,
        cutout=config.cutout,
        mixup=config.mixup,
        patch_dropout=config.patch_dropout,
    )


def optimizer(config: RunConfig, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Return the optimiser that the settings ask for."""
    return Sgd(parameters, config.momentum, config.weight_decay)
