"""What a training over several parties is made of, checked before anything is started."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from psl_flower.config.wire import WireSettings
from psl_flower.engine.batches import BatchOrder
from psl_flower.engine.schedule import Schedule
from psl_flower.errors import AlignmentError, ConfigError
from psl_flower.split.callbacks import Callback
from psl_flower.split.engines import TOP, Loss, TopEngine, made
from psl_flower.split.lessons import SplitLessons
from psl_flower.split.sent import Sent
from psl_flower.split.side import GivenOptimizer, Rows
from psl_flower.system.devices import choose_device
from psl_flower.text import expanded

# A shape, or several.
PartyShape = int | Sequence[int] | Sequence[Sequence[int]]
Metric = Callable[[Any, torch.Tensor], float]

# They become folders on the nodes.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
# What a round's record has besides the user's metrics.
_RESERVED = {"event", "round", "step", "epoch", "loss", "valid_loss", "lr", "seconds", "bytes_up", "bytes_down"}


class Training:
    """A training of a model behind the cut with the models of several parties.

    Parameters
    ----------
    top : nn.Module, or a function without parameters that makes one
        Called with one tensor, (B, *shape), or tuple of tensors per party. It is trained in place. A function is called
        under the run's seed; a module comes with the weights that it has.
    parties : mapping
        By name, the shape of what the party's model returns for one sample; a list of shapes for a tuple of tensors.
    labels : tensor or array
        The targets of all samples, one row per sample, of any dtype.
    train, valid : sequence of int, or mask
        Rows of the training samples, and of those that metrics are computed on.
    loss : callable
        Called with what `top` returns and a batch's targets; returns a scalar.
    optimizer : callable or Optimizer
        Of `top`, as in `psl_flower.split.PartySide`.
    lr : float
        Learning rate of all parties.
    batch_size, epochs : int
        Samples in a step, 2 or more, and passes through `train`.
    workdir : str or Path
        Folder of checkpoints and records; a training that was interrupted continues from there. Empty: none is kept,
        which only `psl_flower.split.fit_local` allows.
    metrics : mapping of callables
        By name, called after each round with all outputs and targets of `valid`; each returns a number.
    callbacks : sequence of callables
        Told of every step and round (`psl_flower.split.callbacks`).
    schedule : {"constant", "cosine", "one-cycle"}, or a function of the step
        Learning rate over the steps; a function returns what `lr` is multiplied by.
    seed : int
        Of the batches, of dropout, and of the models that parties make.
    ids : sequence, optional
        The samples' ids, where the parties give theirs (`psl_flower.split.PartySide`), in the order of `labels`.
    evaluate_every : int
        Rounds between runs through `valid`; the last round always has one.
    evaluate_batch_size : int
        Samples in a batch there.
    checkpoint_every : int
        Steps between checkpoints besides that at the end of each round; 0 for none.
    device : str
        Where `top` computes: "cpu", "cuda" or "auto".
    threads : int
        Processor threads of every party; 0 leaves that to each process. Other threads may mean other last bits.

    Raises
    ------
    ConfigError
        If something is out of range or contradicts something else.
    AlignmentError
        If an id occurs twice, or there is not one for each label.
    """

    def __init__(
        self,
        top: nn.Module | Callable[[], nn.Module],
        parties: Mapping[str, PartyShape],
        *,
        labels: Any,
        train: Any,
        valid: Any = (),
        loss: Loss,
        optimizer: GivenOptimizer,
        lr: float,
        batch_size: int,
        epochs: int,
        workdir: str | Path = "",
        metrics: Mapping[str, Metric] | None = None,
        callbacks: Sequence[Callback] = (),
        schedule: str | Callable[[int], float] = "constant",
        seed: int = 0,
        ids: Sequence[Any] | None = None,
        evaluate_every: int = 1,
        evaluate_batch_size: int = 256,
        checkpoint_every: int = 0,
        device: str = "cpu",
        threads: int = 1,
    ) -> None:
        if not (math.isfinite(lr) and lr > 0):
            raise ConfigError(f"lr: expected a finite number above 0, got {lr}")
        numbers = {"epochs": epochs, "evaluate_batch_size": evaluate_batch_size}
        counts = {"seed": seed, "evaluate_every": evaluate_every, "checkpoint_every": checkpoint_every}
        for name, value in [*numbers.items(), *counts.items(), ("threads", threads)]:
            if value < (least := int(name in numbers)):
                raise ConfigError(f"{name}: expected {least} or more, got {value}")
        self.sent = _sent(parties)
        self.loss, self.metrics, self.callbacks = loss, _metrics(metrics or {}), tuple(callbacks)
        self.workdir = expanded(str(workdir), "workdir").absolute() if workdir else None
        self.seed, self.threads = seed, threads
        self.evaluate_every, self.checkpoint_every = evaluate_every, checkpoint_every
        self.wire = WireSettings()
        self._top, self._optimizer, self._device = top, optimizer, choose_device(device)
        self.targets = labels if isinstance(labels, torch.Tensor) else torch.as_tensor(np.asarray(labels))
        if self.targets.dim() == 0:
            raise ConfigError("labels: expected one row per sample, got a single number")
        self.rows = Rows(self.num_samples, ids, "the server's labels")
        train_rows, valid_rows = self._subset(train, "train"), self._subset(valid, "valid")
        if shared := len(set(train_rows.tolist()) & set(valid_rows.tolist())):
            raise ConfigError(f"valid: {shared} of its samples are in train, too; metrics would be too good")
        order = BatchOrder(pool=self.rows.samples(train_rows), batch_size=batch_size, seed=seed)
        self.lessons = SplitLessons(
            order=order,
            valid=self.rows.samples(valid_rows),
            lr=_learning_rate(schedule, lr, epochs * order.steps_per_epoch),
            epochs=epochs,
            evaluate_batch_size=evaluate_batch_size,
        )
        self._settings = {
            "parties": {name: [list(shape) for shape in sent.shapes] for name, sent in self.sent.items()},
            "samples": self.num_samples, "ids": self.rows.fingerprint, "train": len(train_rows),
            "batch_size": batch_size, "lr": lr, "seed": seed,
            "schedule": schedule if isinstance(schedule, str) else "a function",
            # Only a constant learning rate is the same in a longer training.
            **({} if schedule == "constant" else {"epochs": epochs}),
        }  # fmt: skip

    @property
    def num_samples(self) -> int:
        """Samples that every party holds."""
        return len(self.targets)

    @property
    def names(self) -> tuple[str, ...]:
        """The parties, in the order of their numbers."""
        return tuple(self.sent)

    def made_of(self) -> dict[str, Any]:
        """Return the values that must not change when the training is resumed."""
        return {**self._settings, "torch": str(torch.__version__)}

    def engine(self) -> TopEngine:
        """Return the side of `top`, with its first weights."""
        top = self._top if isinstance(self._top, nn.Module) else made(self._top, self.seed, TOP)
        return TopEngine(top, self.sent, self.loss, self._optimizer, self._device)

    def targets_of(self, samples_B: NDArray[np.int64]) -> torch.Tensor:
        """Return the targets of samples, in their order."""
        return self.targets[torch.from_numpy(self.rows.rows(samples_B).copy())]

    def check_aligned(self, num_samples: Mapping[str, int], fingerprints: Mapping[str, str]) -> None:
        """Check that all parties hold the samples that there are labels of.

        Parameters
        ----------
        num_samples, fingerprints : mapping
            Of each party, by what to call it in errors.

        Raises
        ------
        AlignmentError
            Naming the party.
        """
        for who, number in num_samples.items():
            if number != self.num_samples:
                raise AlignmentError(
                    f"{who} holds {number} samples, but there are {self.num_samples} labels; every party needs all "
                    "samples, and the server the label of each"
                )
        for who, fingerprint in fingerprints.items():
            if fingerprint != self.rows.fingerprint:
                which = "no ids" if not fingerprint else "other ids"
                own = "gives none" if not self.rows.fingerprint else "gives its own"
                raise AlignmentError(
                    f"{who} gives {which} for its samples, the server {own} (ids=...); give the same set of ids at all "
                    "parties and the server, or none anywhere"
                )

    def _subset(self, given: Any, name: str) -> NDArray[np.int64]:
        rows = np.asarray(given)
        if rows.dtype == np.bool_:
            if rows.shape != (self.num_samples,):
                raise ConfigError(f"{name}: expected a mask of {self.num_samples} samples, got shape {rows.shape}")
            rows = np.flatnonzero(rows)
        if rows.ndim != 1 or (len(rows) and rows.dtype.kind not in "iu"):
            raise ConfigError(f"{name}: expected a row of sample numbers or a mask, got {rows.dtype} {rows.shape}")
        rows = rows.astype(np.int64)
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.num_samples:
            raise ConfigError(f"{name}: a sample is outside the {self.num_samples} that have labels")
        if len(np.unique(rows)) < len(rows):
            raise ConfigError(f"{name}: {len(rows) - len(np.unique(rows))} samples occur more than once")
        return rows


def _sent(parties: Mapping[str, PartyShape]) -> dict[str, Sent]:
    if not parties:
        raise ConfigError("parties: there are none; name each with the shape of what its model returns per sample")
    for name in parties:
        if not _NAME.fullmatch(name) or name == TOP:
            raise ConfigError(f"parties: {name!r}: expected a name of letters, digits, - and _, other than {TOP!r}")
    return {name: Sent.of(given, name) for name, given in parties.items()}


def _metrics(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    if taken := _RESERVED & set(metrics):
        raise ConfigError(
            f"metrics: {', '.join(sorted(taken))}: a round's record has that name already; choose another"
        )
    return dict(metrics)


def _learning_rate(schedule: str | Callable[[int], float], lr: float, total_steps: int) -> Callable[[int], float]:
    if isinstance(schedule, str):
        return Schedule(kind=schedule, peak=lr, total_steps=total_steps).lr
    return lambda step: lr * schedule(step)
