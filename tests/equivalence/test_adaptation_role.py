"""A run whose nodes are this app's ClientApps in threads: one of them has the role of the Adaptation Net's server.

Placement, tickets, transports and ClientApps are the real ones; of Flower only the Grid is replaced.
"""

from __future__ import annotations

import dataclasses
import uuid
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch
from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from clients.upper_app import app
from psl_flower.config.wire import WireSettings
from psl_flower.engine.build import Blueprint
from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.engine.round_driver import RoundDriver
from psl_flower.errors import ConfigError, NodeError, PositionError, PositionMissing
from psl_flower.flower.placement import Placement, _place_simulated, place
from psl_flower.patches.store import store_folder
from psl_flower.wire.messages import ADAPTATION
from psl_flower.wire.node_messages import Inventory, NodeTask
from strategies import PatchSplit
from tests.engines import Oracle, prefixed, settings
from tests.in_process import engines_one_by_one

STEPS = 4


class Hosts(Grid):
    """Nodes by id, each with a node configuration of its own; a message is a call of the ClientApp in a thread."""

    def __init__(self, configs):
        self._pool = ThreadPoolExecutor(len(configs))
        self._contexts = {
            node: Context(run_id=1, node_id=node, node_config=config, state=RecordDict(), run_config={})
            for node, config in configs.items()
        }
        self._replies: dict[str, Future] = {}
        self._failing = (0, "", 0, False)
        self.failed = 0

    def fail(self, node, kind, after, *, for_good=False):
        """Let a node be gone at its message of this kind that comes after so many others."""
        self._failing = (node, kind, after, for_good)

    @property
    def run(self):
        raise AssertionError("no strategy of ours calls this")

    def set_run(self, run):
        raise AssertionError("no strategy of ours calls this")

    def create_message(self, *arguments, **options):
        raise AssertionError("no strategy of ours calls this")

    def get_node_ids(self):
        return list(self._contexts)

    def push_messages(self, messages):
        pushed = []
        for message in messages:
            pushed.append(uuid.uuid4().hex)
            message.metadata.__dict__["_message_id"] = pushed[-1]
            answer = self._gone if self._is_gone(message) else app
            self._replies[pushed[-1]] = self._pool.submit(answer, message, self._contexts[message.metadata.dst_node_id])
        return pushed

    def _is_gone(self, message):
        node, kind, after, _ = self._failing
        if (message.metadata.dst_node_id, message.metadata.message_type) != (node, kind):
            return False
        self._failing = (node, kind, after - 1, self._failing[3])
        return after == 0

    def _gone(self, message, context):
        self.failed += 1
        if self._failing[3]:
            del self._contexts[message.metadata.dst_node_id]
        return Message(Error(ErrorCode.NODE_UNAVAILABLE, "gone"), reply_to=message)

    def pull_messages(self, message_ids):
        return [self._replies.pop(name).result() for name in list(message_ids) if self._replies[name].done()]

    def send_and_receive(self, messages, *, timeout=None):
        return [self._replies.pop(name).result(60) for name in self.push_messages(messages)]


@pytest.fixture(autouse=True)
def of_a_run(monkeypatch):
    """Let Flower's messages be those of a run."""
    monkeypatch.setattr(TaskIdentity, "_run_id", 1)
    monkeypatch.setattr(TaskIdentity, "_task_id", 1)
    monkeypatch.setattr(TaskIdentity, "_node_id", 1)


@pytest.fixture(autouse=True)
def one_after_the_other(monkeypatch):
    engines_one_by_one(monkeypatch)


@pytest.fixture(scope="module")
def config():
    return settings(uppers=2, cut="stem", rounds=2, steps_per_round=2, adaptation_server=True)


@pytest.fixture
def hosts(config, stores_for, tmp_path):
    """Return a function that makes nodes 10, 11 and so on, of their configurations: a number is that store's."""
    folder = stores_for(config).folder

    def made(*nodes):
        configs = {}
        for number, node in enumerate(nodes, 10):
            told = {"store": str(store_folder(folder, node))} if isinstance(node, int) else node
            configs[number] = told | {"state": str(tmp_path / f"node-{number}")}
        return Hosts(configs)

    return made


def task_of(config, stores, folder=""):
    return NodeTask(
        run="run",
        parties=(),
        settings=Blueprint(config, stores.description).encode(),
        activations="float32",
        gradients="float32",
        timeout_s=60.0,
        threads=1,
        stores=folder,
    )


