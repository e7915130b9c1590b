"""The audit of a run whose images are on its nodes: on images that the auditor brings, of one look."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from psl_flower.config import RunConfig
from psl_flower.leakage.audit import Attacks
from psl_flower.leakage.complete import Pictures, audit
from psl_flower.leakage.images import AuditSettings, Known, chosen_samples
from psl_flower.leakage.report import Leakage
from psl_flower.leakage.smashed import smashed_bytes
from psl_flower.models import PatchSplitNet
from psl_flower.patches.description import StoreSetDescription
from psl_flower.text import OnProgress


def audit_elsewhere(
    net: PatchSplitNet,
    config: RunConfig,
    description: StoreSetDescription,
    images: tuple[str, Iterable[tuple[torch.Tensor, NDArray[np.int64]]]],
    settings: AuditSettings,
    *,
    run: str,
    ask: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
    on_progress: OnProgress = lambda what, done, total: None,
) -> tuple[Leakage, list[Pictures]]:
    """Attack images that are not the run's own.

    Parameters
    ----------
    net : PatchSplitNet
        The run's, in eval mode; with `ask` its Lower is used alone.
    config, description : RunConfig, StoreSetDescription
        The run's.
    images : tuple
        What they are called, and batches of images uint8 (B, C, H, W) of the network's size with classes int64 (B,).
    settings : AuditSettings
        How many are victims, how many auxiliary, and how hard the attacker tries.
    run : str
        The run's name.
    ask : callable, optional
        Called with images uint8 (N, C, H, W), and how many more will follow; returns the smashed data float32
        (N, P, C', h', w'), as the nodes make them. By default the network does.
    on_progress : callable
        Called with (what, done, at most).

    Returns
    -------
    As `psl_flower.leakage.complete.audit`.

    Raises
    ------
    ConfigError
        If there are too few images.
    """
    dataset, batches = images
    known = Known.joined(batches)
    chosen = chosen_samples(np.arange(len(known.labels_N)), settings, smashed_bytes(net, description))
    victims, auxiliary = (Known(known.images_NCHW[samples_N], known.labels_N[samples_N]) for samples_N in chosen)
    received = None
    if ask is not None:
        received = ask(auxiliary.images_NCHW, len(victims.images_NCHW)), ask(victims.images_NCHW, 0)
    attacks = Attacks(description, victims, auxiliary, settings, on_progress, received, dataset)
    bits = config.network.cut_protection.bits(description.grid().num_patches)
    return audit(attacks, net, run=run, bits=bits)
