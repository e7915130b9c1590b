"""The same training in one process, without Flower: bit-equal to the one over nodes."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.engine.exchange import WireFormat
from psl_flower.engine.local import LocalExchange
from psl_flower.engine.rounds import round_goal
from psl_flower.errors import ConfigError
from psl_flower.split.engines import SideEngine, made
from psl_flower.split.folder import TrainingFolder
from psl_flower.split.sent import Outputs
from psl_flower.split.session import Session, threads_of
from psl_flower.split.side import PartySide
from psl_flower.split.training import Training

# Makes a party's side from its name and Flower's Context, which is None outside Flower.
MakeParty = Callable[[str, Any], PartySide]


@dataclass(frozen=True, slots=True)
class LocalResult:
    """What a training in one process ends with.

    Attributes
    ----------
    top : nn.Module
        The model behind the cut.
    nets : dict[str, nn.Module]
        The parties' models, by name.
    rounds : list of dict
        What is recorded of each round: losses, metrics, seconds.
    outputs : tensor, tuple of tensors or None
        What `top` answered to `valid` in the last evaluation; None if there was none in this call.
    """

    top: nn.Module
    nets: dict[str, nn.Module]
    rounds: list[dict[str, Any]]
    outputs: Outputs | None


def fit_local(party: MakeParty, training: Training) -> LocalResult:
    """Train all parties in this process.

    Parameters
    ----------
    party : callable
        What `psl_flower.flower.split_client` takes; called with each name and None.
    training : Training
        Such as a `psl_flower.flower.SplitLearning`. With a workdir, an interrupted training continues.

    Raises
    ------
    PslError
        If something is wrong with the data, the models or the training.
    """
    with contextlib.ExitStack() as held, threads_of(training):
        path = training.workdir or Path(held.enter_context(tempfile.TemporaryDirectory(prefix="psl-")))
        folder = TrainingFolder(path)
        session = Session(training, folder)
        driver = session.driver
        engines = {
            m: engine_of(party, name, None, training, Checkpoints(folder.parties / name))
            for m, name in enumerate(training.names)
        }
        training.check_aligned(
            {engine.name: engine.claim.num_samples for engine in engines.values()},
            {engine.name: engine.claim.dataset for engine in engines.values()},
        )
        for engine in engines.values():
            engine.go_to(driver.lower.step)
        exchange = LocalExchange(engines, wire_format(training))
        while not session.over:
            step, every = driver.lower.step, training.evaluate_every
            stop_step, evaluate = round_goal(training.lessons, step, every, unfinished=session.unfinished)
            report = driver.run(exchange, stop_step, evaluate=evaluate)
            session.note(report, exchange.bytes_up(), exchange.bytes_down())
        session.end()
    nets = {training.names[m]: engine.model for m, engine in engines.items()}
    return LocalResult(driver.lower.lower, nets, session.records, driver.outputs)


def wire_format(training: Training) -> WireFormat:
    """Return the codecs of a training: in one process, too, what parties send is rounded as on the wire."""
    return WireFormat(activations=training.wire.wire_activations, gradients=training.wire.wire_gradients)


def engine_of(party: MakeParty, name: str, context: Any, training: Training, checkpoints: Checkpoints) -> SideEngine:
    """Return a party's engine, its side made under the seed of the party; see `side_of`."""
    number = training.names.index(name)
    side = side_of(party, name, context, training.seed)
    return SideEngine(number, name, training.sent[name], side, checkpoints)


def side_of(party: MakeParty, name: str, context: Any, seed: int) -> PartySide:
    """Return a party's side, made while torch draws from the seed of the party.

    Raises
    ------
    ConfigError
        If the function returns something else.
    """
    side = made(lambda: party(name, context), seed, name)
    if not isinstance(side, PartySide):
        raise ConfigError(f"party {name!r}: expected the function to return a PartySide, got {type(side).__name__}")
    return side
