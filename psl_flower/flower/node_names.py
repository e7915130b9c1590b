"""The names of nodes, and of what each holds or last held, in messages for people."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from flwr.serverapp import Grid

from psl_flower.errors import NodeLost, PeerLost, PositionMissing
from psl_flower.patches.assignment import positions_by_upper
from psl_flower.wire.messages import ADAPTATION


def node_names(
    grid: Grid, nodes: Collection[int], parties: Callable[[int], Iterable[str]] = lambda node: ()
) -> dict[int, str]:
    """Return each node's name: its registered one with Flower's id, or the id alone; then those of its `parties`.

    `flwr supernode list` knows ids alone.
    """
    registered = {info.node_id: info.name for info in grid.get_nodes() if info.name}
    names = {}
    for node in nodes:
        name = registered.get(node, "")
        words = [*([f"id {node}"] if name else []), *dict.fromkeys(parties(node))]
        names[node] = f"node {name or node}" + (f" ({', '.join(words)})" if words else "")
    return names


def with_parties(node: str, parties: Iterable[int], names: Sequence[str]) -> str:
    """Return the name of a node that hosts these parties, if parties have names."""
    return f"{node} ({', '.join(dict.fromkeys(names[m] for m in parties))})" if names else node


def last_holders(
    error: PeerLost | NodeLost | PositionMissing,
    held: Mapping[int, int],
    names: Mapping[int, str],
    assignment: Sequence[int],
    parties: Sequence[str] = (),
) -> str:
    """Name the nodes that last held the missing Uppers, as the end of a sentence; empty if they are unknown.

    `held` has the node, by its id, that last hosted each Upper or the Adaptation Net, `names` has those nodes' names,
    `parties` those of the parties if they have any.
    """
    if isinstance(error, PositionMissing):
        lost = [m for m in held if m in error.uppers or not error.uppers]
    else:
        lost = [m for m, node in held.items() if node in error.nodes or not error.nodes]
    words = {
        m: "the Adaptation Net" if m == ADAPTATION else f"party {parties[m]!r}" if parties
        else with_positions(m, assignment)
        for m in sorted(lost)
    }  # fmt: skip
    return "; ".join(f"{names[held[m]]} last held {word}" for m, word in words.items())


def with_positions(m: int, assignment: Sequence[int]) -> str:
    """Return an Upper with its positions, as text."""
    return f"Upper {m} (position {', '.join(map(str, positions_by_upper(assignment)[m]))})"
