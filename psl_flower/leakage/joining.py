"""Attacks with several looks at an image, which begin with what decoders make of one look.

Two ways to join looks: the mean of the images that a decoder makes of single looks, and a decoder that reads all looks
and begins with new weights, or as a decoder of a single look or of their mean. Auxiliary images that no decoder was
trained on decide which looks are taken, how the decoder begins, and when its training ends. So on those images neither
is below a single look.

Shape suffixes: L looks, N images, P positions, C channels, h and w of a patch's smashed data, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from psl_flower.leakage.attack import Pairs, Trained, divided, rebuild, score, train_decoder
from psl_flower.leakage.decoders import DECODERS, Sizes
from psl_flower.leakage.measures import ssim
from psl_flower.leakage.recording import side_by_side
from psl_flower.leakage.smashed import Scaling
from psl_flower.patches import PatchGrid


class Seen(NamedTuple):
    """Looks at some images, of mean 0 and deviation 1 for each look, channel and position."""

    smashed_LNPChw: torch.Tensor  #: float32; zeros where a patch was not received. The last look has all of them.
    flipped_LN: torch.Tensor  #: bool, mirrored in that look.

    def part(self, images: slice) -> Seen:
        """Return the looks at some of the images."""
        return Seen(self.smashed_LNPChw[:, images], self.flipped_LN[:, images])


def scaled(given: Seen, target: Seen) -> tuple[Seen, Seen]:
    """Return looks as received, of the auxiliary images and of the victims, scaled by those of the former."""
    parts: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for known_NPChw, wanted_NPChw in zip(given.smashed_LNPChw, target.smashed_LNPChw, strict=True):
        scaling = Scaling.of(known_NPChw)
        for part, smashed_NPChw in zip(parts, (known_NPChw, wanted_NPChw), strict=True):
            received = smashed_NPChw.flatten(3).flatten(2).any(2)[:, :, None, None, None]
            part.append(scaling.scaled(smashed_NPChw) * received)
    return given._replace(smashed_LNPChw=torch.stack(parts[0])), target._replace(smashed_LNPChw=torch.stack(parts[1]))


class Mean(NamedTuple):
    """The mean of what a decoder makes of single looks."""

    looks: tuple[int, ...]  #: The looks that are averaged; one or more.
    validation_ssim: float  #: On the images that chose them.

    @property
    def about(self) -> str:
        """It in words."""
        return f"mean of {len(self.looks)} looks" if len(self.looks) > 1 else "the best look"

    def of(self, decoder: nn.Module, seen: Seen, grid: PatchGrid) -> torch.Tensor:
        """Return the images (N, C, H, W)."""
        return torch.stack([_of_look(decoder, seen, look, grid) for look in self.looks]).mean(0)


def best_mean(decoder: nn.Module, seen: Seen, images_NCHW: torch.Tensor, grid: PatchGrid) -> Mean:
    """Return the mean of the best looks, of as many as make these images most like the originals."""
    each_LNCHW = torch.stack([_of_look(decoder, seen, look, grid) for look in range(len(seen.smashed_LNPChw))])
    alone = [float(ssim(found_NCHW, images_NCHW).mean()) for found_NCHW in each_LNCHW]
    order = sorted(range(len(alone)), key=lambda look: -alone[look])
    scores = [float(ssim(each_LNCHW[order[:k]].mean(0), images_NCHW).mean()) for k in range(1, len(order) + 1)]
    most = max(range(len(scores)), key=scores.__getitem__)
    return Mean(tuple(order[: most + 1]), scores[most])


def train_joined(
    name: str,
    sizes: Sizes,
    alone: nn.Module,
    seen: Seen,
    images_NCHW: torch.Tensor,
    *,
    apart: bool,
    epochs: int,
    seed: int,
    on_epoch: Callable[[int, float], None] = lambda epoch, score: None,
) -> Trained:
    """Train decoders of all looks side by side, and return the better one; one begins as `alone`, which it extends.

    `alone`, of these sizes, is a trained decoder of the last look; `seen` is at the auxiliary images. `apart` is
    whether mirrored looks are beside others (`psl_flower.leakage.recording.side_by_side`). The rest is as of
    `train_decoder`.
    """
    pairs = Pairs(side_by_side(*seen, apart=apart), images_NCHW)
    channels = sizes.smashed[0]
    slots, looks = pairs.smashed_NPChw.shape[2] // channels, len(seen.smashed_LNPChw)
    wide = Sizes(grid=sizes.grid, smashed=(slots * channels, *sizes.smashed[1:]), channels=sizes.channels)
    # As the last look alone, and as the mean of all.
    shares = ([0.0] * (slots - 1) + [1.0], [1.0 / looks] * slots)
    starts = [made for each in shares if (made := DECODERS[name](wide)).begin_with(alone, each)]
    held_back = divided(pairs)[1]
    # The better of these, and a new one: that learns faster where looks differ much.
    begun = [max(starts, key=lambda made: score(made, held_back))] if starts else []
    tried = [
        train_decoder(name, wide, pairs, epochs=epochs, seed=seed, on_epoch=on_epoch, start=start)
        for start in (*begun, None)
    ]
    return max(tried, key=lambda trained: trained.validation_ssim)


def _of_look(decoder: nn.Module, seen: Seen, look: int, grid: PatchGrid) -> torch.Tensor:
    """Return the images (N, C, H, W) that a decoder makes of one look; of the last where nothing was received."""
    smashed_NPChw, flipped_N = seen.smashed_LNPChw[look], seen.flipped_LN[look]
    received_N = smashed_NPChw.flatten(1).any(1)
    last = seen.smashed_LNPChw[-1]
    images_NCHW = rebuild(decoder, torch.where(received_N[:, None, None, None, None], smashed_NPChw, last))
    turned_N = flipped_N & received_N
    if turned_N.any():
        # An Upper mirrors its own patches, so each is turned back in its place.
        images_NCHW[turned_N] = grid.merge(grid.split(images_NCHW[turned_N]).flip(-1))
    return images_NCHW
