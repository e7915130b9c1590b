"""Measures what a node learns about classes from the gradients of its smashed data.

Gradients of images of one class point the same way, since the loss pulls them towards the same answer. So a node that
knows the classes of a few images guesses those of the others by the most similar direction.

Shape suffixes: L looks, N images, D numbers of a gradient, K classes.
"""

from __future__ import annotations

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from psl_flower.leakage.measures import Interval, interval
from psl_flower.text import counted

KNOWN_PER_CLASS = 5


class LabelGuess(msgspec.Struct, frozen=True, kw_only=True):
    """How well a node guesses classes."""

    node: int  #: Index of the node's Upper.
    images: int  #: Number of images whose classes are guessed.
    known: int  #: Images of each class that the node knows the class of, at most.
    looks: int  #: Number of looks whose gradients are joined.
    #: Share that it guesses right: from gradients, and by the same method from its own smashed data, which need no
    #: training of the Lower.
    from_gradients: Interval
    from_patches: Interval
    chance: float  #: Share of the most frequent class.

    @property
    def line(self) -> str:
        """What it means, in one sentence."""
        found, own = self.from_gradients, self.from_patches
        looks = counted(self.looks, "look")
        return (
            f"A node that knows {self.known} images of each class guesses the class of {found.mean:.0%} of "
            f"{self.images} others from the gradients of {looks} ({own.mean:.0%} from its own smashed data, "
            f"{self.chance:.0%} by chance)."
        )


def guess_labels(
    gradient_LND: torch.Tensor, own_LND: torch.Tensor, labels_N: NDArray[np.int64], num_classes: int, node: int = 0
) -> LabelGuess | None:
    """Return a node's rate of right guesses; None if it received no gradients, or all classes are known.

    Parameters
    ----------
    gradient_LND : torch.Tensor
        Of a node's smashed data, look by look; zeros where an image was left out.
    own_LND : torch.Tensor
        The smashed data themselves.
    labels_N : ndarray
        Classes, int64. The first images of each class are those that the node knows.
    num_classes : int
        K.
    node : int
        Its number, for the report.
    """
    if gradient_LND.numel():
        # Frozen Uppers receive none.
        taught_L = gradient_LND.flatten(1).any(1)
        gradient_LND, own_LND = gradient_LND[taught_L], own_LND[taught_L]
    known_N = np.zeros(len(labels_N), bool)
    for label in range(num_classes):
        known_N[np.flatnonzero(labels_N == label)[:KNOWN_PER_CLASS]] = True
    if not gradient_LND.numel() or known_N.all():
        return None
    right, own_right = (
        (nearest_class(values, labels_N, known_N, num_classes) == labels_N)[~known_N].astype(float)
        for values in (gradient_LND, own_LND - own_LND.mean(1, keepdim=True))
    )
    counts_K = np.bincount(labels_N[~known_N])
    return LabelGuess(
        node=node, images=int((~known_N).sum()), known=KNOWN_PER_CLASS, looks=len(gradient_LND),
        from_gradients=interval(right), from_patches=interval(own_right), chance=float(counts_K.max() / counts_K.sum()),
    )  # fmt: skip


def nearest_class(
    values_LND: torch.Tensor, labels_N: NDArray[np.int64], known_N: NDArray[np.bool_], num_classes: int
) -> NDArray[np.int64]:
    """Return classes (N,): those whose known images' mean direction is most similar, summed over looks."""
    directions_LND = torch.nn.functional.normalize(values_LND, dim=2)
    score_NK = torch.full((len(labels_N), num_classes), -torch.inf)
    for label in np.unique(labels_N[known_N]).tolist():
        chosen = torch.from_numpy(known_N & (labels_N == label))
        centre_LD = torch.nn.functional.normalize(directions_LND[:, chosen].mean(1), dim=1)
        score_NK[:, label] = torch.einsum("lnd,ld->n", directions_LND, centre_LD)
    guessed: NDArray[np.int64] = score_NK.argmax(1).numpy()
    return guessed
