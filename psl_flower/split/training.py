"""The definition of a training over several parties, checked before anything is started."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from psl_flower.config.wire import WireSettings
from psl_flower.engine.batches import BatchOrder
from psl_flower.engine.schedule import Schedule
from psl_flower.errors import AlignmentError, ConfigError
from psl_flower.split.callbacks import Callback
from psl_flower.split.engines import TOP, TopEngine, made, returned_by
from psl_flower.split.holders import party_of
from psl_flower.split.lessons import SplitLessons
from psl_flower.split.matching import groups_of
from psl_flower.split.measuring import Loss, Metric, checked_metrics
from psl_flower.split.roster import Roster
from psl_flower.split.samples import Samples
from psl_flower.split.sent import Sent
from psl_flower.split.side import GivenOptimizer
from psl_flower.system.devices import choose_device
from psl_flower.text import expanded
from psl_flower.wire.node_messages import PARTY_NAME, Claim

log = logging.getLogger("psl_flower")

# A shape, or several.
PartyShape = int | Sequence[int] | Sequence[Sequence[int]]

# They become folders on the nodes.
_NAME = re.compile(PARTY_NAME)


class Training:
    """A training of a model behind the cut with the models of several parties.

    Parameters
    ----------
    top : nn.Module, or a function without parameters that makes one
        Called with one tensor, (B, *shape), or tuple of tensors per party. It is trained in place. A function is called
        under the run's seed; a module comes with the weights that it has.
    parties : mapping
        By name, the shape of what the party's model returns for one sample; a list of shapes for a tuple of tensors.
        Names such as `scan@north` and `scan@south` are holders of one party, `scan`, each with its own samples.
    labels : tensor, array or str
        The targets of all samples, one row per sample, of any dtype. Or the name of the party that has them, which
        brings a `psl_flower.split.LabelSide`; what `top` returns, float32, then goes to that party's head.
    train, valid : sequence of int, or mask
        Rows of the training samples, and of those that metrics are computed on.
    loss : callable, optional
        Called with what `top` returns and a batch's targets; returns a scalar. A party that has the labels brings the
        loss and the metrics.
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
        The samples' ids, where the parties give theirs (`psl_flower.split.PartySide`), in the order of `labels`; or
        `psl_flower.split.pseudonyms` of them, where the parties have an `id_key`.
    missing : {"zeros", "drop"}
        What happens to samples that a party lacks (`psl_flower.split.PartySide`, `present`): zeros stand for what it
        would send, and `top` gets a mask (B, parties) if its `forward` has a parameter `present`; or they are left out
        of `train` and `valid`.
    average_every : int
        Steps after which the holders of each party continue from the mean of their weights and of BatchNorm's
        statistics; 0 for never. They must allow it (`psl_flower.split.PartySide`, `averaged`).
    evaluate_every : int
        Rounds between runs through `valid`; the last round always has one.
    evaluate_batch_size : int
        Samples in a batch there.
    checkpoint_every : int
        Steps between checkpoints within a round; 0: only at the end of each round.
    device : str
        Device of `top`: "cpu", "cuda" or "auto".
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
        loss: Loss | None = None,
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
        missing: str = "zeros",
        average_every: int = 0,
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
        counts["average_every"] = average_every
        for name, value in [*numbers.items(), *counts.items(), ("threads", threads)]:
            if value < (least := int(name in numbers)):
                raise ConfigError(f"{name}: expected {least} or more, got {value}")
        self.sent = _sent(parties)
        self.parties = {party_of(name): sent for name, sent in self.sent.items()}
        self.samples = Samples(labels, ids, train, valid)
        self.roster = _roster(self.sent, self.samples.holder)
        _check_who_judges(self.samples, loss, metrics)
        self.loss, self.metrics, self.callbacks = loss, checked_metrics(metrics or {}), tuple(callbacks)
        self.workdir = expanded(str(workdir), "workdir").absolute() if workdir else None
        self.seed, self.threads = seed, threads
        self.evaluate_every, self.checkpoint_every = evaluate_every, checkpoint_every
        self.wire = WireSettings()
        self._top, self._optimizer, self._device = top, optimizer, choose_device(device)
        self._batch_size, self._lr, self._schedule = batch_size, lr, schedule
        self._epochs, self._evaluate_batch_size = epochs, evaluate_batch_size
        if missing not in ("zeros", "drop"):
            raise ConfigError(f"missing: expected 'zeros' or 'drop', got {missing!r}")
        self.missing, self._counted = missing, False
        if average_every and not self.roster.shared:
            raise ConfigError("average_every: no party has several holders; name them, as in 'scan@north'")
        self.average_every, self.averaged = average_every, list[tuple[tuple[int, ...], int]]()
        self.lessons = self._lessons()
        self._settings = {
            "parties": {name: [list(shape) for shape in sent.shapes] for name, sent in self.sent.items()},
            "samples": self.samples.num, "ids": self.samples.order.fingerprint, "train": len(self.samples.train),
            "batch_size": batch_size, "lr": lr, "seed": seed,
            "schedule": schedule if isinstance(schedule, str) else "a function",
            # Only a constant learning rate is the same in a longer training.
            **({} if schedule == "constant" else {"epochs": epochs}),
            **({"labels": self.samples.holder} if self.samples.holder else {}),
            **({"missing": missing} if missing != "zeros" else {}),
            **({"average_every": average_every} if average_every else {}),
        }  # fmt: skip

    def made_of(self) -> dict[str, Any]:
        """Return the values that must not change when the training is resumed."""
        dropped = {"left": len(self.samples.train)} if self.missing == "drop" else {}
        return {**self._settings, **dropped, "torch": str(torch.__version__)}

    def take(self, claims: Mapping[int, Claim]) -> None:
        """Check that all parties hold the training's samples; leave out those that a party lacks, if they are dropped.

        Claims are by number of the party.

        Raises
        ------
        AlignmentError
            Naming the party.
        ConfigError
            If too few samples are left.
        """
        aligned = self.samples.alignment
        self.samples.take(claims, self.roster)
        if self.samples.alignment != aligned:
            log.info("%s", self.samples.coverage(self.roster))
        self.averaged = groups_of(claims, self.roster) if self.average_every else []
        if self.missing == "drop" and self.samples.missing:
            before = len(self.samples.train), len(self.samples.valid)
            self.samples.drop_missing()
            after = len(self.samples.train), len(self.samples.valid)
            if after != before and self._counted:
                raise AlignmentError("a party lacks other samples than when this training began; use another workdir")
            if after != before:
                log.info("%d of %d training samples and %d of %d of the evaluation are left: a party lacks the others",
                         after[0], before[0], after[1], before[1])  # fmt: skip
                self.lessons = self._lessons()
        self._counted = True

    def engine(self) -> TopEngine:
        """Return the side of `top`, with its first weights."""
        top = self._top if isinstance(self._top, nn.Module) else made(self._top, self.seed, TOP)
        returned = returned_by(top, self.parties) if self.samples.holder else None
        return TopEngine(
            top, self.parties, self.loss, self._optimizer, self._device, returned, self.samples.missing, len(self.sent)
        )

    def _lessons(self) -> SplitLessons:
        order = BatchOrder(pool=self.samples.train, batch_size=self._batch_size, seed=self.seed)
        return SplitLessons(
            order=order,
            valid=self.samples.valid,
            lr=_learning_rate(self._schedule, self._lr, self._epochs * order.steps_per_epoch),
            epochs=self._epochs,
            evaluate_batch_size=self._evaluate_batch_size,
        )


