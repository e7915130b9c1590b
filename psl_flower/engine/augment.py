"""Coordinated augmentation: every party draws the same transform for a sample, from a shared seed.

An Upper transforms its own patches only; for a flipped sample the Lower mirrors the grid (`PatchGrid.tile`). The order
is flip, shift, cut-out, then mixing in pairs (`psl_flower.engine.inputs.network_input`); patch dropout is the Lower's
alone.

Stores with a margin hold the pixels around a patch that a shift brings in. Then every Upper's patches are those of the
shifted image, to the bit: of the image as the grid pads it, its border repeated beyond its edge.

Shape suffixes: B batch, K patches of one Upper, C channels, H and W pixels of a patch as stored, with the margin, h and
w of a patch as the network takes it; L = K*C, N = h*w.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from psl_flower.patches import PatchGrid
from psl_flower.seeds import derive, uniform


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """The transforms that are drawn.

    In all methods `seed` is that of (run, epoch), and `samples_B` are global sample indices (B,), int64.
    """

    grid: PatchGrid  #: Grid that images are cut by, with the stores' margin.
    context: int = 0  #: Pixels around each patch that the network takes with it; with shifts, no more than the margin.
    flip: bool = False  #: Mirror a sample left to right with probability one half.
    #: Largest shift in pixels, up, down, left or right; 0 for none. Without a margin a store lacks the pixels around
    #: a patch: the patch's border is repeated there.
    shift: int = 0
    cutout: int = 0  #: Side, in pixels, of the square that is blanked in every image; 0 for none.
    #: Samples are mixed in pairs by a weight of the distribution Beta(mixup, mixup), one for each step; 0: not at all.
    mixup: float = 0.0
    #: Probability, 0 to below 1, that an Upper's patches of a sample are left out by the Lower.
    patch_dropout: float = 0.0

    def flipped(self, seed: int, samples_B: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return (B,) bool: which samples are mirrored."""
        if not self.flip:
            return np.zeros(len(samples_B), np.bool_)
        return uniform(seed, "flip", samples_B) < 0.5

    @property
    def edge(self) -> int:
        """Pixels on each side of a stored patch that the network does not take."""
        return self.grid.margin - self.context

    def unmoved(self, stored_BKCHW: torch.Tensor) -> torch.Tensor:
        """Return stored patches (B, K, C, H, W) of any dtype as the network takes them in evaluation; a view."""
        edge, (H, W) = self.edge, stored_BKCHW.shape[3:]
        return stored_BKCHW[..., edge : H - edge, edge : W - edge] if edge else stored_BKCHW

    def apply(self, stored_BKCHW: torch.Tensor, seed: int, samples_B: NDArray[np.int64]) -> torch.Tensor:
        """Return stored patches, uint8 (B, K, C, H, W) on any device, flipped and shifted: (B, K, C, h, w).

        The input is not changed.
        """
        if not self.flip and not self.shift:
            return self.unmoved(stored_BKCHW)
        B, K, C, H, W = stored_BKCHW.shape
        ys_h, xs_w = (np.arange(self.edge, size - self.edge) for size in (H, W))
        h, w = len(ys_h), len(xs_w)
        ys_Bh = np.clip(ys_h[None, :] - self._offsets(seed, "shift-y", samples_B)[:, None], 0, H - 1)
        xs_Bw = np.clip(xs_w[None, :] - self._offsets(seed, "shift-x", samples_B)[:, None], 0, W - 1)
        # Shifting the mirrored patch: look up the mirrored column.
        xs_Bw = np.where(self.flipped(seed, samples_B)[:, None], W - 1 - xs_Bw, xs_Bw)
        places_B1N = torch.from_numpy((ys_Bh[:, :, None] * W + xs_Bw[:, None, :]).reshape(B, 1, h * w))
        places_BLN = places_B1N.to(stored_BKCHW.device).expand(B, K * C, h * w)
        return stored_BKCHW.reshape(B, K * C, H * W).gather(2, places_BLN).reshape(B, K, C, h, w)

    def blanked(self, positions: Sequence[int], seed: int, samples_B: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Return (B, K, h, w) bool: the part of each sample's square in these patches and their context.

        None without cut-out.

        The square lies in the image as the Lower joins it: flipped, shifted and padded. Its centre is drawn anywhere in
        it, so that squares at the border are cut (DeVries and Taylor, Cutout, 2017). Overlapping patches blank the
        same pixels.
        """
        if not self.cutout:
            return None
        corners_K2 = np.array(self.grid.corners())[list(positions)]
        (height, width), (h, w) = self.grid.padded_size, self.grid.patch_size
        ys_h, xs_w = (np.arange(-self.context, size + self.context) for size in (h, w))
        # A mirrored sample's patches stand at mirrored places.
        lefts_BK = np.where(
            self.flipped(seed, samples_B)[:, None], width - w - corners_K2[None, :, 1], corners_K2[None, :, 1]
        )
        rows_BKh = self._in_square(seed, "cutout-y", samples_B, height, corners_K2[None, :, :1] + ys_h)
        cols_BKw = self._in_square(seed, "cutout-x", samples_B, width, lefts_BK[:, :, None] + xs_w)
        return rows_BKh[:, :, :, None] & cols_BKw[:, :, None, :]

    def mix_weight(self, seed: int, step: int) -> float:
        """Return the weight, 0..1, of a sample's own pixels and class in a step; `seed` is the run's.

        The Lower draws and sends it (`Plan.mix_weight`): a distribution's numbers, unlike whole ones, may differ
        in the last bit between machines.
        """
        if not self.mixup:
            return 1.0
        return float(np.random.Generator(np.random.PCG64(derive(seed, "mixup", step))).beta(self.mixup, self.mixup))

    def partners(self, seed: int, samples_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return (B,): the place in the batch of the sample that is mixed into each; a permutation.

        Flipped samples are mixed with flipped ones and the others with others: only then do the patches of both stand
        at the same places.
        """
        draws_B, flipped_B = uniform(seed, "mixup", samples_B), self.flipped(seed, samples_B)
        partners_B = np.arange(len(samples_B))
        for alike_B in (flipped_B, ~flipped_B):
            places = np.flatnonzero(alike_B)
            partners_B[places] = places[np.argsort(draws_B[places], kind="stable")]
        return partners_B

    def dropped(
        self, seed: int, samples_B: NDArray[np.int64], num_uppers: int, absent: Collection[int] = ()
    ) -> NDArray[np.bool_] | None:
        """Return (B, M) bool: whose patches of which sample are left out by the Lower; None without patch dropout.

        Of every sample the patches of one Upper that is not absent stay: those of the last to be left out.
        """
        if not self.patch_dropout:
            return None
        draws_BM = np.stack([uniform(seed, f"drop-{m}", samples_B) for m in range(num_uppers)], axis=1)
        draws_BM[:, list(absent)] = -1.0
        dropped_BM: NDArray[np.bool_] = draws_BM < self.patch_dropout
        dropped_BM[np.arange(len(samples_B)), draws_BM.argmax(axis=1)] = False
        return dropped_BM

    def _offsets(self, seed: int, purpose: str, samples_B: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.floor(uniform(seed, purpose, samples_B) * (2 * self.shift + 1)).astype(np.int64) - self.shift

    def _in_square(
        self, seed: int, purpose: str, samples_B: NDArray[np.int64], size: int, pixels: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Return a mask (B or 1, K, h or w) of the pixels, numbered from the image's edge, in the sample's square."""
        first_B = np.floor(uniform(seed, purpose, samples_B) * size).astype(np.int64) - self.cutout // 2
        first_B11 = first_B[:, None, None]
        return (pixels >= first_B11) & (pixels < first_B11 + self.cutout)
