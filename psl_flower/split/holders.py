"""Maps each holder to its samples of a batch: parties name their samples, and a party may have several holders.

A party with several nodes as holders, such as `scan@north` and `scan@south`, is one argument of the model behind the
cut: what each holder sends goes to the rows of the samples that it has. A plan names to each holder only its own
rows, perhaps zero of them. Shape suffixes N: all samples; B: batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from psl_flower.wire.plan import Plan, pack_samples

SEPARATOR = "@"


def party_of(name: str) -> str:
    """Return the party that a node is a holder of: `scan` for `scan@north`, and a name without group as it is."""
    return name.partition(SEPARATOR)[0]


def seats_of(names: Sequence[str]) -> tuple[int, ...]:
    """Return, for each holder, the place of its party among all, in the order in which they are first named."""
    parties = list(dict.fromkeys(map(party_of, names)))
    return tuple(parties.index(party_of(name)) for name in names)


class Holders:
    """Turns a plan into those of the holders, what they send into what their parties do, and gradients back.

    `names` are of the holders that send something up, by number. `rows`, read at every step, has for each holder that
    names its samples the row (N,) that it has of each, -1 for none.
    """

    def __init__(self, names: Sequence[str], rows: Mapping[int, NDArray[np.int64]]) -> None:
        self._seats, self._rows = seats_of(names), rows

    def told(self, m: int, plan: Plan) -> Plan:
        """Return the plan for holder m: the samples that it has, by its own row numbers."""
        rows_B = self._rows_of(m, plan)
        return plan if rows_B is None else msgspec.structs.replace(plan, samples=pack_samples(rows_B[rows_B >= 0]))

    def joined(self, plan: Plan, sent: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Return the parties' outputs, by place, joined from their holders'; zeros for samples that no holder has."""
        found: dict[int, torch.Tensor] = {}
        for m, tensor in sent.items():
            rows_B, seat = self._rows_of(m, plan), self._seats[m]
            if rows_B is None:
                found[seat] = tensor
                continue
            if seat not in found:
                found[seat] = tensor.new_zeros((plan.num_samples, *tensor.shape[1:]))
            found[seat][_places(rows_B)] = tensor
        return found

    def parted(self, plan: Plan, gradients: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Return the gradients of what holders sent from those of what their parties did."""
        found = {}
        for m, seat in enumerate(self._seats):
            rows_B, gradient = self._rows_of(m, plan), gradients[seat]
            found[m] = gradient if rows_B is None else gradient[_places(rows_B)]
        return found

    def _rows_of(self, m: int, plan: Plan) -> NDArray[np.int64] | None:
        return self._rows[m][plan.sample_indices()] if m in self._rows else None


def _places(rows_B: NDArray[np.int64]) -> torch.Tensor:
    """Return the places in the batch of the samples present."""
    return torch.from_numpy(np.flatnonzero(rows_B >= 0))