def strategy_of(config, stores, folder, **options):
    """Return the strategy of a run of 4 steps in 2 rounds, as the ServerApp makes it."""
    blueprint = Blueprint(config, stores.description)
    lower = blueprint.lower_engine(torch.device("cpu"))
    driver = RoundDriver(
        lower,
        blueprint.task(stores.labels),
        blueprint.smashed_shapes(),
        Checkpoints(folder / "lower"),
    )
    placed: list[Placement] = []
    strategy = PatchSplit(
        driver,
        task_of(config, stores),
        WireSettings(**options),
        on_placed=placed.append,
    )
    return strategy, lower, placed


def trained(strategy, lower, grid):
    """Run to the end; return the weights of Lower and Uppers by the names of the network in one process."""
    try:
        strategy.start(grid, initial_arrays=ArrayRecord(lower.lower.state_dict()), num_rounds=2)
        uppers = strategy.collect(grid)
    finally:
        strategy.close()
    found = prefixed("lower", lower.lower.state_dict())
    for m, weights in uppers.items():
        found |= prefixed(f"uppers.{m}", weights)
    return found


def differing(found, expected):
    return [name for name in found if not torch.equal(found[name], expected[name])]


ROLE = {"role": "adaptation"}


@pytest.fixture(scope="module")
def oracle(config, stores_for):
    return Oracle(config, stores_for(config), at=(STEPS,)).after[STEPS]


@pytest.mark.parametrize("transport", ["stream", "flower"])
def test_a_deployed_run_equals_one_process(transport, oracle, config, stores_for, hosts, tmp_path):
    strategy, lower, placed = strategy_of(config, stores_for(config), tmp_path, transport=transport)
    found = trained(strategy, lower, hosts(1, ROLE, 0))
    assert [(p.hosts, p.adaptation, p.transport) for p in placed] == [({10: (1,), 12: (0,)}, 11, transport)]
    assert lower.saved == {0: STEPS, 1: STEPS, ADAPTATION: STEPS}
    # The node's own state, where its operator put it; what collection returns has nothing of it.
    kept = Checkpoints(tmp_path / "node-11" / "run" / "adaptation").load(STEPS)
    found |= prefixed("adaptation", kept["net"])
    assert {name.split(".")[0] for name in found} == {"lower", "uppers", "adaptation"}
    assert differing(found, oracle) == []


@pytest.mark.parametrize("transport", ["stream", "flower"])
def test_a_lost_node_is_waited_for(transport, oracle, config, stores_for, hosts, tmp_path):
    """It is gone when the second round needs it, and there again a moment later."""
    options = {"transport": transport, "node_timeout_s": 5.0}
    strategy, lower, placed = strategy_of(config, stores_for(config), tmp_path, **options)
    grid = hosts(0, ROLE, 1)
    grid.fail(11, "train.stream" if transport == "stream" else "query.step", after=1 if transport == "stream" else 3)
    assert differing(trained(strategy, lower, grid), oracle) == []
    assert len(placed) == 2
    assert grid.failed == 1


def test_a_node_that_does_not_come_back_ends_the_run(config, stores_for, hosts, tmp_path):
    """Its loss is never left out, not even where Uppers may be."""
    options = {"transport": "flower", "node_timeout_s": 3.0, "on_missing_node": "continue"}
    strategy, lower, _ = strategy_of(config, stores_for(config), tmp_path, **options)
    grid = hosts(0, ROLE, 1)
    grid.fail(11, "query.step", after=3, for_good=True)
    with pytest.raises(PositionMissing, match="no node has the role of the Adaptation Net's server"):
        trained(strategy, lower, grid)
    assert lower.step == 2


WRONG = {
    "nobody has the role": ([0, 1], PositionMissing, "no node has the role of the Adaptation Net's server; start"),
    "two have it": ([0, ROLE, 1, ROLE], PositionError, "node 11 and node 13 both have the role 'adaptation'"),
    "only that node has come": ([ROLE], PositionMissing, r"no node holds position 0, 1, 2, 3"),
    "it holds a store": ([0, 1, ROLE | {"store": "/x"}], NodeError, "node 12: node-config: a node with role='adap"),
    "no such role": ([0, 1, {"role": "lower"}], NodeError, "node 12: node-config role: expected 'adaptation', got"),
}


@pytest.mark.parametrize(("nodes", "kind", "words"), WRONG.values(), ids=WRONG.keys())
def test_wrong_roles_are_named(nodes, kind, words, config, stores_for, hosts):
    assert WRONG
    stores = stores_for(config)
    with pytest.raises(kind, match=words):
        place(hosts(*nodes), stores.description.assignment, "auto", task_of(config, stores), 20, adaptation=True)


