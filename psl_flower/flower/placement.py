"""Finds the nodes of a run and decides which Uppers each of them hosts."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from flwr.serverapp import Grid

from psl_flower.errors import ConfigError, NodeError, PeerLost, PositionError, PositionMissing, StoreError
from psl_flower.flower.messages import ask, message
from psl_flower.flower.node_names import node_names, with_parties, with_positions
from psl_flower.text import counted
from psl_flower.wire.messages import ADAPTATION
from psl_flower.wire.node_messages import Claim, Inventory, NodeTask, check_alignment, check_positions
from psl_flower.wire.questions import AskClaims, AskInventory

log = logging.getLogger("psl_flower")

_POLL_S = 0.2
_NOBODY = "no node holds a position of this run's grid"
_NOBODY_NAMED = "no node is a party of this run; start SuperNodes with --node-config \"party='NAME'\""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The node that hosts each Upper, and the nodes' transport to the Lower."""

    hosts: dict[int, tuple[int, ...]]  #: Uppers by node id.
    names: dict[int, str]  #: Names of nodes in messages for people.
    claims: dict[int, Claim]  #: Content of each Upper's store.
    transport: str  #: Transport chosen: "stream" or "flower".
    simulated: bool  #: Whether these are simulated nodes.
    absent: tuple[int, ...] = ()  #: Uppers that no node hosts, or that the run leaves out.
    #: Id of the node that hosts the Adaptation Net, and no Upper; None if the Lower does.
    adaptation: int | None = None
    note: str = ""  #: One line for the user about the choice; may be empty.

    @property
    def uppers(self) -> tuple[int, ...]:
        """The Uppers that take part."""
        return tuple(sorted(m for hosted in self.hosts.values() for m in hosted))

    @property
    def parties(self) -> dict[int, tuple[int, ...]]:
        """Uppers, and the Adaptation Net as `ADAPTATION`, by node id."""
        return self.hosts | ({} if self.adaptation is None else {self.adaptation: (ADAPTATION,)})

    def absence(self, assignment: Sequence[int]) -> str:
        """Return the absent Uppers and their positions as text; empty if none are absent."""
        return "; ".join(with_positions(m, assignment) for m in self.absent)


def place(
    grid: Grid,
    assignment: Sequence[int],
    transport: str,
    task: NodeTask,
    timeout_s: float,
    *,
    without: Collection[int] = (),
    absent_allowed: bool = False,
    adaptation: bool = False,
    adaptation_node: str = "",
    refused_ends: bool = True,
) -> Placement:
    """Ask all nodes what they hold and place every Upper, or those that can be.

    Parameters
    ----------
    grid : Grid
        Flower's.
    assignment : sequence of int
        assignment[p] is the Upper of position p.
    transport : {"auto", "stream", "flower"}
        "auto" is stream where all nodes can run at once, which in a simulation depends on its slots.
    task : NodeTask
        The run's; its `parties` do not matter here.
    timeout_s : float
        Longest wait for nodes and for their answers, in seconds.
    without : collection of int
        Uppers to leave out, on any node.
    absent_allowed : bool
        Whether to place the others where nodes do not answer, or no node holds some positions.
    adaptation : bool
        Whether a node is to host the Adaptation Net; it is never done without.
    adaptation_node : str
        Id of the only node that may; empty for any with that role.
    refused_ends : bool
        Whether a refused node's failure is the error if no node holds some position; else it is PositionMissing.

    Raises
    ------
    PositionError, StoreError
        Naming the node, if the nodes do not hold every position once, or stores of another dataset.
    PositionMissing
        Naming the positions that no node holds, or the role that no node has, and the nodes that were refused.
    PeerLost
        If nodes are missing.
    NodeError
        If a node fails and is needed, unless `refused_ends` is false; one that is not needed is refused, and logged.
    ConfigError
        If the transport asked for cannot work here.
    """
    inventories, refused = _inventories(grid, timeout_s, absent_allowed, task)
    for node in [node for node, inventory in inventories.items() if not _is_current(inventory, task.epoch)]:
        refused[node] = _of_other_epoch(node_names(grid, [node])[node], inventories.pop(node), task.epoch)
    if any(inventory.claims or inventory.adaptation for inventory in inventories.values()):
        try:
            placement = _place_deployed(
                grid, inventories, assignment, transport, task, without, absent_allowed, adaptation, adaptation_node
            )
        except PositionMissing as error:
            if refused:
                raise _missing(str(error), refused, refused_ends, error.uppers) from None
            raise
        if placement.adaptation is not None:
            for node, inventory in inventories.items():
                if inventory.adaptation and node != placement.adaptation:
                    name = placement.names[node]
                    log.warning("%s has the role 'adaptation' but is not adaptation-node; it is left out", name)
        for failure in refused.values():
            log.warning("%s; it is left out%s", failure, "" if placement.absent else ", and is not needed")
        return placement
    deployed = all(inventory.partition < 0 for inventory in inventories.values())
    if refused:
        raise _missing(_NOBODY, refused, refused_ends or not deployed)
    if deployed:
        nodes = ", ".join(node_names(grid, inventories).values())
        if task.names:
            raise PositionMissing(f"{_NOBODY_NAMED} (asked: {nodes})")
        raise StoreError(f"no node holds a patch store (asked: {nodes}); start SuperNodes with --node-config store=...")
    if adaptation_node:
        raise ConfigError("adaptation-node: is the id of a real node; leave it out in a simulation")
    return _place_simulated(grid, inventories, assignment, transport, task, timeout_s, without, adaptation)


