"""Flower strategies: the patch-split strategy, which acts as the Lower model."""

from strategies.patch_split import PatchSplit

__all__ = ["PatchSplit"]
