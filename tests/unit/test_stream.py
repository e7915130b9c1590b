"""Streams: several Uppers and the Lower's endpoint over loopback, plaintext and TLS."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch

from psl_flower.errors import (
    AuthenticationError,
    ConfigError,
    FrameMismatch,
    NodeError,
    PeerLost,
    ProtocolError,
    TrainingError,
)
from psl_flower.wire.codecs import wire_roundtrip
from psl_flower.wire.endpoint import ExchangeEndpoint
from psl_flower.wire.frames import Expectation, Frame
from psl_flower.wire.messages import Failed, Finish, Hello, Saved, Smashed, Step
from psl_flower.wire.plan import Plan, StepId, pack_samples
from psl_flower.wire.stream import UpperStream, connect
from psl_flower.wire.tls import TlsIdentity, ephemeral_identity, is_loopback

SHAPE = (2, 1, 4, 4, 3)
RUN = "run-1"


@pytest.fixture(params=["plaintext", "tls"])
def endpoint(request: pytest.FixtureRequest) -> Iterator[ExchangeEndpoint]:
    identity = ephemeral_identity(["127.0.0.1"]) if request.param == "tls" else None
    with ExchangeEndpoint("127.0.0.1", run=RUN, tls=identity, handshake_timeout_s=5) as made:
        yield made


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as made:
        yield made


def hello_for(endpoint: ExchangeEndpoint, upper: int) -> Hello:
    node = 100 + upper
    return Hello(RUN, node, upper, (upper,), 50, "data", endpoint.issue_ticket(upper, node, (upper,), 50, "data"))


def join(endpoint: ExchangeEndpoint, upper: int) -> UpperStream:
    return connect(endpoint.host, endpoint.port, hello_for(endpoint, upper), cafile_pem=endpoint.cert_pem, timeout_s=5)


def serve(stream: UpperStream) -> int:
    """Answer each plan with ten times the gradient (ones at first); return the number of steps."""
    last: StepId | None = None
    steps = 0
    with stream:
        while True:
            expect = Expectation((Step, Finish), "float32", SHAPE, last) if last else Expectation((Step, Finish))
            turn = stream.receive(expect, timeout_s=10)
            if isinstance(turn.message, Finish):
                return steps
            assert isinstance(turn.message, Step)
            if turn.message.plan is None:
                stream.send(Saved(steps), timeout_s=10)
                last = None
                continue
            gradient = turn.tensor if last else torch.ones(SHAPE)
            last = turn.message.plan.id
            steps += 1
            stream.send(Smashed(last, 0.1, 0.2, 0.3), [10 * gradient], "bfloat16", timeout_s=10)


def plan(step: int) -> Plan:
    return Plan(StepId(0, step), "train", 0.1, pack_samples([step]), 5)


def smashed(step: int, **options: torch.dtype) -> Expectation:
    return Expectation(Smashed, "bfloat16", SHAPE, StepId(0, step), **options)


def start(pool: ThreadPoolExecutor, endpoint: ExchangeEndpoint, uppers: range) -> list[Future[int]]:
    futures = [pool.submit(serve, join(endpoint, upper)) for upper in uppers]
    endpoint.wait_for(uppers, timeout_s=10)
    return futures


def test_steps_with_several_uppers_save_and_finish(endpoint: ExchangeEndpoint, pool: ThreadPoolExecutor) -> None:
    uppers = range(3)
    futures = start(pool, endpoint, uppers)
    assert endpoint.connected == set(uppers)
    first = {m: Frame(Step(plan=plan(0))) for m in uppers}
    answers = endpoint.exchange(first, {m: smashed(0) for m in uppers}, timeout_s=10)
    assert all(torch.equal(answers[m].tensor, torch.full(SHAPE, 10.0)) for m in uppers)
    gradients = {m: torch.randn(SHAPE) for m in uppers}
    second = {m: Frame(Step(StepId(0, 0), plan(1), True), (gradients[m],)) for m in uppers}
    expect = {m: smashed(1, dtype=torch.bfloat16) for m in uppers}
    answers = endpoint.exchange(second, expect, timeout_s=10)
    for m in uppers:
        assert answers[m].tensor.dtype == torch.bfloat16
        assert torch.equal(answers[m].tensor.float(), wire_roundtrip(10 * gradients[m], "bfloat16"))
    last = {m: Frame(Step(StepId(0, 1), None, True), (gradients[m],)) for m in uppers}
    saved = endpoint.exchange(last, {m: Expectation(Saved) for m in uppers}, timeout_s=10)
    assert [saved[m].message for m in uppers] == [Saved(2)] * 3
    assert endpoint.exchange({m: Frame(Finish()) for m in uppers}, {}, timeout_s=10) == {}
    assert [future.result(10) for future in futures] == [2] * 3
    sent = [first[0], second[0], last[0], Frame(Finish())]
    assert endpoint.traffic[0].bytes_down == sum(frame.nbytes for frame in sent)
    received = [Frame(Smashed(StepId(0, t), 0.1, 0.2, 0.3), (gradients[0],), "bfloat16") for t in range(2)]
    assert endpoint.traffic[0].bytes_up == sum(frame.nbytes for frame in [*received, Frame(Saved(2))])


def test_both_ends_count_the_same_bytes_of_a_large_tensor(endpoint: ExchangeEndpoint, pool: ThreadPoolExecutor) -> None:
    shape = (4, 1, 64, 64, 64)  # larger than any socket buffer: partial sends and receives
    tensor = torch.randn(shape)

    def echo(stream: UpperStream) -> tuple[int, int]:
        with stream:
            frame = stream.receive(Expectation(Step, "float32", shape, StepId(0, 0)), timeout_s=10)
            stream.send(Smashed(StepId(0, 0)), [frame.tensor], timeout_s=10)
            return stream.bytes_up, stream.bytes_down

    future = pool.submit(echo, join(endpoint, 0))
    endpoint.wait_for([0], 5)
    expect = Expectation(Smashed, "float32", shape)
    answer = endpoint.exchange({0: Frame(Step(StepId(0, 0)), (tensor,))}, {0: expect}, timeout_s=10)
    assert torch.equal(answer[0].tensor, tensor)
    assert future.result(5) == endpoint.traffic[0]


def test_no_thread_is_created_per_step(endpoint: ExchangeEndpoint, pool: ThreadPoolExecutor) -> None:
    start(pool, endpoint, range(2))
    before = set(threading.enumerate())
    for _ in range(3):
        endpoint.exchange({m: Frame(Step()) for m in range(2)}, {m: Expectation(Saved) for m in range(2)}, timeout_s=10)
    assert set(threading.enumerate()) == before
    endpoint.exchange({m: Frame(Finish()) for m in range(2)}, {}, timeout_s=10)


def test_wait_for_names_who_is_missing(endpoint: ExchangeEndpoint, pool: ThreadPoolExecutor) -> None:
    start(pool, endpoint, range(1))
    with pytest.raises(PeerLost, match="Upper 1, 2 did not connect"):
        endpoint.wait_for(range(3), timeout_s=0.05)
    endpoint.exchange({0: Frame(Finish())}, {}, timeout_s=10)


def test_a_silent_upper_ends_the_exchange_at_its_deadline_and_is_named(endpoint: ExchangeEndpoint) -> None:
    with join(endpoint, 0):
        endpoint.wait_for([0], 5)
        began = time.monotonic()
        with pytest.raises(PeerLost, match=r"Upper 0 \(node 100\): the deadline passed"):
            endpoint.exchange({}, {0: smashed(0)}, timeout_s=0.2)
        assert time.monotonic() - began < 2
        with pytest.raises(PeerLost, match="Upper 0 is not connected"):
            endpoint.exchange({}, {0: smashed(0)}, timeout_s=0.2)


def test_one_failure_is_raised_at_once_and_the_others_go_on(
    endpoint: ExchangeEndpoint, pool: ThreadPoolExecutor
) -> None:
    start(pool, endpoint, range(1))
    failing = join(endpoint, 1)
    silent = join(endpoint, 2)
    endpoint.wait_for(range(3), 5)
    failing.fail(Failed("StoreError", "record 7 is damaged"))
    began = time.monotonic()
    with (
        silent,
        pytest.raises(NodeError, match=r"Upper 1 \(node 101\) failed: StoreError: record 7 is damaged"),
    ):
        endpoint.exchange({0: Frame(Step())}, {m: Expectation(Saved) for m in range(3)}, timeout_s=30)
    assert time.monotonic() - began < 5
    assert endpoint.connected >= {0} and 1 not in endpoint.connected
    assert endpoint.exchange({0: Frame(Step())}, {0: Expectation(Saved)}, timeout_s=10)[0].message == Saved(0)
    endpoint.exchange({0: Frame(Finish())}, {}, timeout_s=10)


def test_the_word_of_an_upper_that_failed_between_steps_is_heard_although_sending_breaks(
    endpoint: ExchangeEndpoint,
) -> None:
    join(endpoint, 0).fail(Failed("MemoryError", "too little"))
    endpoint.wait_for([0], 5)
    large = Frame(Step(StepId(0, 0)), (torch.zeros(64, 1, 64, 64, 64),))
    with pytest.raises((NodeError, PeerLost)) as caught:
        endpoint.exchange({0: large}, {0: smashed(0)}, timeout_s=5)
    if endpoint.cert_pem is None:  # after a broken write OpenSSL reads no more
        assert caught.type is NodeError


def test_an_upper_that_vanishes_is_lost_at_once(endpoint: ExchangeEndpoint) -> None:
    stream = join(endpoint, 0)
    endpoint.wait_for([0], 5)
    threading.Timer(0.1, stream.close).start()
    with pytest.raises(PeerLost, match=r"Upper 0 \(node 100\)"):
        endpoint.exchange({}, {0: smashed(0)}, timeout_s=30)


def test_an_answer_that_does_not_fit_is_refused_and_the_upper_learns_why(endpoint: ExchangeEndpoint) -> None:
    with join(endpoint, 0) as stream:
        endpoint.wait_for([0], 5)
        stream.send(Smashed(StepId(0, 0)), [torch.ones(3)], timeout_s=5)
        with pytest.raises(FrameMismatch, match=r"Upper 0 \(node 100\)"):
            endpoint.exchange({}, {0: smashed(0)}, timeout_s=5)
        with pytest.raises(ProtocolError, match="the exchange cannot continue"):
            stream.receive(Expectation(Step), timeout_s=5)


def test_a_frame_that_cannot_be_encoded_fails_the_exchange(endpoint: ExchangeEndpoint) -> None:
    with join(endpoint, 0):
        endpoint.wait_for([0], 5)
        frame = Frame(Step(StepId(0, 0)), (torch.tensor([float("nan")]),), "int8")
        with pytest.raises(TrainingError, match="not finite"):
            endpoint.exchange({0: frame}, {0: smashed(0)}, timeout_s=5)


@pytest.mark.parametrize("blocked_in", ["wait_for", "exchange"])
def test_abort_from_another_thread_ends_every_wait_and_tells_the_uppers(
    endpoint: ExchangeEndpoint, blocked_in: str
) -> None:
    waits: dict[str, Callable[[], object]] = {
        "wait_for": lambda: endpoint.wait_for([0, 1], 30),
        "exchange": lambda: endpoint.exchange({}, {0: smashed(0)}, timeout_s=30),
    }
    with join(endpoint, 0) as stream:
        endpoint.wait_for([0], 5)
        threading.Timer(0.1, endpoint.abort, ["disk full"]).start()
        began = time.monotonic()
        with pytest.raises(ProtocolError, match="aborted: disk full"):
            waits[blocked_in]()
        assert time.monotonic() - began < 3
        with pytest.raises(ProtocolError, match="ended the exchange: disk full"):
            stream.receive(Expectation(Step), timeout_s=5)
    with pytest.raises(ProtocolError, match="aborted"):
        endpoint.exchange({}, {}, timeout_s=1)


def test_abort_reaches_an_upper_that_is_sending(endpoint: ExchangeEndpoint) -> None:
    with join(endpoint, 0) as stream:
        endpoint.wait_for([0], 5)
        endpoint.abort("enough")
        with pytest.raises(ProtocolError) as caught:
            for _ in range(5):
                stream.send(Smashed(StepId(0, 0)), [torch.zeros(2**20)], timeout_s=5)
        if endpoint.cert_pem is None:
            assert "enough" in str(caught.value)


def test_close_ends_all_threads(endpoint: ExchangeEndpoint) -> None:
    with join(endpoint, 0) as stream:
        endpoint.wait_for([0], 5)
        endpoint.close()
        endpoint.close()
        assert not [t for t in threading.enumerate() if t.name.startswith("psl-") and t.is_alive()]
        with pytest.raises(PeerLost):
            stream.receive(Expectation(Step), timeout_s=5)


def test_a_node_that_comes_back_with_a_new_ticket_replaces_its_old_connection(
    endpoint: ExchangeEndpoint,
) -> None:
    old = join(endpoint, 0)
    endpoint.wait_for([0], 5)
    with join(endpoint, 0) as new:
        with pytest.raises(PeerLost):
            old.receive(Expectation(Step), timeout_s=5)
        new.send(Saved(4), timeout_s=5)
        assert endpoint.exchange({}, {0: Expectation(Saved)}, timeout_s=5)[0].message == Saved(4)
    old.close()


def test_one_that_cannot_be_let_in_does_not_close_the_gate(
    endpoint: ExchangeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor for its worker, say: its ticket is taken, so the end of its connection is what it tells."""
    let_in = endpoint._gate._let_in

    def full(*_: object) -> None:
        monkeypatch.setattr(endpoint._gate, "_let_in", let_in)
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(endpoint._gate, "_let_in", full)
    with pytest.raises(PeerLost):
        join(endpoint, 0)
    with join(endpoint, 0):
        endpoint.wait_for([0], 5)