def holders_of(grid: Grid, known: Collection[int], timeout_s: float, epoch: int) -> set[int]:
    """Return the Uppers that nodes other than the known ones hold, of those nodes that answer; see `NodeTask.epoch`."""
    others = [node for node in grid.get_node_ids() if node not in known]
    found = _ask_inventories(grid, others, AskInventory(), timeout_s, {}, leave_out_lost=True)
    current = [inventory for inventory in found.values() if _is_current(inventory, epoch)]
    return {claim.upper for inventory in current for claim in inventory.claims}


def _missing(
    what: str, refused: Mapping[int, NodeError], refused_ends: bool, uppers: tuple[int, ...] = ()
) -> NodeError | PositionMissing:
    """Return the error for positions that no node holds, if some nodes were refused."""
    failures = "; ".join(str(refused[node]) for node in sorted(refused))
    if refused_ends:
        return NodeError(f"{failures}; {what}")
    return PositionMissing(f"{what} (refused: {failures})", uppers)


def _is_current(inventory: Inventory, epoch: int) -> bool:
    """Return True if all stores of a node are of this key epoch; see `NodeTask.epoch`."""
    return epoch == 0 or all(claim.epoch == epoch for claim in inventory.claims)


def _of_other_epoch(name: str, inventory: Inventory, epoch: int) -> NodeError:
    """Return the error for a node whose store is of another key epoch than the run's dataset."""
    claim = next(claim for claim in inventory.claims if claim.epoch != epoch)
    late = "the store to that node" if claim.epoch < epoch else "manifest and labels to the server"
    return NodeError(
        f"{name}: its store of Upper {claim.upper} has keys of epoch {claim.epoch}, the run's dataset those of "
        f"epoch {epoch}; carry {late}, as psl rotate has made them"
    )


def _inventories(
    grid: Grid, timeout_s: float, absent_allowed: bool, task: NodeTask
) -> tuple[dict[int, Inventory], dict[int, NodeError]]:
    """Return the nodes' inventories, and the errors of those that cannot take part: a wrong store, a wrong key, ..."""
    deadline = time.monotonic() + timeout_s
    found: dict[int, Inventory] = {}
    refused: dict[int, NodeError] = {}
    asked: set[int] = set()
    while True:
        new = [node for node in grid.get_node_ids() if node not in asked]
        asked.update(new)
        # Building a process that can answer takes a while: at least the time that a node has to connect.
        question = AskInventory(names=task.names, labels=task.labels)
        found |= _ask_inventories(grid, new, question, timeout_s, refused, leave_out_lost=absent_allowed)
        expected = max((inventory.num_partitions for inventory in found.values()), default=0)
        if (found or refused) and len(found) >= expected and not new:
            return found, refused
        if time.monotonic() > deadline:
            if found and absent_allowed:
                return found, refused
            raise PeerLost(f"no node has come up within {timeout_s:g} s; start SuperNodes, or raise node-timeout-s")
        time.sleep(_POLL_S if not new else 0)


def _ask_inventories(
    grid: Grid,
    nodes: Sequence[int],
    question: AskInventory,
    timeout_s: float,
    refused: dict[int, NodeError],
    *,
    leave_out_lost: bool,
) -> dict[int, Inventory]:
    names = node_names(grid, nodes)
    messages = [message(node, question) for node in nodes]
    answers = ask(grid, messages, timeout_s, names, leave_out_lost=leave_out_lost, failed=refused)
    return {node: answer.record(Inventory) for node, answer in answers.items()}


def _place_deployed(
    grid: Grid,
    inventories: dict[int, Inventory],
    assignment: Sequence[int],
    transport: str,
    task: NodeTask,
    without: Collection[int],
    absent_allowed: bool,
    adaptation: bool,
    adaptation_node: str,
) -> Placement:
    def parties(node: int) -> Iterable[str]:
        return [task.names[claim.upper] for claim in inventories[node].claims] if task.names else []

    names = node_names(grid, inventories, parties)
    claims = {
        claim.upper: claim
        for inventory in inventories.values()
        for claim in inventory.claims
        if claim.upper not in without
    }
    absent = set(assignment) - set(claims) if absent_allowed else set(without)
    held = {names[node]: inventory.claims for node, inventory in inventories.items()}
    check_positions(held, assignment, absent, task.names)
    check_alignment(held)
    hosts = {
        node: tuple(claim.upper for claim in inventory.claims if claim.upper in claims)
        for node, inventory in inventories.items()
    }
    if not claims:
        raise PositionMissing(_NOBODY_NAMED if task.names else _NOBODY)
    return Placement(
        hosts={node: hosted for node, hosted in hosts.items() if hosted},
        names=names,
        claims=claims,
        absent=tuple(sorted(absent)),
        transport="stream" if transport == "auto" else transport,
        simulated=False,
        adaptation=_adaptation_server(inventories, names, adaptation_node) if adaptation else None,
    )