def _sent(parties: Mapping[str, PartyShape]) -> dict[str, Sent]:
    if not parties:
        raise ConfigError("parties: none given; name each with the shape of what its model returns per sample")
    for name in parties:
        if not _NAME.fullmatch(name) or party_of(name) == TOP:
            raise ConfigError(
                f"parties: {name!r}: expected a name of letters, digits, - and _, other than {TOP!r}, or PARTY@GROUP"
            )
    sent = {name: Sent.of(given, name) for name, given in parties.items()}
    for name, each in sent.items():
        first = next(other for other in sent if party_of(other) == party_of(name))
        if first != name and party_of(name) in (first, name):
            raise ConfigError(f"parties: {first!r} and {name!r}: name the group of each holder, as in 'scan@north'")
        if each != sent[first]:
            raise ConfigError(f"parties: {first!r} and {name!r} are holders of one party; give them the same shape")
    return sent


def _roster(sent: Mapping[str, Sent], holder: str) -> Roster:
    if holder and (not _NAME.fullmatch(holder) or holder == TOP):
        raise ConfigError(
            f"labels: {holder!r}: expected the name of a party, of letters, digits, - and _, other than {TOP!r}"
        )
    return Roster((*sent, *([holder] if holder else [])), holder)


def _check_who_judges(samples: Samples, loss: Loss | None, metrics: Mapping[str, Metric] | None) -> None:
    """Check that loss and metrics come from the side that has the labels."""
    if not samples.holder and loss is None:
        raise ConfigError("loss: the server has the labels, so give a loss; or name the party that has them in labels")
    given = [name for name, value in (("loss", loss), ("metrics", metrics)) if value]
    if samples.holder and given:
        raise ConfigError(f"{' and '.join(given)}: party {samples.holder!r} has the labels; its LabelSide takes these")


def _learning_rate(schedule: str | Callable[[int], float], lr: float, total_steps: int) -> Callable[[int], float]:
    if isinstance(schedule, str):
        return Schedule(kind=schedule, peak=lr, total_steps=total_steps).lr
    return lambda step: lr * schedule(step)
