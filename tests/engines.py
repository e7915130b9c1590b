"""Builds whole tiny runs without Flower, and compares all that training changes, bit by bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from psl_flower.config import RunConfig
from psl_flower.engine.adaptation import AdaptationNode
from psl_flower.engine.build import Blueprint
from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.engine.exchange import Exchange, WireFormat
from psl_flower.engine.local import LocalExchange
from psl_flower.engine.lower import LowerEngine
from psl_flower.engine.one_process import OneProcessTrainer
from psl_flower.engine.round_driver import RoundDriver
from psl_flower.engine.rounds import Predictions
from psl_flower.engine.stateless import stateless
from psl_flower.engine.upper import UpperEngine
from psl_flower.errors import PeerLost
from psl_flower.models.split import reset_parameters
from psl_flower.patches import PatchGrid
from psl_flower.stores.store_set import StoreSet
from psl_flower.wire.frames import decode_frame, frame_bytes
from psl_flower.wire.messages import ADAPTATION, Turn

CPU = torch.device("cpu")
STEPS = 6

Snapshot = dict[str, torch.Tensor]


def settings(**changes: Any) -> RunConfig:
    """Return the settings of a run of 6 steps of 4 digits, 16x16 pixels, 2x2 patches, flips and shifts on."""
    tiny = {
        "dataset": "digits",
        "max_train": 24,
        "max_test": 8,
        "rounds": 1,
        "steps_per_round": STEPS,
        "batch_size": 4,
        "evaluate_batch_size": 5,
        "patch_size": (8, 8),
        "flip": True,
        "shift": 1,
    }
    return RunConfig.of(**(tiny | changes))


class SmallLower(nn.Module):
    """A Lower of a few hundred weights, for tests of what surrounds it."""

    def __init__(self, grid: PatchGrid) -> None:
        super().__init__()
        self.grid = grid
        self.layers = nn.Sequential(
            nn.Conv2d(64, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        self.fc = nn.Linear(16, 10)
        reset_parameters(self, 0)

    def forward(self, smashed_BPChw: torch.Tensor, flipped: torch.Tensor | None = None) -> torch.Tensor:
        return self.fc(self.layers(self.grid.tile(smashed_BPChw, flipped)))


class Federation:
    """All parties of a run with a fresh state; checkpoints in `folder`, which a second Federation may go on from.

    `small` takes a `SmallLower`, with which only another Federation can be compared, and no Adaptation Net.
    """

    def __init__(
        self,
        config: RunConfig,
        stores: StoreSet,
        folder: Path,
        *,
        make_engine: type[UpperEngine] = UpperEngine,
        small: bool = False,
        device: torch.device = CPU,
        **driver_options: Any,
    ) -> None:
        self.config, self.stores, self.folder, self.make_engine = config, stores, folder, make_engine
        self.device = device
        self.description = stores.description
        self.blueprint = blueprint = Blueprint(config, stores.description)
        if not small:
            self.lower = blueprint.lower_engine(device)
        else:
            self.lower = LowerEngine(
                SmallLower(self.description.grid()),
                None,
                self.description.assignment,
                alpha=0.0,
                make_optimizer=blueprint.optimizer,
            )
        self.uppers = {m: self.upper(m) for m in range(self.description.num_uppers)}
        self.adaptation = self.adaptation_node() if self.lower.adaptation_elsewhere else None
        self.checkpoints = Checkpoints(folder / "lower")
        self.wire = WireFormat.of(config, self.lower.dtype)
        losses: list[float] = []
        self.losses = losses
        self.driver = RoundDriver(
            self.lower,
            blueprint.task(stores.labels),
            blueprint.smashed_shapes(),
            self.checkpoints,
            averaging=blueprint.averaging(),
            on_step=lambda report: losses.append(report.loss.full),  # of self it would be a cycle
            **driver_options,
        )

    def upper(self, m: int) -> UpperEngine:
        """Return a fresh engine of Upper m."""
        return self.make_engine(
            self.blueprint.upper(m),
            self.stores.open(m),
            self.blueprint.upper_options(self.device),
            Checkpoints(self.folder / f"upper-{m}"),
        )

    def adaptation_node(self) -> AdaptationNode:
        """Return a fresh Adaptation Net for a node of its own."""
        return self.blueprint.adaptation_node(self.device, Checkpoints(self.folder / "adaptation"))

    @property
    def parties(self) -> dict[int, UpperEngine | AdaptationNode]:
        """All but the Lower, by their numbers."""
        return self.uppers | ({ADAPTATION: self.adaptation} if self.adaptation else {})

    def resume(self) -> int:
        """Go to the last checkpoint that the Lower committed, and return its step."""
        step = self.checkpoints.steps()[-1]
        self.lower.go_to(step, self.checkpoints)
        for party in self.parties.values():
            party.go_to(step)
        return step

    def run(self, exchange: Exchange | None = None, stop_step: int = STEPS) -> Predictions:
        """Train up to `stop_step` and run through the test split."""
        report = self.driver.run(exchange or LocalExchange(self.parties, self.wire), stop_step, evaluate=True)
        assert report.predictions is not None
        return report.predictions

    def snapshot(self) -> Snapshot:
        """Return weights, BatchNorm buffers and momentum of all parties."""
        taken: Snapshot = {}
        for m, engine in self.uppers.items():
            taken |= prefixed(f"uppers.{m}", engine.model.state_dict())
            taken |= momentum(
                engine.state()["optimizer"], prefixed(f"uppers.{m}", dict(engine.model.named_parameters()))
            )
        parameters = prefixed("lower", dict(self.lower.lower.named_parameters()))
        taken |= prefixed("lower", self.lower.lower.state_dict()) | momentum(
            self.lower.state()["optimizer"], parameters
        )
        adaptation = self.adaptation.engine if self.adaptation else self.lower.adaptation
        if adaptation is not None:
            state, parameters = adaptation.state(), prefixed("adaptation", dict(adaptation.net.named_parameters()))
            taken |= prefixed("adaptation", state["net"]) | momentum(state["optimizer"], parameters)
        return copied(taken)


class StatelessExchange(LocalExchange):
    """A new process for every message, as in the flower transport: new engines, state on disk in between.

    `saved` is told to the Uppers until they train, as `psl_flower.flower.flower_exchange` does; a node vanishes at the
    plan of step `fail_at`.
    """

    def __init__(self, parts: Federation, fail_at: int = -1, saved: Mapping[int, int] | None = None) -> None:
        super().__init__(parts.parties, parts.wire)
        self._parts, self._fail_at, self._saved = parts, fail_at, dict(saved or {})

    def carry(self, frames, expected, meanwhile):
        meanwhile()
        answers = {}
        for m, frame in frames.items():
            plan = frame.message.plan if isinstance(frame.message, Turn) else None
            if plan is not None and plan.id.step == self._fail_at and m == 1:
                raise PeerLost("node 1 vanished")
            fresh = self._parts.adaptation_node() if m == ADAPTATION else self._parts.upper(m)
            party = stateless(fresh, self._parts.folder / f"live-{m}.pt")
            wanted = party.expects(self.wire, frame.message.steps_applied, self._saved.get(m))
            if frame.message.changes_state:
                self._saved.pop(m, None)
            reply = frame_bytes(party.reply(decode_frame(bytearray(frame_bytes(frame)), wanted), self.wire))
            answers[m] = decode_frame(bytearray(reply), expected[m])
        return answers


class Oracle:
    """The same run in one process, with snapshots after chosen steps."""

    def __init__(
        self, config: RunConfig, stores: StoreSet, at: tuple[int, ...] = (STEPS,), device: torch.device = CPU
    ) -> None:
        opened = [stores.open(m) for m in range(stores.description.num_uppers)]
        self.monolith = OneProcessTrainer(config, stores.description, stores.labels, opened, device)
        self.losses: list[float] = []
        self.after: dict[int, Snapshot] = {}
        for step in at:
            self.monolith.train(step - self.monolith.step, lambda _, loss, __: self.losses.append(loss))
            self.after[step] = monolith_snapshot(self.monolith)
        self.predictions = self.monolith.evaluate()


def monolith_snapshot(monolith: OneProcessTrainer) -> Snapshot:
    """Return what `Federation.snapshot` returns, of the network in one process."""
    parameters = dict(monolith.net.named_parameters())
    taken: Snapshot = dict(monolith.net.state_dict())
    if monolith.adaptation is not None:
        parameters |= prefixed("adaptation", dict(monolith.adaptation.named_parameters()))
        taken |= prefixed("adaptation", monolith.adaptation.state_dict())
    return copied(taken | momentum(monolith._optimizer.state_dict(), parameters))


def momentum(optimizer: Mapping[str, Any], parameters: Mapping[str, torch.Tensor]) -> Snapshot:
    """Return the optimiser's state of each parameter by name; it numbers them in the order it was given."""
    return {
        f"{'momentum' if kind == 'velocity' else kind} of {name}": kept[i]
        for kind, kept in optimizer.items()
        for i, name in enumerate(parameters)
        if kept[i] is not None
    }


def prefixed(prefix: str, tensors: Mapping[str, torch.Tensor]) -> Snapshot:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def copied(tensors: Mapping[str, torch.Tensor]) -> Snapshot:
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def differences(left: Snapshot, right: Snapshot) -> list[str]:
    """Return the names of what only one side has, or what is not bit-equal."""
    assert left, "nothing to compare"
    assert right, "nothing to compare"
    missing = set(left) ^ set(right)
    return sorted(missing | {name for name in left.keys() & right.keys() if not torch.equal(left[name], right[name])})


def same_predictions(left: Predictions, right: Predictions) -> bool:
    return (
        left.loss == right.loss
        and bool((left.predicted == right.predicted).all())
        and bool((left.confidence == right.confidence).all())
        and bool((left.sample == right.sample).all())
    )
