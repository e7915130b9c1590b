"""Records from the Lower to a node, and a node's description of itself (see `psl_flower.wire.questions`).

Records travel as MessagePack bytes, decoded strictly: missing, unknown or mistyped fields are refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, TypeVar

import msgspec

from psl_flower.errors import AlignmentError, FrameMismatch, PositionError, PositionMissing
from psl_flower.text import printable
from psl_flower.wire.messages import ADAPTATION
from psl_flower.wire.plan import check_finite

# They become folders on the node, within its own: neither may lead out of that.
RunIdentity = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")]
_NAME = "[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
# A party, or a group's holder of one: PARTY@GROUP.
PARTY_NAME = rf"{_NAME}(@{_NAME})?"
PartyName = Annotated[str, msgspec.Meta(pattern=rf"^{PARTY_NAME}\Z")]
Holder = Annotated[str, msgspec.Meta(pattern=rf"^({PARTY_NAME})?\Z")]
# More are of no use to any model here, and OpenMP would try to start them.
Threads = Annotated[int, msgspec.Meta(ge=0, le=4096)]
Part = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{1,64}/[a-z0-9-]{1,64})?\Z")]

Record = TypeVar("Record", bound=msgspec.Struct)


class Claim(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one patch store on a node holds."""

    upper: int  #: The Upper whose patches these are.
    positions: tuple[int, ...]  #: Grid positions held.
    num_samples: int
    dataset: str  #: Fingerprint of the set of stores.
    epoch: int = 0  #: Generation of the store's keys; 0 if it is not sealed.
    missing: bytes = b""  #: Samples that it has nothing of (`psl_flower.wire.plan.pack_mask`); empty if it has all.
    #: Numbers of its samples by row, ascending, if it names them (`psl_flower.wire.plan.pack_samples`).
    samples: bytes = b""
    #: Private ids of its samples, 16 bytes a row, if it names them so (`psl_flower.split.private_ids`).
    ids: bytes = b""
    shares: int = 0  #: Count of numbers shared if the holders of a party are averaged; 0 if it shares none.

    @property
    def names_samples(self) -> bool:
        """Whether it names the sample of each row."""
        return bool(self.samples or self.ids)


# What goes into the ticket of the Adaptation Net's server, which holds no store.
ADAPTATION_CLAIM = Claim(upper=ADAPTATION, positions=(), num_samples=0, dataset="")


class Inventory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A node's answer to the first question."""

    partition: int = -1  #: Index of a simulated node; -1 on a real one.
    num_partitions: int = 0  #: Simulated nodes; 0 on a real one.
    slots: int = 0  #: How many simulated nodes can run at once here; 0 on a real one, which never waits for another.
    #: Stores that the node's own configuration names; none in a simulation, where the Lower allots them.
    claims: tuple[Claim, ...] = ()
    adaptation: bool = False  #: Whether the node's own configuration gives it the role of the Adaptation Net's server.


class NodeTask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A node's task in a run, the same for the whole run."""

    run: RunIdentity  #: Name of the run.
    parties: tuple[int, ...]  #: Uppers that this node hosts, or `ADAPTATION` alone.
    #: What the node builds its models from; passed unread from the maker of the strategy to that of the ClientApp.
    settings: bytes
    activations: str
    gradients: str
    timeout_s: float  #: Longest wait for the Lower's next message, in seconds.
    #: Folders of the stores and of the nodes' checkpoints, in a simulation. A real node has its own configuration.
    stores: str = ""
    state: str = ""
    #: Folder of the nodes' private keys and public key of the stores' owner, in a simulation with sealed stores.
    keys: str = ""
    owner: str = ""
    threads: Threads = 0  #: Threads to compute with; 0 leaves it to the node.
    epoch: int = 0  #: Key generation that the nodes' stores must be sealed with; 0 takes any.
    names: tuple[PartyName, ...] = ()  #: The parties' names, by number; none in a run over image patches.
    labels: Holder = ""  #: The party that has the labels, if the server has none; it then has the last number.
    #: Part of a lightening of the run that this is, as LIGHTENING/PART; its states are in a folder of this name.
    part: Part = ""
    #: The step of the checkpoint that each party keeps in addition to the newest ones, if any: the best so far.
    kept: dict[int, int] = {}

    def __post_init__(self) -> None:
        """Refuse a wait that is not finite: a node would never give the Lower up."""
        check_finite(timeout_s=self.timeout_s)

    def hosting(self, parties: Iterable[int]) -> NodeTask:
        """Return the task of a node that hosts these parties."""
        return msgspec.structs.replace(self, parties=tuple(parties))


