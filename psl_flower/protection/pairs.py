"""Builds the pair of modules that each protection puts at the cut."""

from __future__ import annotations

from collections.abc import Callable

from psl_flower.models.cut import CutPair, unprotected
from psl_flower.protection import Protection
from psl_flower.protection.codes import narrow_pair


def _none(protection: Protection, channels: int) -> CutPair:
    return unprotected(channels)


def _narrow(protection: Protection, channels: int) -> CutPair:
    return narrow_pair(channels, protection.size, protection.pool, 0, protection.noise)


def _code(protection: Protection, channels: int) -> CutPair:
    return narrow_pair(channels, protection.size, protection.pool, protection.levels, protection.noise)


# By name: makes the pair for a number of channels at the cut, with weights that are not initialised from a seed.
PAIRS: dict[str, Callable[[Protection, int], CutPair]] = {"none": _none, "narrow": _narrow, "code": _code}
