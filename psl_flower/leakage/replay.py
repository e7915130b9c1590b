"""Trains a run again in one process, from its settings, to have all that its Lower received.

Training is exact: the same settings, stores, kernels and threads give the same weights, bit by bit, and so the same
smashed data.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from psl_flower.config import RunConfig
from psl_flower.engine.build import Blueprint
from psl_flower.engine.checkpoints import Checkpoints, same_weights
from psl_flower.engine.one_process import OneProcessTrainer
from psl_flower.leakage.recording import RecordedLooks, Recorder
from psl_flower.models import PatchSplitNet
from psl_flower.runs.folder import RunFolder
from psl_flower.stores.store_set import StoreSet
from psl_flower.system.devices import torch_threads
from psl_flower.text import OnProgress


class Threads(NamedTuple):
    """How many threads the parties of a run computed with: last bits depend on it."""

    uppers: int
    lower: int


class Replay(NamedTuple):
    """A training that was done again."""

    looks: RecordedLooks  #: Looks that its Lower received.
    exact: bool  #: Whether it reproduced the run's weights bit for bit.
    seconds: float  #: Duration.


def threads_of(run: RunFolder) -> Threads | None:
    """Return the threads of a simulated run, by its last checkpoints; None if these are missing or do not say."""
    places = (next(iter(sorted(run.nodes.glob("upper-*"))), run.nodes), run.checkpoints.folder)
    found = []
    for checkpoints in map(Checkpoints, places):
        steps = checkpoints.steps()
        found.append(checkpoints.load(steps[-1]).get("threads") if steps else None)
    uppers, lower = found
    return Threads(uppers, lower) if uppers and lower else None


def replay(
    config: RunConfig,
    stores: StoreSet,
    weights: Mapping[str, torch.Tensor],
    samples_N: NDArray[np.int64],
    *,
    most: int,
    steps: int = 0,
    threads: Threads | None = None,
    on_progress: OnProgress = lambda what, done, total: None,
) -> Replay:
    """Train a run again and record some of its images.

    Parameters
    ----------
    config : RunConfig
        The run's settings.
    stores : StoreSet
        Its patch stores.
    weights : mapping
        Of the finished run, by the names of `PatchSplitNet.state_dict()`, on the CPU.
    samples_N : ndarray
        Of the images to record, int64.
    most : int
        Looks to keep at most.
    steps : int
        That the run trained; 0: all that its settings say.
    threads : Threads, optional
        With which the run's parties computed; by default all that torch takes here.
    on_progress : callable
        Called with (what, steps done, steps in all).

    Raises
    ------
    PslError
        As training does: a store cannot be read, or the settings do not fit it.
    """
    began, description = time.monotonic(), stores.description
    task = Blueprint(config, description).task(stores.labels)
    total = min(steps, task.total_steps) or task.total_steps
    with stores.opened() as opened:
        trainer = OneProcessTrainer(config, description, stores.labels, opened)
        recorder, exact = Recorder(trainer.net, task, samples_N, most=most, steps=total), False
        with _threads_by_party(trainer.net, threads):
            while trainer.step < total:
                trainer.train(
                    min(task.steps_per_round, total - trainer.step),
                    lambda step, loss, seconds: on_progress("replaying the training", step, total),
                )
                # The best round's weights may be those that were kept, not the last one's.
                exact = exact or same_weights(trainer.net.state_dict(), weights)
    return Replay(recorder.finish(), exact, time.monotonic() - began)


@contextmanager
def _threads_by_party(net: PatchSplitNet, threads: Threads | None) -> Iterator[None]:
    """Let each party's part of the one graph compute with its threads, forward and backward."""
    number = torch.get_num_threads()
    given, take = threads or Threads(number, number), torch.set_num_threads

    def sent(module: object, inputs: object, smashed: torch.Tensor) -> None:
        if smashed.requires_grad:
            smashed.register_hook(lambda gradient: take(given.uppers))

    hooks = [net.lower.register_forward_pre_hook(lambda module, inputs: take(given.lower))]
    for upper in net.uppers:
        hooks.append(upper.register_forward_pre_hook(lambda module, inputs: take(given.uppers)))
        hooks.append(upper.register_forward_hook(sent))
    with torch_threads():
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
