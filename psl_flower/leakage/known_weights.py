"""The attacker with the Uppers' weights: it mends an image until the Uppers make of it what was received.

Gradient descent on pixels from the image that a decoder made, towards equal smashed data, with a penalty on rough
images. How far to go is decided by auxiliary images.

Shape suffixes: B batch, N images, P positions, C channels, h and w of a patch's smashed data, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from psl_flower.leakage.attack import Pairs
from psl_flower.leakage.measures import ssim
from psl_flower.leakage.smashed import Scaling, normalised
from psl_flower.models import PatchSplitNet
from psl_flower.patches.description import StoreSetDescription

STEPS, EVERY = 60, 10
_LEARNING_RATE, _ROUGHNESS = 0.02, 0.02
_BATCH = 64
# Auxiliary images that the number of steps is chosen by.
MOST_VALIDATION = 128


def best_steps(
    net: PatchSplitNet,
    description: StoreSetDescription,
    scaling: Scaling,
    start_NCHW: torch.Tensor,
    wanted: Pairs,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Return after how many steps auxiliary images are most like the originals; 0 if descending mends nothing.

    Parameters are those of `mended`, for auxiliary images that no decoder was trained on, with their originals.
    """
    start_NCHW, wanted = start_NCHW[:MOST_VALIDATION], wanted.part(slice(MOST_VALIDATION))
    scores = torch.zeros(STEPS // EVERY + 1)
    for first in range(0, len(start_NCHW), _BATCH):
        batch = slice(first, first + _BATCH)
        part = wanted.part(batch)
        for number, found in enumerate(
            _descent(net, description, scaling, start_NCHW[batch], part.smashed_NPChw, STEPS)
        ):
            scores[number] += ssim(found, part.images_NCHW).sum()
            on_step(first + len(found) * number * EVERY // STEPS, len(start_NCHW))
    return int(scores.argmax()) * EVERY


def mended(
    net: PatchSplitNet,
    description: StoreSetDescription,
    scaling: Scaling,
    start_NCHW: torch.Tensor,
    smashed_NPChw: torch.Tensor,
    steps: int,
) -> torch.Tensor:
    """Return images (N, C, H, W) whose smashed data are nearer to those received.

    Parameters
    ----------
    net : PatchSplitNet
        The finished network, in eval mode; left as it is.
    description : StoreSetDescription
        Of the images.
    scaling : Scaling
        Weighs channels and positions.
    start_NCHW : torch.Tensor
        Images to begin with, pixels in 0..1.
    smashed_NPChw : torch.Tensor
        Of the true images in one look, as received.
    steps : int
        As `best_steps` says.
    """
    if not steps:
        return start_NCHW
    parts = []
    for start, smashed in zip(start_NCHW.split(_BATCH), smashed_NPChw.split(_BATCH), strict=True):
        *_, found = _descent(net, description, scaling, start, smashed, steps)
        parts.append(found)
    return torch.cat(parts)


def _descent(
    net: PatchSplitNet,
    description: StoreSetDescription,
    scaling: Scaling,
    start_BCHW: torch.Tensor,
    smashed_BPChw: torch.Tensor,
    steps: int,
) -> Iterator[torch.Tensor]:
    """Yield the images at the beginning and after every `EVERY` steps; each image is mended by itself."""
    images_BCHW = start_BCHW.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([images_BCHW], lr=_LEARNING_RATE)
    yield start_BCHW
    for step in range(1, steps + 1):
        with torch.enable_grad():
            found_BPChw = net.smash(normalised(images_BCHW, description))
            distance_B = ((found_BPChw - smashed_BPChw) / scaling.std_PC).square().flatten(1).mean(1)
            loss = (distance_B + _ROUGHNESS * _roughness(images_BCHW)).sum()
            (images_BCHW.grad,) = torch.autograd.grad(loss, [images_BCHW])
        optimizer.step()
        with torch.no_grad():
            images_BCHW.clamp_(0, 1)
        if step % EVERY == 0:
            yield images_BCHW.detach().clone()


def _roughness(images_BCHW: torch.Tensor) -> torch.Tensor:
    """Return the total variation (B,) of images, each the mean over its pixels."""
    down, right = images_BCHW.diff(dim=2).abs(), images_BCHW.diff(dim=3).abs()
    return down.flatten(1).mean(1) + right.flatten(1).mean(1)
