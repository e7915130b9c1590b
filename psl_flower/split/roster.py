"""The parties of a training, by number, and what each contributes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.errors import ConfigError
from psl_flower.split.engines import SideEngine, made
from psl_flower.split.holders import seats_of
from psl_flower.split.labels import LabelEngine, LabelSide, label_rows
from psl_flower.split.sent import Sent
from psl_flower.split.side import PartySide, Reader, claim_of
from psl_flower.wire.node_messages import Claim

# What a party's function may return: a side for its inputs, for its labels, or both in either order.
Given = PartySide | LabelSide | tuple[PartySide, LabelSide] | tuple[LabelSide, PartySide]
# Makes what a party brings from its name and Flower's Context, which is None outside Flower.
MakeParty = Callable[[str, Any], Given]


class SideSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What parties build their side from, as `NodeTask.settings` carries it."""

    seed: int  #: The run's.
    sent: tuple[Sent, ...]  #: What each party's model returns for one sample.
    returned: Sent | None = None  #: What the server's model returns for one sample, if a party has the labels.
    evaluate_batch_size: int = 256  #: Samples in a batch of an evaluation.
    average_every: int = 0  #: Steps after which the holders of a party are averaged; 0 for never.


@dataclass(frozen=True, slots=True)
class Brought:
    """What a party brings: a side for its inputs, for its labels, or both."""

    side: PartySide | None = None
    labels: LabelSide | None = None


@dataclass(frozen=True, slots=True)
class Roster:
    """The parties of a training by number: those that send something up, then the one that has the labels, if one has.

    A party may have two numbers: it then takes part as two. PARTY@GROUP is the holder of a party in one group;
    everything said of a party here is meant of such a holder (`psl_flower.split.holders`).
    """

    names: tuple[str, ...]  #: Names by number.
    labels: str = ""  #: The party that has the labels; empty if the server has them.

    @property
    def senders(self) -> tuple[str, ...]:
        """Those that send something up, by number."""
        return self.names[:-1] if self.labels else self.names

    @property
    def shared(self) -> dict[int, tuple[int, ...]]:
        """Those that are one of several holders of a party, and all holders of that party."""
        seats = seats_of(self.senders)
        holders = {seat: tuple(m for m, each in enumerate(seats) if each == seat) for seat in seats}
        return {m: holders[seat] for m, seat in enumerate(seats) if len(holders[seat]) > 1}

    def has_labels(self, m: int) -> bool:
        """Return True for the number under which a party holds the labels."""
        return bool(self.labels) and m == len(self.names) - 1

    def numbers(self, name: str) -> tuple[int, ...]:
        """Return the numbers of a party."""
        return tuple(m for m, found in enumerate(self.names) if found == name)

    def called(self, m: int) -> str:
        """Return a party's name for errors."""
        return f"party {self.names[m]!r}{' (labels)' if self.has_labels(m) else ''}"

    def checkpoints(self, root: Path, m: int) -> Checkpoints:
        """Return where a party's states are kept, under a folder for all."""
        folder = root / self.names[m]
        return Checkpoints(folder / "head" if self.has_labels(m) else folder)

    def brought(self, make: MakeParty, name: str, context: Any, seed: int) -> Brought:
        """Return a party's contribution, made while torch draws from the seed of the party, which its holders share.

        Raises
        ------
        ConfigError
            If the function returns something else than this training asks of the party.
        """
        given = made(lambda: make(name, context), seed, name)
        parts = given if isinstance(given, tuple) else (given,)
        kinds = [type(part) for part in parts]
        if not set(kinds) <= {PartySide, LabelSide} or len(set(kinds)) < len(kinds) or not kinds:
            raise ConfigError(
                f"party {name!r}: expected the function to return a PartySide, "
                f"got {', '.join(kind.__name__ for kind in kinds) or 'nothing'}; a LabelSide, or both, will also do"
            )
        brings = Brought(
            side=next((part for part in parts if isinstance(part, PartySide)), None),
            labels=next((part for part in parts if isinstance(part, LabelSide)), None),
        )
        self._check(name, brings)
        return brings

    def _check(self, name: str, brings: Brought) -> None:
        numbers = self.numbers(name)
        sends = any(not self.has_labels(m) for m in numbers)
        if sends and brings.side is None:
            raise ConfigError(f"party {name!r}: expected the function to return a PartySide, got a LabelSide alone")
        if brings.side is not None and not sends:
            raise ConfigError(
                f"party {name!r} brings inputs, but the server's parties do not name it; add it there with the shape "
                "that its net returns, or return its LabelSide alone"
            )
        if brings.labels is None and name == self.labels:
            raise ConfigError(
                f"party {name!r}: the server expects the labels of it; let its function return a LabelSide, too"
            )
        if brings.labels is not None and not self.labels:
            raise ConfigError(
                f"party {name!r} brings labels, but the server has its own; give the server labels={name!r}, or return "
                "no LabelSide"
            )
        if brings.labels is not None and name != self.labels:
            raise ConfigError(
                f"party {name!r} brings labels, but the server expects them of party {self.labels!r}; only one "
                "may have them"
            )


def engine_at(
    m: int, roster: Roster, brings: Brought, settings: SideSettings, checkpoints: Checkpoints
) -> SideEngine | LabelEngine:
    """Return a party's engine: a `SideEngine`, or a `LabelEngine` for the number that has the labels."""
    if not roster.has_labels(m):
        assert brings.side is not None
        averaged = settings.average_every > 0 and m in roster.shared
        return SideEngine(m, roster.names[m], settings.sent[m], brings.side, checkpoints, averaged=averaged)
    assert brings.labels is not None
    if settings.returned is None:
        raise ConfigError(f"{roster.called(m)}: the server does not say what its model returns")
    return LabelEngine(
        m, roster.names[m], settings.returned, brings.labels, checkpoints,
        evaluate_batch_size=settings.evaluate_batch_size,
    )  # fmt: skip


def claim_at(m: int, roster: Roster, brings: Brought) -> Claim:
    """Return a party's side, without building its engine."""
    whose = roster.called(m)
    if roster.has_labels(m):
        assert brings.labels is not None
        return claim_of(m, label_rows(brings.labels, whose))
    assert brings.side is not None
    return Reader(brings.side, whose).claim(m)