def test_receive_has_a_deadline(endpoint: ExchangeEndpoint) -> None:
    with join(endpoint, 0) as stream, pytest.raises(PeerLost, match="the deadline passed"):
        stream.receive(Expectation(Step), timeout_s=0.05)


def test_nothing_listens() -> None:
    with ExchangeEndpoint("127.0.0.1", run=RUN) as made:
        hello, port = hello_for(made, 0), made.port
    with pytest.raises(PeerLost, match="Connection refused"):
        connect("127.0.0.1", port, hello, cafile_pem=None, timeout_s=0.2)


def test_another_certificate_or_another_name_is_refused() -> None:
    for served, pinned in [
        (identity := ephemeral_identity(["127.0.0.1"]), ephemeral_identity(["127.0.0.1"])),
        (identity := ephemeral_identity(["elsewhere.example", "127.0.0.2"]), identity),
    ]:
        with ExchangeEndpoint("127.0.0.1", run=RUN, tls=served) as made:
            with pytest.raises(AuthenticationError, match="its certificate is refused"):
                connect(made.host, made.port, hello_for(made, 0), cafile_pem=pinned.cert_pem, timeout_s=5)
            assert made.connected == set()


def test_plaintext_stays_on_this_machine() -> None:
    with pytest.raises(ConfigError, match="unencrypted"):
        ExchangeEndpoint("0.0.0.0", run=RUN, advertise="example.org")
    hello = Hello(RUN, 0, 0, (0,), 1, "data", bytes(32))
    with pytest.raises(ConfigError, match="unencrypted"):
        connect("192.0.2.1", 1, hello, cafile_pem=None, timeout_s=1)
    with pytest.raises(ConfigError, match="which address nodes should connect to"):
        ExchangeEndpoint("0.0.0.0", run=RUN, allow_plaintext=True)
    with ExchangeEndpoint("0.0.0.0", run=RUN, allow_plaintext=True, advertise="127.0.0.1") as made:
        join(made, 0).close()
    loopback = {host: is_loopback(host) for host in ("127.0.0.9", "::1", "localhost", "10.0.0.1", "example.org")}
    assert [host for host, near in loopback.items() if near] == ["127.0.0.9", "::1", "localhost"]


