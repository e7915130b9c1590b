"""Parties with models of their own on real nodes in one process, and the training of `tests.plain_split` over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from flwr.app import Message

from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.flower import PartySide, SplitLearning, split_client
from psl_flower.split import Training
from tests import plain_split as plain
from tests.in_process import InProcessGrid

MakeParty = Callable[[str, Any], PartySide]


class PartiesGrid(InProcessGrid):
    """A real node for each party, numbered from 100, with a state of its own."""

    def __init__(self, party: MakeParty, state: Path, names: Sequence[str] = tuple(plain.PARTIES)) -> None:
        super().__init__(state, state, len(names))
        self.config = {
            node: {"party": name, "state": str(folder)}
            for name, (node, folder) in zip(names, self.state.items(), strict=True)
        }
        self.allowed = {}
        self.client_app = split_client(party)

    def lose(self, kind: str, number: int) -> list[str]:
        """Let node 101 be lost at the `number`-th message of a kind, until nodes are looked for; return all kinds sent."""
        sent: list[str] = []

        def disturb(message: Message) -> None:
            sent.append(message.metadata.message_type)
            if sent[-1] == kind and sent.count(kind) == number:
                self.unreachable.add(101)
            elif sent[-1] == "query.inventory":
                self.unreachable.clear()

        self.on_message = disturb
        return sent

    def fit(self, strategy: SplitLearning) -> Any:
        """Train over the nodes; wait until all of them have ended their parts."""
        self.begin()
        try:
            return strategy.fit(self)
        finally:
            self.join()


def party_with(optimizer: Callable[..., Any], **options: Any) -> MakeParty:
    data = plain.columns()
    return lambda name, context: PartySide(plain.net(name), data[name], optimizer, **options)


def arguments(optimizer: Callable[..., Any], **changes: Any) -> dict[str, Any]:
    told = {
        "labels": plain.labels(), "train": plain.TRAIN, "valid": plain.VALID, "loss": plain.bce,
        "metrics": {"accuracy": plain.accuracy}, "optimizer": optimizer, **plain.SETTINGS,
    }  # fmt: skip
    return told | changes


def training(optimizer: Callable[..., Any] = torch.optim.Adam, **changes: Any) -> Training:
    return Training(plain.Top, plain.PARTIES, **arguments(optimizer, **changes))


def over_nodes(optimizer: Callable[..., Any] = torch.optim.Adam, **changes: Any) -> SplitLearning:
    return SplitLearning(plain.Top, plain.PARTIES, **arguments(optimizer, **({"node_timeout_s": 20.0} | changes)))


def weights_of(
    strategy: SplitLearning, result: Any, states: Path, step: int, names: Sequence[str] = tuple(plain.PARTIES)
) -> dict[str, torch.Tensor]:
    """Return all weights, those of the parties from their states under a folder, and the last outputs."""
    found = {f"top.{name}": value for name, value in result.arrays.to_torch_state_dict().items()}
    for name in names:
        (path,) = states.rglob(f"{name}/step-{step:08d}.pt")
        state = Checkpoints(path.parent).load(step)
        found |= {f"{name}.{key}": value for key, value in state["model"].items()}
    assert isinstance(strategy.outputs, torch.Tensor)
    return found | {"outputs": strategy.outputs}
