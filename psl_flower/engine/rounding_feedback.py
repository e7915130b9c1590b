"""Error feedback: what a codec rounds off gradients is added to those of the next step.

Gradients of one step belong to other samples than those of the next, so the remainder kept is no sample's. It is one
number for each Upper, position and channel: the sum, over samples and places of the map, of all that rounding has
taken away and not yet given back. It is spread evenly over the next step's gradients. So the sum of what an Upper
receives differs from that of its gradients by that number alone, after however many steps (Seide et al., 1-bit
stochastic gradient descent, Interspeech 2014; Karimireddy et al., Error feedback fixes SignSGD, ICML 2019).

Shape suffixes: B batch, K positions of one Upper, h, w and C of a patch's smashed data.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from psl_flower.wire.codecs import wire_roundtrip


class GradientFeedback:
    """Accumulated codec rounding errors of each Upper's gradients."""

    def __init__(self, codec: str) -> None:
        self._codec = codec
        self._owed: dict[int, torch.Tensor] = {}
        self._next: dict[int, torch.Tensor] = {}

    def corrected(self, m: int, gradient_BKhwC: torch.Tensor) -> torch.Tensor:
        """Return the gradient of Upper m's smashed data with its share of the remainder, float32, to be rounded.

        Calling it again in the same step returns the same: only `apply` changes the remainder.

        Raises
        ------
        TrainingError
            If the codec cannot carry a value that is not finite.
        """
        wanted_BKhwC = gradient_BKhwC.to(torch.float32)
        if m in self._owed:
            B, _, h, w, _ = wanted_BKhwC.shape
            wanted_BKhwC = wanted_BKhwC + (self._owed[m] / (B * h * w))[:, None, None, :].to(wanted_BKhwC.device)
        missing_BKhwC = wanted_BKhwC - wire_roundtrip(wanted_BKhwC, self._codec)
        self._next[m] = missing_BKhwC.sum((0, 2, 3)).cpu()
        return wanted_BKhwC

    def apply(self) -> None:
        """Take over what the gradients since the last call leave owed; their step is done."""
        self._owed |= self._next
        self._next = {}

    def state(self) -> dict[int, torch.Tensor]:
        """Return the rounding error to be given back: (K, C) float32 by Upper."""
        return dict(self._owed)

    def restore(self, state: Mapping[int, torch.Tensor]) -> None:
        """Go back to a state; gradients whose step is not done are forgotten."""
        self._owed, self._next = dict(state), {}
