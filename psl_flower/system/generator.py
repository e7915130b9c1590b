"""Torch's own generator, seeded for a moment."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# All threads of a process share the generator.
_alone = threading.RLock()


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch's generator within the block, and restore its state afterwards.

    Only one thread of a process is in the block at a time. The seed is 0..2**63 - 1; a GPU as `device` is seeded, too.
    """
    cuda = device is not None and device.type == "cuda"
    with _alone, torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
