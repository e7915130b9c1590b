"""Coordinated augmentation: every party draws the same transform for a sample, from a shared seed.

An Upper transforms its own patches only; for a flipped sample the Lower mirrors the grid (`PatchGrid.tile`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from psl_flower.seeds import uniform


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """Which transforms are drawn.

    Attributes
    ----------
    flip : bool
        Mirror a sample left to right with probability one half.
    shift : int
        Largest shift in pixels, up, down, left or right; 0 for none. Pixels that a separate store cannot know are
        filled by repeating the patch's border.
    """

    flip: bool = False
    shift: int = 0

    def flipped(self, seed: int, samples_B: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return (B,) bool: which samples are mirrored. `seed` is that of (run, epoch)."""
        if not self.flip:
            return np.zeros(len(samples_B), np.bool_)
        return uniform(seed, "flip", samples_B) < 0.5

    def apply(self, patches_BKChw: NDArray[np.uint8], seed: int, samples_B: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the patches (B, K, C, h, w) transformed; the input is not changed."""
        if not self.flip and not self.shift:
            return patches_BKChw
        h, w = patches_BKChw.shape[3:]
        ys_Bh = np.clip(np.arange(h)[None, :] - self._offsets(seed, "shift-y", samples_B)[:, None], 0, h - 1)
        xs_Bw = np.clip(np.arange(w)[None, :] - self._offsets(seed, "shift-x", samples_B)[:, None], 0, w - 1)
        # Shifting the mirrored patch: look up the mirrored column.
        xs_Bw = np.where(self.flipped(seed, samples_B)[:, None], w - 1 - xs_Bw, xs_Bw)
        rows = ys_Bh[:, None, None, :, None]
        cols = xs_Bw[:, None, None, None, :]
        return np.take_along_axis(np.take_along_axis(patches_BKChw, rows, axis=3), cols, axis=4)

    def _offsets(self, seed: int, purpose: str, samples_B: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.floor(uniform(seed, purpose, samples_B) * (2 * self.shift + 1)).astype(np.int64) - self.shift