def test_only_the_named_node_is_given_the_role(config, stores_for, hosts, caplog):
    """A registered stranger that claims it gets no labels, whether or not the named node is there."""
    stores = stores_for(config)

    def placed(adaptation_node):
        return place(
            hosts(0, ROLE, 1, ROLE), stores.description.assignment, "auto", task_of(config, stores), 20,
            adaptation=True, adaptation_node=adaptation_node,
        )  # fmt: skip

    assert placed("13").adaptation == 13
    assert "node 11 has the role 'adaptation' but is not adaptation-node; it is left out" in caplog.text
    with pytest.raises(PositionMissing, match=r"node 12 is not connected.* \(not asked for: node 11, node 13\)"):
        placed("12")


@pytest.mark.parametrize("named", ["13", "11"])
def test_a_run_gives_the_role_to_the_node_of_its_settings(named, oracle, config, stores_for, hosts, tmp_path):
    """Through the strategy, with a second claimant."""
    options = {"transport": "flower", "node_timeout_s": 20.0, "adaptation_node": named}
    strategy, lower, placed = strategy_of(config, stores_for(config), tmp_path, **options)
    assert differing(trained(strategy, lower, hosts(0, ROLE, 1, ROLE)), oracle) == []
    assert {placement.adaptation for placement in placed} == {int(named)}


def test_a_run_without_it_leaves_that_node_alone(config, stores_for, hosts):
    stores = stores_for(config)
    placement = place(hosts(0, ROLE, 1), stores.description.assignment, "auto", task_of(config, stores), 20)
    assert placement.parties == {10: (0,), 12: (1,)}


def test_a_node_takes_no_role_that_its_operator_did_not_give_it(config, stores_for, hosts, tmp_path):
    """Whatever the Lower says: an Upper node gets no labels, and the Adaptation Net's server opens no store."""
    strategy, lower, _ = strategy_of(config, stores_for(config), tmp_path, transport="stream", node_timeout_s=30)
    grid = hosts(0, 1, ROLE)
    link = strategy._link
    good = link.place(grid)
    for wrong, words in (
        (dataclasses.replace(good, adaptation=11, hosts={10: (0,)}), "this node is not the Adaptation Net's server"),
        (dataclasses.replace(good, hosts={10: (0,), 12: (1,)}, adaptation=None), "this node holds no store of Upper 1"),
    ):
        link._placement = wrong
        link._open(wrong, grid, lower.saved)
        messages = [m for m in link.stream_messages(0, lower.saved) if m.metadata.dst_node_id != 10]
        told = link.reported_failure(grid.send_and_receive(messages))
        assert words in str(told)
        link.close()


SIMULATED = {
    # Nodes, slots and transport; nodes that host Uppers, and the transport chosen.
    "a slot for each": (3, 3, "auto", 2, "stream"),
    "more nodes than needed": (9, 9, "auto", 2, "stream"),
    "too few slots": (3, 2, "auto", 1, "stream"),
    "too few slots for a stream": (3, 2, "stream", 1, "stream"),
    "Flower's default": (2, 1, "auto", 1, "flower"),
}


def simulated(config, stores_for, num_nodes, slots, transport):
    stores = stores_for(config)
    grid = Hosts({n + 1: {"partition-id": n, "num-partitions": num_nodes} for n in range(num_nodes)})
    inventories = {n + 1: Inventory(partition=n, num_partitions=num_nodes, slots=slots) for n in range(num_nodes)}
    task = task_of(config, stores, str(stores.folder))
    return _place_simulated(grid, inventories, stores.description.assignment, transport, task, 20, (), True)


@pytest.mark.parametrize(("num_nodes", "slots", "asked", "hosting", "chosen"), SIMULATED.values(), ids=SIMULATED.keys())
def test_a_simulated_node_of_its_own(num_nodes, slots, asked, hosting, chosen, config, stores_for):
    assert SIMULATED
    placement = simulated(config, stores_for, num_nodes, slots, asked)
    assert (len(placement.hosts), placement.transport) == (hosting, chosen)
    assert sorted(m for hosted in placement.hosts.values() for m in hosted) == [0, 1]
    assert placement.adaptation not in placement.hosts
    assert placement.parties[placement.adaptation] == (ADAPTATION,)
    assert set(placement.names) == set(placement.parties)


@pytest.mark.parametrize(
    ("num_nodes", "slots", "transport", "words"),
    [(1, 1, "auto", "adaptation-server: needs a simulated node"), (3, 1, "stream", "transport: .* need 2 slots")],
)
def test_a_simulation_without_room_is_refused(num_nodes, slots, transport, words, config, stores_for):
    with pytest.raises(ConfigError, match=words):
        simulated(config, stores_for, num_nodes, slots, transport)