class StreamTicket(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where and by what right a node opens its streams for one round."""

    #: The Lower's exchange endpoint.
    host: str
    port: int
    #: Its certificate, trusted alone by nodes that were given no authority (`tls.NodeTls`); None for plaintext.
    cert_pem: str | None
    node: int
    tokens: dict[int, bytes]  #: One-time token for each party.
    step: int  #: Steps that the Lower has applied when the round starts.
    #: Steps in the state that each party starts from; fewer than `step` where it was absent since.
    saved: dict[int, int]

    def __repr__(self) -> str:
        return f"StreamTicket({self.host}:{self.port}, node={self.node}, tokens=<hidden>)"


class Measured(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How fast a node runs the Uppers that it hosts; as `psl_flower.lightening.judging.Speed`."""

    images_per_s: float
    latency_ms: float
    images_per_s_spread: float = 0.0
    latency_spread: float = 0.0


def encode(record: msgspec.Struct) -> bytes:
    """Return a record's bytes."""
    return msgspec.msgpack.encode(record)


def decode(data: object, kind: type[Record], peer: str) -> Record:
    """Return the record that `data` holds; raises FrameMismatch if it is not such a record."""
    if not isinstance(data, bytes):
        raise FrameMismatch(f"{peer}: expected a {kind.__name__} as bytes, received {type(data).__name__}")
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FrameMismatch(f"{peer}: malformed {kind.__name__}: {printable(error, 200)}") from None


def check_alignment(claims: Mapping[str, Sequence[Claim]]) -> None:
    """Check that all claims are of the same samples; those that name theirs may be of others.

    `claims` are what each node, by its name, holds.

    Raises
    ------
    AlignmentError
        Naming two nodes, if their numbers of samples or the fingerprints of their datasets differ.
    """
    all_claims = [(node, claim) for node, held in claims.items() for claim in held if not claim.names_samples]
    for node, claim in all_claims[1:]:
        first_node, first = all_claims[0]
        if claim.num_samples != first.num_samples:
            raise AlignmentError(
                f"{first_node} holds {first.num_samples} samples, {node} {claim.num_samples}; all must hold the same"
            )
        if claim.dataset != first.dataset:
            raise AlignmentError(f"{first_node} and {node} hold samples of different datasets, or with different ids")


def check_positions(
    claims: Mapping[str, Sequence[Claim]],
    assignment: Sequence[int],
    absent: Collection[int] = (),
    names: Sequence[str] = (),
) -> None:
    """Check that every grid position is held once, by the Upper that it is assigned to, and each Upper by one node.

    Parameters
    ----------
    claims : mapping
        What each node, by its name, holds.
    assignment : sequence of int
        assignment[p] is the Upper of position p.
    absent : collection of int
        Uppers that nobody need host.
    names : sequence of str
        The parties' names, if they hold other things than grid positions: party m then holds position m.

    Raises
    ------
    PositionError
        Naming the node, if a position is unknown, held twice, or of another Upper, or an Upper is claimed without one.
    AlignmentError
        If a store of patches names its samples, as only parties with names may.
    PositionMissing
        Naming the positions that no node holds, if none may be missing.
    """
    holder: dict[int, str] = {}
    host: dict[int, str] = {}
    for node, held in claims.items():
        for claim in held:
            if not claim.positions:
                raise PositionError(f"{node} claims Upper {claim.upper}, and no position of it")
            if claim.names_samples and not names:
                raise AlignmentError(f"{node}: its store of Upper {claim.upper} names its samples, which no store does")
            for p in claim.positions:
                if not 0 <= p < len(assignment):
                    raise PositionError(f"{node} holds position {p}, but the grid has {len(assignment)} positions")
                if p in holder and names:
                    raise PositionError(f"{node} and {holder[p]} both are party {names[p]!r}; stop one of them")
                if p in holder:
                    raise PositionError(f"{node} holds position {p}, which {holder[p]} holds already")
                if assignment[p] != claim.upper:
                    raise PositionError(
                        f"{node} holds position {p} for Upper {claim.upper}; it is assigned to Upper {assignment[p]}"
                    )
                holder[p] = node
            # Everything recorded by Upper, such as its streams, belongs to one node.
            if (first := host.get(claim.upper)) is not None:
                raise PositionError(f"{node} holds a store of Upper {claim.upper}, and so does {first}")
            host[claim.upper] = node
    missing = [p for p, upper in enumerate(assignment) if p not in holder and upper not in absent]
    if missing:
        uppers = tuple(sorted({assignment[p] for p in missing}))
        if names:
            what = f"no node is party {', '.join(repr(names[p]) for p in missing)}"
        else:
            what = f"no node holds position {_listed(missing)} of Upper {_listed(uppers)}"
        raise PositionMissing(f"{what} (asked: {', '.join(claims) or 'no node'})", uppers)


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))
