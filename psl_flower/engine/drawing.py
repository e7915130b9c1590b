"""Random numbers within a forward pass: a generator seeded for that pass, so that running it again draws the same."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from psl_flower.seeds import derive
from psl_flower.system.generator import seeded
from psl_flower.wire.plan import Plan


def drawing(plan: Plan, party: int | str, device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which torch draws from a generator seeded by (run seed, step, party, pass).

    Dropout draws from it. Its mask does not depend on earlier draws of the process, so the flower transport, which
    runs a forward pass twice, and a resumed run compute with the same mask.
    """
    return seeded(pass_seed(plan.augment_seed, plan.id.step, plan.id.attempt, party), device)


def pass_seed(seed: int, step: int, attempt: int, party: int | str) -> int:
    """Return the seed of a party's forward pass; `attempt`, 0 in training, numbers batches of an evaluation."""
    return derive(seed, "pass", step, attempt, party)
