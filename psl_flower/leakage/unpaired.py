"""The attacker that cannot query the Uppers: it trains substitutes for them, by what their smashed data look like.

It has smashed data with their classes, the Lower, the network's build and auxiliary images with classes, but no image
together with its smashed data. It lacks the run's seed: an attacker who has it, such as the run's own server, can begin
with the Uppers' true first weights, and may do better. Here new Uppers are trained on the auxiliary images so that the
Lower classifies what they send, and a discriminator cannot tell it from what was received. After Gao and Zhang (PCAT,
USENIX Security 2023) and Zhu et al. (SDAR, NDSS 2025), who train the substitute with the server's own part.

Shape suffixes: B batch, N images, P positions, C channels, h and w of a patch's smashed data, K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from psl_flower.leakage.attack import batches
from psl_flower.leakage.smashed import Scaling, normal_for
from psl_flower.models import PatchSplitNet
from psl_flower.models.split import reset_parameters
from psl_flower.seeds import derive
from psl_flower.system.generator import seeded

_LEARNING_RATE = 1e-3
_HIDDEN = 256
# Numbers that the discriminator reads at most; larger maps are averaged first.
_MOST_NUMBERS = 4096


class LabelledSmashed(NamedTuple):
    """Smashed data that crossed the cut, with their classes, which the server has."""

    smashed_NPChw: torch.Tensor  #: float32, of one look.
    classes_NK: torch.Tensor  #: float32, 0 and 1.


def substitute(
    net: PatchSplitNet,
    received: LabelledSmashed,
    pixels_NCHW: torch.Tensor,
    classes_NK: torch.Tensor,
    *,
    epochs: int,
    seed: int,
    on_epoch: Callable[[int], None] = lambda epoch: None,
) -> PatchSplitNet:
    """Return a network with substitutes for the Uppers and the Lower of `net`, in eval mode.

    Parameters
    ----------
    net : PatchSplitNet
        Its Lower and its build are known; its Uppers' weights are not used, neither the last nor the first.
    received : LabelledSmashed
        64 images or more make sense.
    pixels_NCHW : torch.Tensor
        Auxiliary images, normalised.
    classes_NK : torch.Tensor
        Their classes, float32, 0 and 1.
    epochs : int
        Passes over the auxiliary images.
    seed : int
        Of weights and order.
    on_epoch : callable
        Called with epochs done.
    """
    made = _with_new_uppers(net, seed)
    scaling = Scaling.of(received.smashed_NPChw)
    with seeded(derive(seed, "discriminator")):
        judge = _Discriminator(tuple(received.smashed_NPChw.shape[1:]), classes_NK.shape[1])
    makers = torch.optim.Adam(made.uppers.parameters(), lr=_LEARNING_RATE, betas=(0.5, 0.99))
    judges = torch.optim.Adam(judge.parameters(), lr=_LEARNING_RATE, betas=(0.5, 0.99))
    drawn, normal = np.random.default_rng(seed), torch.Generator().manual_seed(derive(seed, "noise of substitutes"))
    for epoch in range(1, epochs + 1):
        made.uppers.train()
        for batch_B in batches(drawn.permutation(len(pixels_NCHW))):
            real_B = torch.from_numpy(drawn.integers(len(received.smashed_NPChw), size=len(batch_B)))
            real = received.smashed_NPChw[real_B], received.classes_NK[real_B]
            sent = made.smash(pixels_NCHW[batch_B], normal_for(made, len(batch_B), normal)), classes_NK[batch_B]
            _learn(judges, _judged(judge, scaling, real, (sent[0].detach(), sent[1])))
            _learn(makers, _told_apart(made, judge, scaling, sent))
        on_epoch(epoch)
    return made.eval().requires_grad_(False)


def _judged(judge: nn.Module, scaling: Scaling, real: _Batch, made: _Batch) -> torch.Tensor:
    """Return the discriminator's loss on what was received and on what substitutes send."""
    real_B, made_B = (judge(scaling.scaled(smashed), classes) for smashed, classes in (real, made))
    return F.softplus(-real_B).mean() + F.softplus(made_B).mean()


def _told_apart(net: PatchSplitNet, judge: nn.Module, scaling: Scaling, sent: _Batch) -> torch.Tensor:
    """Return the substitutes' loss: that of being detected, plus the Lower's cross-entropy on their output."""
    smashed_BPChw, classes_BK = sent
    classified = F.cross_entropy(net.join(smashed_BPChw), classes_BK)
    told = F.softplus(-judge(scaling.scaled(smashed_BPChw), classes_BK)).mean()
    return classified + told


_Batch = tuple[torch.Tensor, torch.Tensor]


def _learn(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def _with_new_uppers(net: PatchSplitNet, seed: int) -> PatchSplitNet:
    """Return a copy whose Lower is fixed, and whose Uppers all begin with the same new weights, none of the run's."""
    made = copy.deepcopy(net).requires_grad_(True)
    made.lower.eval().requires_grad_(False)
    for upper in made.uppers:
        reset_parameters(upper, derive(seed, "substitute"))
        for part in upper.modules():
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                part.reset_running_stats()
    return made


class _Discriminator(nn.Module):
    """Tells smashed data of known class from those of substitutes: two hidden layers."""

    def __init__(self, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        P, C, h, w = shape
        while P * C * h * w > _MOST_NUMBERS and h * w > 1:
            h, w = -(-h // 2), -(-w // 2)
        self._size = (h, w)
        self.layers = nn.Sequential(
            nn.Linear(P * C * h * w + num_classes, _HIDDEN), nn.LeakyReLU(0.2),
            nn.Linear(_HIDDEN, _HIDDEN), nn.LeakyReLU(0.2),
            nn.Linear(_HIDDEN, 1),
        )  # fmt: skip

    def forward(self, smashed_BPChw: torch.Tensor, classes_BK: torch.Tensor) -> torch.Tensor:
        """Return a number (B,) for each image, the higher the more it seems to be received."""
        numbers_BD = F.adaptive_avg_pool2d(smashed_BPChw.flatten(1, 2), self._size).flatten(1)
        answer: torch.Tensor = self.layers(torch.cat([numbers_BD, classes_BK], dim=1)).squeeze(1)
        return answer
