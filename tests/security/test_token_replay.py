"""Tokens of a real run's streams, used again by somebody who has read them: after use, in later rounds, after the run."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from flwr.app import Message

from psl_flower.engine.lower import LowerEngine
from psl_flower.engine.upper import claim_of
from psl_flower.errors import AuthenticationError, NodeError, PslError
from psl_flower.runs.folder import RunFolder
from psl_flower.stores.prepare import prepare_stores
from psl_flower.stores.store_set import StoreSet
from psl_flower.wire.messages import Hello
from psl_flower.wire.questions import OpenStreams, Received
from psl_flower.wire.stream import connect
from tests.authority import Authority
from tests.e2e.conftest import free_port
from tests.fault.sealed_run import config_in, exact, train
from tests.in_process import InProcessGrid, engines_one_by_one

TRIES = 20


class Thief:
    """Reads all Flower messages of a run, and opens streams with the tokens in them."""

    def __init__(self, stores: StoreSet) -> None:
        self._claims = {m: claim_of(stores.open(m)) for m in range(2)}
        self.read: list[OpenStreams] = []
        self.outcomes: Counter[str] = Counter()

    def see(self, message: Message) -> None:
        if message.metadata.message_type == OpenStreams.kind:
            self.read.append(Received(message.content, "a node").record(OpenStreams))

    def use(self, opening: OpenStreams, **changes: object) -> None:
        """Say what the node says; count what comes of it."""
        ticket = opening.ticket
        for upper, token in ticket.tokens.items():
            claim = self._claims[upper]
            hello = Hello(
                opening.task.run, ticket.node, upper, claim.positions, claim.num_samples, claim.dataset, token
            )
            try:
                connect(
                    ticket.host, ticket.port, msgspec.structs.replace(hello, **changes), cafile_pem=ticket.cert_pem,
                    timeout_s=2,
                ).close()  # fmt: skip
                self.outcomes["let in"] += 1
            except PslError as error:
                self.outcomes[type(error).__name__] += 1


@pytest.fixture
def stores(tmp_path: Path) -> StoreSet:
    return prepare_stores(config_in(tmp_path))


@pytest.fixture
def nodes(stores: StoreSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InProcessGrid:
    engines_one_by_one(monkeypatch)
    grid = InProcessGrid(stores.folder, tmp_path / "state", 2)
    for m, config in enumerate(grid.config.values()):
        config["key"] = str(tmp_path / "keys" / f"node-{m:03d}.key")
    return grid


@pytest.fixture(params=["plaintext", "tls"])
def wire(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, object]:
    settings: dict[str, object] = {"transport": "stream", "exchange_port": free_port()}
    if request.param == "tls":
        cert, key = Authority(tmp_path).issue("lower")
        settings |= {"exchange_cert": str(cert), "exchange_key": str(key)}
    return settings


def attacking(monkeypatch: pytest.MonkeyPatch, attack) -> list[BaseException]:
    """Let an attack run in each of the Lower's steps, when all nodes have used their tokens; return what went wrong."""
    train_step, errors = LowerEngine.train_step, []

    def attacked(self, *args, **kwargs):
        thread = threading.Thread(target=attack)
        thread.start()
        result = train_step(self, *args, **kwargs)
        thread.join(timeout=60)
        if thread.is_alive():
            errors.append(TimeoutError("an attempt hangs"))
        return result

    monkeypatch.setattr(LowerEngine, "train_step", attacked)
    return errors


def test_tokens_that_were_used_let_nobody_in(
    nodes: InProcessGrid, stores: StoreSet, tmp_path: Path, wire: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From other connections, while the round runs and in the next one; the nodes are not disturbed."""
    thief = Thief(stores)
    nodes.on_message = thief.see

    def attack() -> None:
        for opening in list(thief.read):
            thief.use(opening)

    errors = attacking(monkeypatch, attack)
    run = train(nodes, tmp_path, **wire)
    assert not errors
    assert len(thief.read) == 4  # two nodes in two rounds
    # In three steps of each round, by the tokens of that round and of those before; nobody listens any more at the end.
    assert thief.outcomes == {"AuthenticationError": 3 * 2 + 3 * 4}
    attack()
    assert thief.outcomes.keys() == {"AuthenticationError", "PeerLost"}
    assert exact(run, stores)


def test_tokens_of_a_run_that_is_over_let_nobody_into_the_next(
    nodes: InProcessGrid, stores: StoreSet, tmp_path: Path, wire: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    thief = Thief(stores)
    nodes.on_message = thief.see
    train(nodes, tmp_path, run_name="first", **wire)
    nodes.on_message = lambda message: None
    old = list(thief.read)

    def attack() -> None:
        name = RunFolder(tmp_path / "runs" / "run").identity
        for opening in old:
            thief.use(opening)
            thief.use(opening, run=name)  # as if it were of the run that is there

    errors = attacking(monkeypatch, attack)
    run = train(nodes, tmp_path, **wire)
    assert not errors
    assert thief.outcomes == {"AuthenticationError": 6 * 2 * len(old)}
    assert exact(run, stores)


def test_of_many_who_use_a_token_at_once_one_is_let_in(stores: StoreSet) -> None:
    from psl_flower.wire.endpoint import ExchangeEndpoint
    from psl_flower.wire.tls import ephemeral_identity

    with ExchangeEndpoint("127.0.0.1", run="run", tls=ephemeral_identity(["127.0.0.1"])) as endpoint:
        token = endpoint.issue_ticket(0, 7, (0,), 50, "data")
        hello, outcomes = Hello("run", 7, 0, (0,), 50, "data", token), []
        together = threading.Barrier(TRIES)

        def enter() -> None:
            together.wait()
            try:
                outcomes.append(
                    connect(endpoint.host, endpoint.port, hello, cafile_pem=endpoint.cert_pem, timeout_s=20)
                )
            except AuthenticationError:
                outcomes.append(None)

        threads = [threading.Thread(target=enter) for _ in range(TRIES)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        streams = [stream for stream in outcomes if stream is not None]
        assert len(outcomes) == TRIES and len(streams) == 1
        endpoint.wait_for([0], timeout_s=5)
        streams[0].close()


def test_a_thief_who_is_first_gets_the_place_and_the_run_ends_with_an_error(
    nodes: InProcessGrid, stores: StoreSet, tmp_path: Path, wire: dict[str, object]
) -> None:
    """So the tokens of these tests are good ones; a stolen one does not pass in silence."""
    thief = Thief(stores)

    def steal(message: Message) -> None:
        before = len(thief.read)
        thief.see(message)
        if len(thief.read) > before and message.metadata.dst_node_id == 100:
            deadline = time.monotonic() + 10
            while not thief.outcomes["let in"] and time.monotonic() < deadline:
                thief.use(thief.read[-1])

    nodes.on_message = steal
    with pytest.raises(NodeError, match=r"node 100.* refused: this run has no valid ticket .*\(AuthenticationError\)"):
        train(nodes, tmp_path, node_timeout_s=5.0, **wire)
    assert thief.outcomes["let in"] == 1
