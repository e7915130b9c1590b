"""The Lower's questions to nodes, and how questions and answers travel in Flower messages; imports no Flower.

A Flower message carries a `Parcel`. On the other side it is read through `Received`, which refuses missing, unknown
or mistyped values. Only `psl_flower.flower` puts parcels into Flower's own records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import msgspec
import torch

from psl_flower.errors import FrameMismatch
from psl_flower.wire.messages import Failed, party_names
from psl_flower.wire.node_messages import NodeTask, Record, StreamTicket, decode, encode
from psl_flower.wire.plan import Count, Packed, check_packed

Tensors = Mapping[str, torch.Tensor]

# Name of the ConfigRecord in a message's content, and of its entries other than the parts.
CONFIG_RECORD = "psl"
_RECORD, _FAILURE = "record", "failure"


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the Lower's questions to a node. `kind` is the type of its Flower message: a category and an action."""

    kind: ClassVar[str]


class AskInventory(Question, frozen=True):
    """Who are you, and what do you hold? Answered with `Inventory`.

    `names` are the parties' names, `labels` is the party that has the labels, as in `NodeTask`.
    """

    kind = "query.inventory"
    names: tuple[str, ...] = ()
    labels: str = ""


class TaskQuestion(Question, frozen=True):
    """Base of questions to a node that has a task."""

    task: NodeTask


class AskClaims(TaskQuestion, frozen=True):
    """What is in the stores allotted to you? To simulated nodes; answered with `Inventory`."""

    kind = "query.claim"


class OpenStreams(TaskQuestion, frozen=True):
    """Open your streams for a round; answered, with nothing, when it is over."""

    kind = "train.stream"
    ticket: StreamTicket


class TakeStep(TaskQuestion, frozen=True):
    """Do what the frames say, one part for each party; answered with a frame for each.

    `step` counts the steps that the parties have applied, `saved` those in the state that a party starts from, where it
    has not trained since.
    """

    kind = "query.step"
    step: int
    saved: dict[int, int]


class GiveWeights(TaskQuestion, frozen=True):
    """What are the weights after `saved` steps, by party? Answered with tensors "upper"."""

    kind = "query.collect"
    saved: dict[int, int]


class SealForRestorers(TaskQuestion, frozen=True):
    """Answer this signed authorisation of restorers, with a part for each store."""

    kind = "query.restore"
    request: bytes


class SmashImages(TaskQuestion, frozen=True):
    """What do your Uppers, after `saved` steps, make of these images? In evaluation.

    `more` images follow in this audit. They come as tensors "patches", uint8 (B, K, C, h, w) for each Upper; answered
    with tensors "smashed", float32 (B, K, C', h', w').
    """

    kind = "query.audit"
    saved: dict[int, int]
    more: Count = 0


class PlaceUppers(TaskQuestion, frozen=True):
    """Keep the file of weights that your Uppers begin with, a part for each; answered with nothing, or a failure."""

    kind = "query.place_uppers"


class LightenReady(TaskQuestion, frozen=True):
    """Can you take part in a lightening? It is answered with nothing, or a failure."""

    kind = "query.lighten_ready"


class LightenPlace(TaskQuestion, frozen=True):
    """Keep the weights that a training begins with: tensors "upper", and "teacher" where there is one."""

    kind = "query.lighten_place"


class LightenQuantise(TaskQuestion, frozen=True):
    """Quantise the models, a part for each Upper, to `bits`; answered with such parts and tensors "smashed".

    They are calibrated on the node's patches of `samples` (`psl_flower.wire.plan.pack_samples`).
    """

    kind = "query.lighten_quantise"
    samples: Packed
    bits: int

    def __post_init__(self) -> None:
        """Refuse a ragged list of samples."""
        check_packed(samples=self.samples)


class LightenKeep(TaskQuestion, frozen=True):
    """Put the Uppers' files, a part for each, in place."""

    kind = "query.lighten_keep"


class LightenMeasure(TaskQuestion, frozen=True):
    """How fast are the files in place, with this batch size and number of threads? Answered with `Measured`."""

    kind = "query.lighten_measure"
    batch: int
    threads: int


@dataclass(frozen=True, slots=True)
class Parcel:
    """What a Flower message carries."""

    record: msgspec.Struct | None = None  #: The question, or the answer; `Failed` in place of one.
    parts: Mapping[int, bytes] = field(default_factory=dict)  #: Bytes by party, as the question's docstring says.
    tensors: Mapping[str, Mapping[int, Tensors]] = field(default_factory=dict)  #: State dicts by name and party.

    def values(self) -> dict[str, bytes]:
        """Return the contents of the ConfigRecord `CONFIG_RECORD`."""
        name = _FAILURE if isinstance(self.record, Failed) else _RECORD
        record = {} if self.record is None else {name: encode(self.record)}
        return record | {f"party-{m}": part for m, part in self.parts.items()}

    def arrays(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return the contents of the ArrayRecords, by name; on the CPU."""
        return {
            f"{name}-{m}": {key: tensor.cpu() for key, tensor in state.items()}
            for name, states in self.tensors.items()
            for m, state in states.items()
        }


class Received:
    """A parcel that has come from a peer, unread.

    `content` is the Flower message's, of Flower's own class, if it has any; errors name the peer.
    """

    def __init__(self, content: Any, peer: str) -> None:
        self._values: Mapping[str, object] = {}
        self._arrays: Mapping[str, Any] = {}
        self.peer = peer
        if content is not None:
            self._values = content.config_records.get(CONFIG_RECORD, {})
            self._arrays = content.array_records

    def record(self, kind: type[Record]) -> Record:
        """Return the record, which must be of this kind; raises FrameMismatch if it is not."""
        return decode(self._values.get(_RECORD), kind, self.peer)

    def failure(self) -> Failed | None:
        """Return the failure that came in place of a record; None without one."""
        return decode(self._values[_FAILURE], Failed, self.peer) if _FAILURE in self._values else None

    def part(self, m: int) -> bytes:
        """Return a party's bytes; raises FrameMismatch if they are missing."""
        part = self._values.get(f"party-{m}")
        if not isinstance(part, bytes):
            raise FrameMismatch(f"{self.peer}: expected bytes for {party_names([m])}, received {type(part).__name__}")
        return part

    def tensors(self, name: str, m: int) -> dict[str, torch.Tensor]:
        """Return a party's tensors of a name; raises FrameMismatch if they are missing."""
        record = self._arrays.get(f"{name}-{m}")
        if record is None:
            raise FrameMismatch(f"{self.peer}: expected tensors {name!r} for {party_names([m])}, received none")
        return dict(record.to_torch_state_dict())