def _adaptation_server(inventories: dict[int, Inventory], names: dict[int, str], only: str) -> int:
    """Return the one node that its operator has given the role; if `only` is an id, no other node will do."""
    claimants = [node for node, inventory in inventories.items() if inventory.adaptation]
    found = [node for node in claimants if only in ("", str(node))]
    if not found:
        which = f"adaptation-node {only} is not connected, or does not have" if only else "no node has"
        others = f" (not asked for: {', '.join(names[node] for node in claimants)})" if claimants else ""
        raise PositionMissing(
            f"{which} the role of the Adaptation Net's server{others}; start a SuperNode with "
            "--node-config \"role='adaptation'\", or train without adaptation-server",
            (ADAPTATION,),
        )
    if len(found) > 1:
        raise PositionError(
            f"{' and '.join(names[node] for node in found)} both have the role 'adaptation'; stop one, or set "
            "adaptation-node to the id of the one that may see labels"
        )
    return found[0]


def _place_simulated(
    grid: Grid,
    inventories: dict[int, Inventory],
    assignment: Sequence[int],
    transport: str,
    task: NodeTask,
    timeout_s: float,
    without: Collection[int],
    adaptation: bool,
) -> Placement:
    uppers = [m for m in sorted(set(assignment)) if m not in without]
    nodes = sorted(inventories, key=lambda node: inventories[node].partition)[: len(uppers) + adaptation]
    if adaptation and len(nodes) < 2:
        raise ConfigError(
            "adaptation-server: needs a simulated node besides the Uppers', and there is only 1; set num-supernodes"
        )
    slots = max(1, min(inventories[node].slots for node in nodes))
    transport, note = _simulated_transport(transport, len(nodes), slots, adaptation)
    if transport == "stream" and slots < len(nodes):
        hosting = f"{counted(slots - adaptation, 'node')} for all {counted(len(uppers), 'Upper')}"
        note = (
            f"{counted(slots, 'slot')} for {counted(len(nodes), 'simulated node')}: {hosting}; `psl train` asks for a "
            "slot for each node"
        )
        nodes = nodes[:slots]
    names = {node: f"node {inventories[node].partition}" for node in nodes}
    own = nodes.pop() if adaptation else None
    hosts = {node: tuple(uppers[i :: len(nodes)]) for i, node in enumerate(nodes)}
    names |= {node: with_parties(names[node], hosted, task.names) for node, hosted in hosts.items()}
    claims = _ask_claims(grid, hosts, names, task, timeout_s)
    held = {names[node]: [claims[m] for m in hosted] for node, hosted in hosts.items()}
    check_positions(held, assignment, without, task.names)
    check_alignment(held)
    return Placement(
        hosts=hosts,
        names=names,
        claims=claims,
        transport=transport,
        simulated=True,
        absent=tuple(sorted(without)),
        adaptation=own,
        note=note,
    )


def _simulated_transport(asked: str, num_nodes: int, slots: int, adaptation: bool) -> tuple[str, str]:
    """Return the transport of simulated nodes, of which `slots` run at once, and a note for the user, or "".

    Raises
    ------
    ConfigError
        If streams are asked for, and there is no slot left for the Uppers.
    """
    if asked == "stream" and slots <= adaptation:
        raise ConfigError(
            "transport: with stream the Uppers and the Adaptation Net need 2 slots, and Flower's simulation has 1; "
            "use transport=flower, or `psl train`, which asks for enough slots"
        )
    if asked != "auto":
        return asked, ""
    # Fewer nodes with streams are many times faster than all of them in turn, each step in messages of Flower's.
    if slots > adaptation:
        return "stream", ""
    return "flower", (
        f"{counted(num_nodes, 'simulated node')} share {counted(slots, 'slot')}, so they cannot run at once "
        "and every step goes through Flower messages, which is slow; `psl train` picks settings that are faster"
    )


def _ask_claims(
    grid: Grid, hosts: dict[int, tuple[int, ...]], names: dict[int, str], task: NodeTask, timeout_s: float
) -> dict[int, Claim]:
    """Let simulated nodes open the stores allotted to them and describe these."""
    question = [message(node, AskClaims(task=task.hosting(hosted))) for node, hosted in hosts.items()]
    claims: dict[int, Claim] = {}
    for node, answer in ask(grid, question, timeout_s, names).items():
        held = answer.record(Inventory).claims
        if tuple(sorted(claim.upper for claim in held)) != tuple(sorted(hosts[node])):
            raise ConfigError(f"{names[node]}: was allotted Uppers {hosts[node]}, holds {[c.upper for c in held]}")
        claims.update({claim.upper: claim for claim in held})
    return claims