def test_a_taken_port_is_a_clear_error() -> None:
    with ExchangeEndpoint("127.0.0.1", run=RUN) as made, pytest.raises(ConfigError, match="cannot listen on"):
        ExchangeEndpoint("127.0.0.1", made.port, run=RUN)


def test_the_key_is_hidden() -> None:
    identity = ephemeral_identity(["127.0.0.1", "localhost", "::1"])
    assert "PRIVATE" not in repr(identity) and isinstance(identity, TlsIdentity)
    with pytest.raises(ConfigError):
        ephemeral_identity([])


def test_a_refusal_is_logged_with_its_reason_but_not_told(caplog: pytest.LogCaptureFixture) -> None:
    with ExchangeEndpoint("127.0.0.1", run=RUN) as made, caplog.at_level(logging.WARNING):
        hello = hello_for(made, 0)
        wrong = Hello(RUN, 999, 0, (0,), 50, "data", hello.token)
        with pytest.raises(AuthenticationError) as caught:
            connect(made.host, made.port, wrong, cafile_pem=None, timeout_s=5)
        assert "999" not in str(caught.value) and "100" not in str(caught.value)
        connect(made.host, made.port, hello, cafile_pem=None, timeout_s=5).close()
    (record,) = caplog.records
    assert "node: expected 100, received 999" in record.getMessage() and "127.0.0.1:" in record.getMessage()
    assert hello.token.hex() not in caplog.text
