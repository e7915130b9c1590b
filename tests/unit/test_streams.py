"""The stream transport joined to the engines, over real sockets on loopback, with two Uppers in threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from psl_flower.engine.local import LocalExchange
from psl_flower.engine.streams import StreamExchange, serve
from psl_flower.errors import NodeError, PeerLost, ProtocolError, StoreError
from psl_flower.wire.endpoint import ExchangeEndpoint
from psl_flower.wire.frames import frame_nbytes
from psl_flower.wire.messages import Finish, Hello
from psl_flower.wire.stream import connect
from tests.engines import Federation, differences, settings

TIMEOUT_S = 60
RUN = "run-1"


@pytest.fixture(scope="module")
def config():
    return settings(uppers=2, cut="stem", steps_per_round=4)


@pytest.fixture
def endpoint():
    with ExchangeEndpoint("127.0.0.1", run=RUN) as made:
        yield made


@pytest.fixture
def pool():
    with ThreadPoolExecutor(4) as made:
        yield made


def hello(endpoint, engine):
    meta = engine.store.meta
    node = 100 + meta.upper
    token = endpoint.issue_ticket(meta.upper, node, meta.positions, len(engine.store), meta.dataset)
    return Hello(RUN, node, meta.upper, meta.positions, len(engine.store), meta.dataset, token)


def node(endpoint, hellos, engines, wire):
    """Do what an Upper node's process does in a round: connect every Upper it hosts, and serve."""
    uppers = {}
    try:
        for m, engine in engines.items():
            stream = connect(endpoint.host, endpoint.port, hellos[m], cafile_pem=None, timeout_s=TIMEOUT_S)
            uppers[m] = (engine, stream)
        serve(uppers, wire, TIMEOUT_S)
    finally:
        for _, stream in uppers.values():
            stream.close()


def start(pool, endpoint, parts, groups):
    hellos = {m: hello(endpoint, engine) for m, engine in parts.uppers.items()}
    return [pool.submit(node, endpoint, hellos, {m: parts.uppers[m] for m in group}, parts.wire) for group in groups]


HOSTS = {"a node each": [(0,), (1,)], "both on one node": [(0, 1)]}


@pytest.mark.parametrize("groups", HOSTS.values(), ids=HOSTS.keys())
def test_two_rounds_over_streams_equal_the_local_exchange(groups, config, stores_for, endpoint, pool, tmp_path):
    assert HOSTS
    local = Federation(config, stores_for(config), tmp_path / "local", small=True)
    by_hand = LocalExchange(local.uppers, local.wire)
    for stop_step in (2, 4):
        local.run(by_hand, stop_step)

    parts = Federation(config, stores_for(config), tmp_path / "streams", small=True)
    exchange = StreamExchange(endpoint, parts.wire, TIMEOUT_S)
    for stop_step in (2, 4):
        # The streams of the round before must not pass for those of this one.
        with pytest.raises(PeerLost, match="Upper 0, 1 did not connect"):
            endpoint.wait_for(parts.uppers, timeout_s=0.01)
        nodes = start(pool, endpoint, parts, groups)
        endpoint.wait_for(parts.uppers, TIMEOUT_S)
        parts.run(exchange, stop_step)
        exchange.finish(parts.uppers)
        for future in nodes:
            assert future.result(TIMEOUT_S) is None
    assert differences(local.snapshot(), parts.snapshot()) == []
    assert parts.losses == local.losses
    # A round over streams ends with one frame more.
    farewells = 2 * frame_nbytes(Finish())
    assert exchange.bytes_down() == {m: count + farewells for m, count in by_hand.bytes_down().items()}
    assert exchange.bytes_up() == by_hand.bytes_up()
    assert min(exchange.bytes_up().values()) > 4 * 4 * 2 * 8 * 8 * 64 * 4


class Failing:
    """A store that breaks at its third batch."""

    def __init__(self, store):
        self._store, self._reads = store, 0
        self.meta = store.meta

    def __len__(self):
        return len(self._store)

    def read(self, samples):
        self._reads += 1
        if self._reads == 3:
            raise StoreError("/stores/upper-001: sample 5 is damaged")
        return self._store.read(samples)


def test_an_upper_that_raises_is_named_at_the_lower(config, stores_for, endpoint, pool, tmp_path):
    parts = Federation(config, stores_for(config), tmp_path, small=True, checkpoint_every=1)
    parts.uppers[1].store = Failing(parts.uppers[1].store)
    nodes = start(pool, endpoint, parts, [(0,), (1,)])
    endpoint.wait_for(parts.uppers, TIMEOUT_S)
    with pytest.raises(NodeError, match=r"Upper 1 \(node 101\) failed: StoreError: /stores/upper-001: sample 5"):
        parts.run(StreamExchange(endpoint, parts.wire, TIMEOUT_S))
    # What fails there is raised there, too; the honest node learns why it is over.
    with pytest.raises(StoreError, match="sample 5 is damaged"):
        nodes[1].result(TIMEOUT_S)
    endpoint.abort("Upper 1 failed")
    with pytest.raises(ProtocolError, match=r"ended the exchange: .*Upper 1 failed"):
        nodes[0].result(TIMEOUT_S)
    assert parts.checkpoints.steps() == [1]
