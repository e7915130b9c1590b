"""What is found and written: the grid chosen for every set of images."""

from __future__ import annotations

import msgspec

from simulations import reports

VERSION = 1


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """The grid for a set of images.

    Attributes
    ----------
    name : str
        Of the images.
    image_size, patch_size, stride : tuple of int
        (height, width) in pixels.
    rows, cols : int
        Of the grid.
    num_images : int
        Images that were looked at.
    turns : float
        How often brightness turns along a line of an image; see `psl_flower.patches.complexity`.
    reason : str
        What a run says of the choice.
    """

    name: str
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    stride: tuple[int, int]
    rows: int
    cols: int
    num_images: int
    turns: float
    reason: str


class Report(reports.Report, frozen=True, kw_only=True):
    """A result file.

    Attributes
    ----------
    datasets : tuple of str
        Those asked for.
    measurements : tuple of Chosen
        The choice for each of them, for two large photographs, and for a set of views of these.
    """

    benchmark: str = "grid_choice"
    version: int = VERSION
    datasets: tuple[str, ...]
    measurements: tuple[Chosen, ...]
