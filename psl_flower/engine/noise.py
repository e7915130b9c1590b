"""The noise on codes in a training: one draw for each record, view of it and state of the Upper, from a node's secret.

An Upper that is asked again for the same view of a record, and has not learnt since, adds the same noise: asking often
averages nothing away. Once it has learnt, the draw is another: noise that stayed while weights change would cancel in
the difference of two codes.

Shape suffixes: B batch, K positions of one Upper, N = B*K, d numbers of a patch's code, V numbers that tell a view.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import torch

from psl_flower.config import RunConfig
from psl_flower.config.fields import flat
from psl_flower.engine.augment import Augmentation
from psl_flower.protection.noise import drawn
from psl_flower.wire.plan import Plan

# Settings of a network and its training that do not tell runs apart: predictions and longer trainings have others.
_NOT_OF_NOISE = (
    "upper-weights", "rounds", "steps-per-round", "evaluate-every", "evaluate-batch-size", "alpha", "adaptation-server",
    "average-every",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeNoise:
    """The standard normal numbers of which all Uppers of a run make noise."""

    size: int  #: Numbers of a patch's code, d.
    run: bytes  #: Tells runs with other settings apart, so that their draws differ; 32 bytes.
    augmentation: Augmentation  #: What makes views.

    def of(self, key: bytes, plan: Plan, step: int, num_positions: int) -> torch.Tensor:
        """Return the numbers (B*K, d), float32 on the CPU, for the codes of a plan's samples.

        Parameters
        ----------
        key : bytes
            Of the Upper's store (`psl_flower.patches.store.PatchStore.noise_key`).
        plan : Plan
            Whose samples and views.
        step : int
            Steps that the Upper has applied.
        num_positions : int
            K.
        """
        rows_BD = drawn(key, list(self._records(plan, step)), num_positions * self.size)
        return torch.from_numpy(rows_BD).reshape(-1, self.size)

    def _records(self, plan: Plan, step: int) -> Iterator[bytes]:
        """Yield what each sample's draw depends on: how its pixels were changed, not the seed of that change."""
        samples_B = plan.sample_indices()
        # BatchNorm in training makes other codes of the same weights.
        head = self.run + struct.pack("<Q?", step, plan.mode == "train")
        views_BV = self.augmentation.views(None if plan.mode == "evaluate" else plan.augment_seed, samples_B)
        views = [
            struct.pack(f"<q{len(view)}q", sample, *view)
            for sample, view in zip(samples_B, views_BV.tolist(), strict=True)
        ]
        if plan.mode == "evaluate" or plan.mix_weight == 1.0:
            yield from (head + view for view in views)
            return
        weight = struct.pack("<d", plan.mix_weight)
        for view, partner in zip(views, self.augmentation.partners(plan.augment_seed, samples_B), strict=True):
            yield head + view + weight + views[partner]


def code_noise_of(config: RunConfig, augmentation: Augmentation) -> CodeNoise | None:
    """Return the source of the noise on a run's codes; None if it adds none."""
    protection = config.network.cut_protection
    if not protection.noise:
        return None
    settings = flat(config.network) | flat(config.training)
    told = {key: value for key, value in settings.items() if key not in _NOT_OF_NOISE}
    run = hashlib.sha256(msgspec.json.encode(told, order="sorted")).digest()
    return CodeNoise(size=protection.size, run=run, augmentation=augmentation)
