"""The same training in one process, without Flower: bit-equal to the one over nodes."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from psl_flower.engine.exchange import WireFormat
from psl_flower.engine.local import LocalExchange
from psl_flower.engine.round_ends import round_goal
from psl_flower.split.engines import SideEngine, TopEngine
from psl_flower.split.folder import TrainingFolder
from psl_flower.split.labels import LabelEngine
from psl_flower.split.roster import MakeParty, SideSettings, claim_at, engine_at
from psl_flower.split.sent import Outputs
from psl_flower.split.session import Session
from psl_flower.split.training import Training
from psl_flower.system.devices import torch_threads


@dataclass(frozen=True, slots=True)
class LocalResult:
    """What a training in one process ends with."""

    top: nn.Module  #: The model behind the cut, trained.
    nets: dict[str, nn.Module]  #: The parties' models, trained, by name.
    #: One flat record for each round, also of those before an interruption: `round` (from 1), `step` (steps done so
    #: far), `loss` (mean over its steps), `seconds`, the metrics by name, `bytes_up` and `bytes_down` (what would pass
    #: over the wire, since this call began), and `event`, which is "round".
    rounds: list[dict[str, Any]]
    #: Outputs of `top`, or of the head, for `valid` in the last evaluation; None without an evaluation in this call.
    outputs: Outputs | None
    head: nn.Module | None = None  #: Head of the party that has the labels, if a party has them.


def fit_local(party: MakeParty, training: Training) -> LocalResult:
    """Train all parties in this process.

    Parameters
    ----------
    party : callable
        What `psl_flower.flower.split_client` takes; called with each name and None.
    training : Training
        Such as a `psl_flower.flower.SplitLearning`. With a workdir, an interrupted training continues.

    Returns
    -------
    LocalResult
        The trained models, a record of each round, and the outputs of the last evaluation.

    Raises
    ------
    PslError
        If something is wrong with the data, the models or the training.
    """
    with contextlib.ExitStack() as held, torch_threads(training.threads):
        path = training.workdir or Path(held.enter_context(tempfile.TemporaryDirectory(prefix="psl-")))
        folder = TrainingFolder(path)
        held.enter_context(folder.claimed())
        roster = training.roster
        brings = {m: roster.brought(party, name, None, training.seed) for m, name in enumerate(roster.names)}
        training.take({m: claim_at(m, roster, each) for m, each in brings.items()})
        session = Session(training, folder)
        folder.check_alignment(training.samples.alignment)
        driver, settings = session.driver, settings_of(training, session.driver.lower)
        engines = {
            m: engine_at(m, roster, each, settings, roster.checkpoints(folder.parties, m)) for m, each in brings.items()
        }
        for engine in engines.values():
            engine.go_to(driver.lower.step)
        exchange = LocalExchange(engines, wire_format(training))
        while not session.over:
            step, every = driver.lower.step, training.evaluate_every
            stop_step, evaluate = round_goal(training.lessons, step, every, unfinished=session.unfinished)
            report = driver.run(exchange, stop_step, evaluate=evaluate)
            session.note(report, exchange.bytes_up(), exchange.bytes_down())
        session.end()
    nets = {training.roster.names[m]: engine.model for m, engine in engines.items() if isinstance(engine, SideEngine)}
    judge = next((engine for engine in engines.values() if isinstance(engine, LabelEngine)), None)
    outputs = driver.outputs if judge is None else judge.outputs
    return LocalResult(driver.lower.lower, nets, session.records, outputs, None if judge is None else judge.head)


def wire_format(training: Training) -> WireFormat:
    """Return the codecs of a training: in one process, too, what parties send is rounded as on the wire."""
    return WireFormat(activations=training.wire.wire_activations, gradients=training.wire.wire_gradients)


def settings_of(training: Training, top: TopEngine) -> SideSettings:
    """Return the context from which parties build their sides."""
    return SideSettings(
        seed=training.seed,
        sent=tuple(training.sent.values()),
        returned=top.returned,
        evaluate_batch_size=training.lessons.evaluate_batch_size,
        average_every=training.average_every,
    )
