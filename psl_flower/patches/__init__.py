"""Patches: the grid that cuts images, who holds which position, and what a store of patches is to the rest."""

from psl_flower.patches.grid import PatchGrid

__all__ = ["PatchGrid"]
