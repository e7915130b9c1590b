"""The size of networks, and how much larger the second model is than the first.

Too small a gap leaves nothing to lighten: pruning then starts at what the first already is. Too large a gap cannot be
made to fit: most of the network is cut away, and its training cost is lost. `choose_second` therefore takes the
gap as a number, 2 by default, and `LighteningSettings.second_ratio` bounds it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from psl_flower.engine.build import Blueprint
from psl_flower.lightening.settings import Growth, Measure
from psl_flower.models.architectures import BackboneSize

# Channels come in multiples of this: vector instructions work on 8 numbers or more at a time.
CHANNEL_STEP = 8
_MAX_EXTRA_BLOCKS = 3


class Cost(NamedTuple):
    """The size of a whole patch-split network: all Uppers and the Lower."""

    parameters: int  #: Weights, without BatchNorm's statistics.
    multiply_adds: int  #: Multiply-adds of convolutions and the classifier, for one image.


def cost_of(blueprint: Blueprint, size: BackboneSize | None = None) -> Cost:
    """Return the costs of a network of this size, counted on meta tensors."""
    description = blueprint.description
    with torch.device("meta"):
        upper, lower = blueprint.upper(0, size).eval(), blueprint.lower(size).eval()
        patches_PChw = torch.empty(len(description.assignment), *blueprint.input_shape)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            # All Uppers have the same size, so one of them counts for all patches.
            lower(upper(patches_PChw)[None])
    of_upper, of_lower = (sum(p.numel() for p in part.parameters()) for part in (upper, lower))
    return Cost(description.num_uppers * of_upper + of_lower, counter.get_total_flops() // 2)


def choose_second(
    first: BackboneSize,
    cost: Callable[[BackboneSize], Cost],
    *,
    ratio: float = 2.0,
    measure: Measure = Measure.MULTIPLY_ADDS,
    growth: Growth = Growth.WIDTH,
) -> BackboneSize:
    """Return the size of the second model: of those larger than the first, the one closest to `ratio` times its cost.

    Candidates are the first widened by a common factor (channels in multiples of `CHANNEL_STEP`), or with 1 to 3
    blocks more in every stage, or both together (`growth`). Closeness is that of the logarithms, so that half and twice
    the ratio, above 1, are equally far from it. Of equal ones the smaller wins. `cost` returns the costs of a size, of
    which `measure` counts.
    """
    place = Cost._fields.index(measure.replace("-", "_"))
    own = cost(first)[place]

    def distance(size: BackboneSize) -> tuple[float, tuple[int, ...], tuple[int, ...]]:
        return abs(math.log(cost(size)[place] / own / ratio)), size.widths, size.depths

    return min(_larger(first, ratio, growth), key=distance)


def scaled(size: BackboneSize, share: float) -> BackboneSize:
    """Return the size with `share` times the channels, in multiples of `CHANNEL_STEP`, at least one of these."""
    a, b, c, d = (max(CHANNEL_STEP, round(width * share / CHANNEL_STEP) * CHANNEL_STEP) for width in size.widths)
    return BackboneSize(depths=size.depths, widths=(a, b, c, d))


def _larger(first: BackboneSize, ratio: float, growth: Growth) -> Iterator[BackboneSize]:
    # Cost grows with the square of the width; a width beyond the ratio itself is never closest.
    widest = max(first.widths[0] + CHANNEL_STEP, math.ceil(first.widths[0] * ratio))
    widths = range(first.widths[0] + CHANNEL_STEP, widest + CHANNEL_STEP, CHANNEL_STEP)
    shares = [1.0] if growth is Growth.DEPTH else [width / first.widths[0] for width in widths]
    blocks = [0] if growth is Growth.WIDTH else list(range(1, _MAX_EXTRA_BLOCKS + 1))
    for share, extra in product(shares, blocks):
        a, b, c, d = (depth + extra for depth in first.depths)
        wider = scaled(first, share) if share > 1 else first
        yield BackboneSize(depths=(a, b, c, d), widths=wider.widths)
