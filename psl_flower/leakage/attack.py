"""Trains one decoder on auxiliary images and lets it rebuild the victims'.

Shape suffixes: B batch, N images, P positions, C channels, h and w of a patch's smashed data, H and W pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from psl_flower.leakage.decoders import DECODERS, Sizes
from psl_flower.leakage.measures import ssim

BATCH = 64
LEARNING_RATE = 2e-3
# Epochs without a better score on the validation images after which training ends.
PATIENCE = 6
_VALIDATION_SHARE = 0.1
# Share of the steps in which the learning rate rises.
_RISING = 0.1


class Pairs(NamedTuple):
    """Images with what the attacker has of them."""

    smashed_NPChw: torch.Tensor  #: float32, of all positions; several looks one after the other along C.
    images_NCHW: torch.Tensor  #: float32, pixels in 0..1.

    def part(self, chosen: slice | torch.Tensor) -> Pairs:
        """Return some of the images."""
        return Pairs(self.smashed_NPChw[chosen], self.images_NCHW[chosen])


class Trained(NamedTuple):
    """A trained decoder."""

    decoder: nn.Module  #: Decoder in eval mode, with the weights of its best epoch.
    validation_ssim: float  #: SSIM on auxiliary images that it was not trained on.
    epochs: int  #: Number of epochs trained, including those after the best.


def divided(auxiliary: Pairs) -> tuple[Pairs, Pairs]:
    """Return the auxiliary images to train on, and those to stop by: the last tenth, 2 at least."""
    kept = len(auxiliary.images_NCHW) - max(2, round(_VALIDATION_SHARE * len(auxiliary.images_NCHW)))
    return auxiliary.part(slice(kept)), auxiliary.part(slice(kept, None))


def train_decoder(
    name: str,
    sizes: Sizes,
    auxiliary: Pairs,
    *,
    epochs: int,
    seed: int,
    on_epoch: Callable[[int, float], None] = lambda epoch, score: None,
    start: nn.Module | None = None,
) -> Trained:
    """Train a decoder of `DECODERS` for images that are like the originals in structure and in brightness.

    The weights of the best epoch are kept, judged by auxiliary images that are left out of training. Victims have no
    part. A decoder to start from is changed; its initial weights compete, too.

    `auxiliary` has 20 images or more. After each pass, of `epochs` at most, `on_epoch` is called with (epochs done,
    score on the validation images). `start` is a decoder of this name and these sizes to continue from, by default a
    new one.
    """
    training, validation = divided(auxiliary)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = DECODERS[name](sizes) if start is None else start
    optimizer = torch.optim.Adam(decoder.parameters(), lr=LEARNING_RATE)
    steps = epochs * (len(training.images_NCHW) // BATCH or 1)
    # Of exactly 10 steps it would divide by zero.
    length = steps + 1 if steps * _RISING == 1 else steps
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=length, pct_start=_RISING)
    order = np.random.default_rng(seed)
    best, best_epoch = copy.deepcopy(decoder.state_dict()), 0
    best_score = -np.inf if start is None else score(decoder, validation)
    epoch = 0
    for epoch in range(1, epochs + 1):
        decoder.train()
        for batch in batches(order.permutation(len(training.images_NCHW))):
            wanted = training.part(batch)
            found_BCHW = decoder(wanted.smashed_NPChw)
            loss = (1 - ssim(found_BCHW, wanted.images_NCHW)).mean() + (found_BCHW - wanted.images_NCHW).square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        reached = score(decoder, validation)
        on_epoch(epoch, reached)
        if reached > best_score:
            best, best_score, best_epoch = copy.deepcopy(decoder.state_dict()), reached, epoch
        elif epoch - best_epoch >= PATIENCE:
            break
    decoder.load_state_dict(best)
    return Trained(decoder.eval(), float(best_score), epoch)


@torch.no_grad()
def rebuild(decoder: nn.Module, smashed_NPChw: torch.Tensor) -> torch.Tensor:
    """Return the images (N, C, H, W) that a decoder makes, in eval mode."""
    decoder.eval()
    return torch.cat([decoder(part) for part in smashed_NPChw.split(4 * BATCH)])


def score(decoder: nn.Module, wanted: Pairs) -> float:
    """Return the mean SSIM of what a decoder makes of these images."""
    return float(ssim(rebuild(decoder, wanted.smashed_NPChw), wanted.images_NCHW).mean())


def batches(order_N: np.ndarray) -> list[torch.Tensor]:
    """Return an order in whole batches, or all of it as one smaller batch."""
    whole = max(1, len(order_N) // BATCH)
    return [torch.from_numpy(part) for part in np.split(order_N[: whole * BATCH], range(BATCH, whole * BATCH, BATCH))]
