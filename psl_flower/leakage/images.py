"""Selects the images to attack, and those that the attacker learns from.

Shape suffixes: N images, C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from psl_flower.config.fields import Settings, setting
from psl_flower.errors import ConfigError

# Fewer teach a decoder nothing.
LEAST_IMAGES = 20
# Victims by default.
MOST_VICTIMS = 500
# Smashed data of all looks at all images are held in memory, float32.
MOST_BYTES = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSettings(Settings):
    """How hard the attacker tries, and on how many images."""

    victims: int = setting(
        0, "training images that the attacker rebuilds; 0: 500, or a fifth of fewer than 2500", least=0, most=10_000
    )
    auxiliary: int = setting(
        5000, "other training images that it has, to learn from; fewer where memory is short", least=LEAST_IMAGES
    )
    epochs: int = setting(30, "passes of a decoder over them at most", least=1)
    looks: int = setting(
        32, "epochs of the training whose smashed data are joined, at most; 0: the finished network alone", least=0
    )
    seed: int = setting(0, "of the victims' choice and of the decoders", least=0, most=2**32 - 1)


class Known(NamedTuple):
    """Images with their classes."""

    images_NCHW: torch.Tensor  #: uint8.
    labels_N: NDArray[np.int64]  #: int64.

    @classmethod
    def joined(cls, batches: Iterable[tuple[torch.Tensor, NDArray[np.int64]]]) -> Known:
        """Return the images of all batches."""
        images, labels = zip(*batches, strict=True)
        return cls(torch.cat(images), np.concatenate(labels))

    @property
    def pixels_NCHW(self) -> torch.Tensor:
        """The images as float32 in 0..1."""
        return self.images_NCHW.float() / 255


def chosen_samples(
    pool_N: NDArray[np.int64], settings: AuditSettings, num_bytes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw the victims and the auxiliary images from the training images; no image is both.

    `num_bytes`, of an image's smashed data in one look, bounds the auxiliary images.

    Raises
    ------
    ConfigError
        If too few images are left.
    """
    drawn = np.random.default_rng(settings.seed).permutation(pool_N)
    number = settings.victims or max(2, min(MOST_VICTIMS, len(drawn) // 5))
    victims, others = drawn[:number], drawn[number:]
    others = others[: min(settings.auxiliary, max(LEAST_IMAGES, MOST_BYTES // num_bytes))]
    if len(others) < LEAST_IMAGES:
        raise ConfigError(
            f"victims: of {len(pool_N)} training images {len(others)} are left to learn from, at least {LEAST_IMAGES} "
            f"are needed; set --victims to {max(2, len(pool_N) - LEAST_IMAGES)} or fewer"
        )
    return np.sort(victims), others


def most_looks(settings: AuditSettings, num_images: int, num_bytes: int) -> int:
    """Return the most looks that memory can join, at least 1, at this number of images, each of `num_bytes`.

    0 if none but that of the finished network is asked for. A look at images that may be mirrored takes twice the room.
    """
    return min(settings.looks, max(1, MOST_BYTES // (2 * num_images * num_bytes)))
