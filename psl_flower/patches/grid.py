"""The patch grid: how an image is cut into patches and how feature maps are joined again.

Shape suffixes: B batch, P patches (row-major), C channels, H and W pixels of the image, h and w of a patch with its
margin, or of a patch's feature map.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from psl_flower.errors import GridError
from psl_flower.text import dims

if TYPE_CHECKING:
    import torch  # seconds to load, and not needed by those who cut stored images

Images = TypeVar("Images", "torch.Tensor", NDArray[np.generic])
Fit = Literal["exact", "pad"]
# Images of this many pixels a side get a stem that keeps every fourth pixel, so their patches must be larger.
LARGE_IMAGE = 96


@dataclass(frozen=True, slots=True)
class PatchGrid:
    """A grid of equal patches over an image, numbered row-major.

    Attributes
    ----------
    image_size, patch_size, stride : tuple[int, int]
        (height, width) in pixels. stride = patch_size cuts without overlap; a smaller stride overlaps.
    fit : {"exact", "pad"}
        What to do if the grid does not tile the image exactly: refuse, or pad the image by repeating its border pixels
        (as evenly on both sides as possible).
    margin : int
        Pixels around each patch that are cut with it, 0 or more and less than the image's height and width: those of
        its neighbours, and beyond the image its border pixels, repeated.

    Raises
    ------
    GridError
        If a size is not a positive integer, a patch is larger than the image, the stride is larger than the patch
        (pixels would be lost), the grid does not tile the image and fit is "exact", or the margin is out of range.
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    stride: tuple[int, int]
    fit: Fit = field(default="exact", kw_only=True)
    margin: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "stride"):
            given = getattr(self, name)
            size = tuple(given) if isinstance(given, Sequence | np.ndarray) else (given,)
            if len(size) != 2 or not all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in size):
                raise GridError(f"{name}: expected two whole numbers (height, width), got {given!r}")
            if min(size) < 1:
                raise GridError(f"{name}: both sizes must be 1 or more, got {dims(size)}")
            object.__setattr__(self, name, (int(size[0]), int(size[1])))
        if self.fit not in ("exact", "pad"):
            raise GridError(f'fit: expected "exact" or "pad", got {self.fit!r}')
        if not isinstance(self.margin, int) or not 0 <= self.margin < min(self.image_size):
            raise GridError(
                f"margin: expected 0 to {min(self.image_size) - 1} pixels around patches of an image of "
                f"{dims(self.image_size)}, got {self.margin!r}"
            )
        for axis in range(2):
            if self.patch_size[axis] > self.image_size[axis]:
                raise GridError(
                    f"a patch of {dims(self.patch_size)} is larger than the image of {dims(self.image_size)}"
                )
            if self.stride[axis] > self.patch_size[axis]:
                raise GridError(
                    f"a stride of {dims(self.stride)} is larger than the patch of {dims(self.patch_size)}: "
                    "pixels between patches would be lost"
                )
        if self.fit == "exact" and self.padded_size != self.image_size:
            raise GridError(
                f"patches of {dims(self.patch_size)} with stride {dims(self.stride)} do not tile an image of "
                f"{dims(self.image_size)}; nearest that do: {'; '.join(self._alternatives())}; "
                'or pad the image (fit="pad")'
            )

    @property
    def rows(self) -> int:
        """Patches from top to bottom."""
        return self._count(0)

    @property
    def cols(self) -> int:
        """Patches from left to right."""
        return self._count(1)

    @property
    def num_patches(self) -> int:
        """P, the number of patches."""
        return self.rows * self.cols

    @property
    def padded_size(self) -> tuple[int, int]:
        """(height, width) of the image after padding; the image's own size where the grid fits exactly."""
        return (
            self.patch_size[0] + (self.rows - 1) * self.stride[0],
            self.patch_size[1] + (self.cols - 1) * self.stride[1],
        )

    @property
    def field_size(self) -> tuple[int, int]:
        """(height, width) of a patch with its margin, as `split` cuts it."""
        return self.patch_size[0] + 2 * self.margin, self.patch_size[1] + 2 * self.margin

    def with_margin(self, margin: int) -> PatchGrid:
        """Return the same grid with another margin; raises GridError if it is out of range."""
        return self if margin == self.margin else replace(self, margin=margin)

    def shown(self, positions: Iterable[int]) -> NDArray[np.bool_]:
        """Return (H, W) bool: the pixels of the image in patches at these positions, with their margins."""
        seen_HW = np.zeros(self.image_size, np.bool_)
        (height, width), (top, left) = self.field_size, self._padding()
        corners = self.corners()
        for p in positions:
            y, x = corners[p][0] - top - self.margin, corners[p][1] - left - self.margin
            seen_HW[max(0, y) : max(0, y + height), max(0, x) : max(0, x + width)] = True
        return seen_HW

    def split(self, images_BCHW: Images) -> Images:
        """Cut images (B, C, H, W) into patches with their margin (B, P, C, h, w); any dtype, numpy or torch.

        Raises
        ------
        GridError
            If the images are not four-dimensional or not of this grid's image size.
        """
        if images_BCHW.ndim != 4 or tuple(images_BCHW.shape[2:]) != self.image_size:
            raise GridError(f"expected images (B, C, {dims(self.image_size, ', ')}), got {tuple(images_BCHW.shape)}")
        padded = self._pad(images_BCHW)
        # The margin before the padded image puts a patch's field where the patch is in it.
        (h, w), corners = self.field_size, self.corners()
        patches = [padded[:, :, y : y + h, x : x + w] for y, x in corners]
        if isinstance(padded, np.ndarray):
            return np.stack(patches, axis=1)
        import torch

        return torch.stack(patches, dim=1)

    def merge(self, patches_BPChw: Images) -> Images:
        """Put patches with their margin (B, P, C, h, w) together to images (B, C, H, W); the inverse of `split`.

        Where patches overlap, the one with the higher number wins: the patches of one image agree there.

        Raises
        ------
        GridError
            If the patches are not this grid's.
        """
        shape = tuple(patches_BPChw.shape)
        if len(shape) != 5 or shape[1] != self.num_patches or shape[3:] != self.field_size:
            raise GridError(f"expected patches (B, {self.num_patches}, C, {dims(self.field_size, ', ')}), got {shape}")
        size = (shape[0], shape[2], *self.padded_size)
        (h, w), (top, left), m = self.patch_size, self._padding(), self.margin
        if isinstance(patches_BPChw, np.ndarray):
            images = np.empty(size, patches_BPChw.dtype)
        else:
            images = patches_BPChw.new_empty(size)
        for p, (y, x) in enumerate(self.corners()):
            images[:, :, y : y + h, x : x + w] = patches_BPChw[:, p, :, m : m + h, m : m + w]
        return images[:, :, top : top + self.image_size[0], left : left + self.image_size[1]]

    def tile(self, features_BPChw: torch.Tensor, flipped: torch.Tensor | None = None) -> torch.Tensor:
        """Join feature maps (B, P, C, h, w) to (B, C, rows*h, cols*w), in channels-last memory order.

        Every patch's map is kept whole, also where patches overlap. Differentiable.

        Parameters
        ----------
        features_BPChw : torch.Tensor
            Feature maps of all patches, any float dtype.
        flipped : torch.Tensor, optional
            (B,) bool: samples whose patches were mirrored left to right, each within itself; for these the grid is
            mirrored too, so that the joined map is that of the mirrored image.

        Raises
        ------
        GridError
            If the number of patches is not this grid's.
        """
        if features_BPChw.ndim != 5 or features_BPChw.shape[1] != self.num_patches:
            raise GridError(f"expected features (B, {self.num_patches}, C, h, w), got {tuple(features_BPChw.shape)}")
        B, _, C, h, w = features_BPChw.shape
        grid_BRQChw = features_BPChw.reshape(B, self.rows, self.cols, C, h, w)
        if flipped is not None and bool(flipped.any()):
            mirror_B = flipped.to(features_BPChw.device).reshape(B, 1, 1, 1, 1, 1)
            grid_BRQChw = grid_BRQChw.flip(2).where(mirror_B, grid_BRQChw)
        joined_BHWC = grid_BRQChw.permute(0, 1, 4, 2, 5, 3).reshape(B, self.rows * h, self.cols * w, C)
        return joined_BHWC.permute(0, 3, 1, 2)

    def corners(self) -> list[tuple[int, int]]:
        """Return (row, column) of every patch's first pixel in the padded image."""
        return [(r * self.stride[0], c * self.stride[1]) for r in range(self.rows) for c in range(self.cols)]

    def _count(self, axis: int) -> int:
        free = self.image_size[axis] - self.patch_size[axis]
        return -(-free // self.stride[axis]) + 1

    def _padding(self) -> tuple[int, int]:
        """Pixels added above and to the left, without the margin."""
        padded = self.padded_size
        return (padded[0] - self.image_size[0]) // 2, (padded[1] - self.image_size[1]) // 2

    def _pad(self, images_BCHW: Images) -> Images:
        if self.padded_size == self.image_size and not self.margin:
            return images_BCHW
        (top, left), (height, width), m = self._padding(), self.padded_size, self.margin
        # An index clamped to the image repeats its border, for every dtype of both libraries.
        ys = np.clip(np.arange(-m, height + m) - top, 0, self.image_size[0] - 1)
        xs = np.clip(np.arange(-m, width + m) - left, 0, self.image_size[1] - 1)
        return images_BCHW[:, :, ys][:, :, :, xs]

    def _alternatives(self) -> list[str]:
        """Texts of grids close to the one asked for that tile: another stride, another patch, other images."""
        axes = list(zip(self.image_size, self.patch_size, self.stride, strict=True))
        strides = [_nearest(s, [n for n in range(1, p + 1) if (i - p) % n == 0]) for i, p, s in axes]
        patches = [_nearest(p, [n for n in range(1, i + 1) if i % n == 0]) for i, p, _ in axes]
        sizes = [p + round((i - p) / s) * s for i, p, s in axes]
        return [
            f"patch {dims(self.patch_size)} with stride {dims(strides)}",
            f"patch and stride {dims(patches)}",
            f"images of {dims(sizes)}",
        ]


def _nearest(wanted: int, candidates: list[int]) -> int:
    return min(candidates, key=lambda n: (abs(n - wanted), -n))
