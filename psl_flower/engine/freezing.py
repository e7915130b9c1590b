"""Decides when the Uppers are frozen, and which views of an image the Lower trains on from then on.

A frozen Upper is in evaluation mode and receives no gradient, so it returns the same for a view of an image each time.
With `views` each is sent once and kept at the Lower (`psl_flower.engine.looks`); the Lower then trains without nodes.
View 0 is the unchanged image; others are augmented, each from a seed that is the same for all parties.

Shape suffixes: B batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from psl_flower.engine.augment import Augmentation
from psl_flower.seeds import derive, uniform


@dataclass(frozen=True, slots=True, kw_only=True)
class Freezing:
    """The freezing of a run's Uppers."""

    after: int  #: Steps in which they learn, 0 or more.
    views: int  #: Views of every training image that are sent once and kept; 0: a new one goes up in every step.
    seed: int  #: The run's.

    def is_frozen(self, step: int) -> bool:
        """Return True if the Uppers do not learn in this step, counted from 0."""
        return step >= self.after

    def view_seed(self, view: int) -> int:
        """Seed of the augmentation of a view, 1 to `views` - 1, of any image."""
        return derive(self.seed, "view", view)

    def chosen(self, epoch: int, samples_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the view (B,) of each sample, by global index, that an epoch trains on.

        The first view of a sample is drawn; later epochs cycle through the others, so all are used equally often.
        """
        first_B = np.floor(uniform(self.seed, "first view", samples_B) * self.views).astype(np.int64)
        return (first_B + epoch) % self.views

    def flipped(self, augmentation: Augmentation, epoch: int, samples_B: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return (B,) bool: which samples are mirrored in the view that an epoch trains on."""
        chosen_B, flipped_B = self.chosen(epoch, samples_B), np.zeros(len(samples_B), np.bool_)
        for view in range(1, self.views):
            places = np.flatnonzero(chosen_B == view)
            flipped_B[places] = augmentation.flipped(self.view_seed(view), samples_B[places])
        return flipped_B
