"""Hostile connections: each is refused with its own error class, and an honest exchange then succeeds."""

import logging
import socket
import ssl
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import msgspec
import numpy as np
import pytest
import torch

from psl_flower.errors import AuthenticationError, PeerLost, ProtocolError, PslError
from psl_flower.wire.endpoint import ExchangeEndpoint
from psl_flower.wire.frames import Expectation, Frame, encode_frame
from psl_flower.wire.messages import Abort, Hello, Message, Saved, Smashed, Step
from psl_flower.wire.plan import StepId
from psl_flower.wire.stream import UpperStream, connect
from psl_flower.wire.tls import ephemeral_identity

RUN = "run-1"
ID = StepId(0, 0)
EXPECT = Expectation(Smashed, "float32", (2, 3), ID)


@pytest.fixture(params=["plaintext", "tls"])
def endpoint(request: pytest.FixtureRequest) -> Iterator[ExchangeEndpoint]:
    identity = ephemeral_identity(["127.0.0.1"]) if request.param == "tls" else None
    with ExchangeEndpoint("127.0.0.1", run=RUN, tls=identity, handshake_timeout_s=1, max_pending=16) as made:
        yield made


def hello_for(endpoint: ExchangeEndpoint, upper: int = 0) -> Hello:
    return Hello(RUN, 7, upper, (1, 2), 50, "data", endpoint.issue_ticket(upper, 7, (1, 2), 50, "data"))


def join(endpoint: ExchangeEndpoint, hello: Hello) -> UpperStream:
    return connect(endpoint.host, endpoint.port, hello, cafile_pem=endpoint.cert_pem, timeout_s=10)


def dial(endpoint: ExchangeEndpoint) -> socket.socket:
    """Return a raw connection, past the TLS handshake where there is TLS."""
    sock = socket.create_connection((endpoint.host, endpoint.port), timeout=5)
    if endpoint.cert_pem is None:
        return sock
    context = ssl.create_default_context(cadata=endpoint.cert_pem)
    return context.wrap_socket(sock, server_hostname=endpoint.host)


def joined(message: Message, *tensors: torch.Tensor) -> bytes:
    return b"".join(encode_frame(message, tensors))


def read_all(sock: socket.socket) -> bytes:
    """Return what the endpoint says until it closes."""
    data = b""
    try:
        while chunk := sock.recv(65_536):
            data += chunk
    except OSError:  # a reset is a refusal too
        pass
    return data


def refused_as(endpoint: ExchangeEndpoint, name: str) -> None:
    """Check that exactly the errors `name` were noted, waiting for the gate's thread to get there."""
    deadline = time.monotonic() + 5
    while not endpoint.refused and time.monotonic() < deadline:
        time.sleep(0.005)
    assert set(endpoint.refused) == {name}


def honest_exchange(endpoint: ExchangeEndpoint) -> None:
    tensor = torch.randn(2, 3)
    with join(endpoint, hello_for(endpoint, upper=9)) as stream:
        endpoint.wait_for([9], timeout_s=5)
        stream.send(Smashed(ID), [tensor], timeout_s=5)
        answer = endpoint.exchange({9: Frame(Step())}, {9: EXPECT}, timeout_s=5)[9]
        assert torch.equal(answer.tensor, tensor)
        assert isinstance(stream.receive(Expectation(Step), timeout_s=5).message, Step)


def header(metadata_bytes: int = 0, payload_bytes: int = 0, version: int = 1, magic: bytes = b"PSLF") -> bytes:
    return struct.pack("<4sIIQ", magic, version, metadata_bytes, payload_bytes)


SHORT_TOKEN = msgspec.msgpack.encode({"message": {"type": "hello", "token": b"x"}})
GARBAGE: dict[str, tuple[bytes, str]] = {
    "random bytes": (np.random.default_rng(1).bytes(4096), "FrameVersionError"),
    "http": (b"GET / HTTP/1.1\r\nHost: lower\r\n\r\n", "FrameVersionError"),
    "wrong version": (header(version=2) + b"whatever follows in version 2", "FrameVersionError"),
    "metadata of 4 GiB": (header(metadata_bytes=2**32 - 1), "FrameTooLarge"),
    "metadata above a greeting's limit": (header(metadata_bytes=2**17), "FrameTooLarge"),
    "payload of 2^60 bytes": (header(10, 2**60) + bytes(10), "FrameTooLarge"),
    "no MessagePack": (header(4) + b"\xc1\xc1\xc1\xc1", "FrameMismatch"),
    "deep nesting": (header(60_000) + b"\x91" * 60_000, "FrameMismatch"),
    "tensor before Hello": (joined(Smashed(ID), torch.ones(2, 3)), "FrameTooLarge"),
    "empty tensor before Hello": (joined(Smashed(ID), torch.ones(0)), "ProtocolError"),
    "Step from below": (joined(Step()), "ProtocolError"),
    "Saved before Hello": (joined(Saved(0)), "ProtocolError"),
    "short token": (
        header(len(SHORT_TOKEN)) + SHORT_TOKEN,
        "FrameMismatch",
    ),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_before_hello(endpoint: ExchangeEndpoint, kind: str) -> None:
    data, error = GARBAGE[kind]
    with dial(endpoint) as sock:
        sock.sendall(data)
        answer = read_all(sock)
    refused_as(endpoint, error)
    assert b"refused" in answer or not answer
    assert endpoint.connected == set()
    honest_exchange(endpoint)


def test_the_sizes_of_strangers_allocate_nothing(endpoint: ExchangeEndpoint) -> None:
    tracemalloc.start()
    try:
        with dial(endpoint) as sock:
            sock.sendall(header(2**16, 0))  # within the limit: at most this is allocated
            with dial(endpoint) as other:
                other.sendall(header(10, 2**60) + bytes(10))
                read_all(other)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    honest_exchange(endpoint)


def test_plain_bytes_at_a_tls_port() -> None:
    with ExchangeEndpoint("127.0.0.1", run=RUN, tls=ephemeral_identity(["127.0.0.1"])) as endpoint:
        with socket.create_connection((endpoint.host, endpoint.port), timeout=5) as sock:
            sock.sendall(joined(hello_for(endpoint)))
            read_all(sock)
        refused_as(endpoint, "ProtocolError")
        honest_exchange(endpoint)


def other(hello: Hello, **changes: object) -> Hello:
    return msgspec.structs.replace(hello, **changes)


WRONG: dict[str, Callable[[Hello], Hello]] = {
    "token": lambda hello: other(hello, token=bytes(32)),
    "run": lambda hello: other(hello, run="run-2"),
    "node": lambda hello: other(hello, node=8),
    "Upper without a ticket": lambda hello: other(hello, upper=5),
    "positions": lambda hello: other(hello, positions=(2, 1)),
    "number of samples": lambda hello: other(hello, num_samples=49),
    "data set": lambda hello: other(hello, dataset="other"),
}


@pytest.mark.parametrize("field", WRONG)
def test_each_wrong_field_is_refused_in_the_same_words_and_leaves_the_ticket_valid(
    endpoint: ExchangeEndpoint, field: str
) -> None:
    hello = hello_for(endpoint)
    replies = []
    for wrong in (WRONG[field](hello), other(hello, token=b"?" * 32)):
        with pytest.raises(AuthenticationError) as caught:
            join(endpoint, wrong)
        replies.append(str(caught.value))
    assert replies[0] == replies[1], "a stranger must not learn which field was wrong"
    refused_as(endpoint, "AuthenticationError")
    join(endpoint, hello).close()
    honest_exchange(endpoint)


def test_a_token_of_another_upper_is_refused(endpoint: ExchangeEndpoint) -> None:
    mine, theirs = hello_for(endpoint, 0), hello_for(endpoint, 1)
    with pytest.raises(AuthenticationError):
        join(endpoint, other(mine, upper=1))
    join(endpoint, theirs).close()
    honest_exchange(endpoint)


def test_a_replayed_or_replaced_token_is_refused(endpoint: ExchangeEndpoint) -> None:
    void, hello = hello_for(endpoint), hello_for(endpoint)
    with join(endpoint, hello) as stream:
        endpoint.wait_for([0], 5)
        for again in (hello, void):
            with pytest.raises(AuthenticationError):
                join(endpoint, again)
        stream.send(Saved(1), timeout_s=5)  # the rightful connection is not disturbed
        assert endpoint.exchange({}, {0: Expectation(Saved)}, timeout_s=5)[0].message == Saved(1)
    honest_exchange(endpoint)


AFTER_HELLO: dict[str, tuple[bytes, str]] = {
    "random bytes": (np.random.default_rng(2).bytes(4096), "FrameVersionError"),
    "payload of 2^60 bytes": (header(10, 2**60) + bytes(10), "FrameTooLarge"),
    "another shape": (joined(Smashed(ID), torch.ones(3, 2)), "FrameMismatch"),
    "another step": (joined(Smashed(StepId(0, 0, 1)), torch.ones(2, 3)), "ProtocolError"),
    "wrong order": (joined(Saved(1)), "ProtocolError"),
    "a frame of the other direction": (joined(Abort("stop")), "ProtocolError"),
    "a second Hello": (joined(Hello(RUN, 7, 0, (1, 2), 50, "data", bytes(32))), "ProtocolError"),
    "cut within the header": (header()[:7], "PeerLost"),
    "cut within the payload": (joined(Smashed(ID), torch.ones(2, 3))[:-1], "PeerLost"),
    "cut at once": (b"", "PeerLost"),
}


@pytest.mark.parametrize("kind", AFTER_HELLO)
def test_an_upper_that_turns_hostile(endpoint: ExchangeEndpoint, kind: str) -> None:
    data, error = AFTER_HELLO[kind]
    with dial(endpoint) as sock:
        sock.sendall(joined(hello_for(endpoint)) + data)
        endpoint.wait_for([0], timeout_s=5)
        if error == "PeerLost":
            sock.close()
        with pytest.raises(PslError, match=r"Upper 0 \(node 7\)") as caught:
            endpoint.exchange({}, {0: EXPECT}, timeout_s=5)
    assert caught.type.__name__ == error
    assert 0 not in endpoint.connected
    honest_exchange(endpoint)


def test_a_declared_tensor_is_not_allocated_before_it_is_checked(endpoint: ExchangeEndpoint) -> None:
    large = encode_frame(Smashed(ID), [torch.zeros(2**24)])[0]  # 64 MiB declared, within the limits, never sent
    with dial(endpoint) as sock:
        sock.sendall(joined(hello_for(endpoint)) + bytes(large))
        endpoint.wait_for([0], timeout_s=5)
        tracemalloc.start()
        try:
            with pytest.raises(PslError, match="received float32 \\(16777216,\\)"):
                endpoint.exchange({}, {0: EXPECT}, timeout_s=5)
            assert tracemalloc.get_traced_memory()[1] < 2**20
        finally:
            tracemalloc.stop()
    honest_exchange(endpoint)


def test_a_frame_sent_twice_is_refused(endpoint: ExchangeEndpoint) -> None:
    """A replay within the connection itself: the second answer is for a step that is over."""
    tensor = torch.ones(2, 3)
    with dial(endpoint) as sock:
        sock.sendall(joined(hello_for(endpoint)) + 2 * joined(Smashed(ID), tensor))
        endpoint.wait_for([0], timeout_s=5)
        assert torch.equal(endpoint.exchange({}, {0: EXPECT}, timeout_s=5)[0].tensor, tensor)
        following = Expectation(Smashed, "float32", (2, 3), StepId(0, 1))
        with pytest.raises(ProtocolError, match=r"Upper 0 \(node 7\): Smashed frame: expected .*step=1"):
            endpoint.exchange({}, {0: following}, timeout_s=5)
    honest_exchange(endpoint)


def test_a_conversation_replayed_on_a_new_connection_is_refused(endpoint: ExchangeEndpoint) -> None:
    conversation = joined(hello_for(endpoint)) + joined(Smashed(ID), torch.ones(2, 3))
    with dial(endpoint) as first, dial(endpoint) as second:
        first.sendall(conversation)
        endpoint.wait_for([0], timeout_s=5)
        second.sendall(conversation)
        assert b"no valid ticket" in read_all(second)
        refused_as(endpoint, "AuthenticationError")
        endpoint.exchange({}, {0: EXPECT}, timeout_s=5)
    honest_exchange(endpoint)


def test_an_upper_that_drips_its_answer_is_lost_at_the_deadline(endpoint: ExchangeEndpoint) -> None:
    data = joined(Smashed(ID), torch.ones(2, 3))
    with dial(endpoint) as sock, join(endpoint, hello_for(endpoint, 1)) as honest:
        sock.sendall(joined(hello_for(endpoint)))
        endpoint.wait_for([0, 1], timeout_s=5)
        over = threading.Event()

        def drip() -> None:
            with suppress(OSError):
                for byte in data:
                    sock.sendall(bytes([byte]))
                    if over.wait(0.05):
                        return

        dripping = threading.Thread(target=drip)
        dripping.start()
        honest.send(Smashed(ID), [torch.ones(2, 3)], timeout_s=5)
        began = time.monotonic()
        with pytest.raises(PeerLost, match=r"Upper 0 \(node 7\): the deadline passed"):
            endpoint.exchange({}, {0: EXPECT, 1: EXPECT}, timeout_s=1)
        assert time.monotonic() - began < 3
        over.set()
        dripping.join()
        honest.send(Saved(1), timeout_s=5)
        assert endpoint.exchange({}, {1: Expectation(Saved)}, timeout_s=5)[1].message == Saved(1)
    honest_exchange(endpoint)


@pytest.mark.parametrize("encrypted", [False, True])
def test_200_silent_connections_keep_nobody_out(encrypted: bool, caplog: pytest.LogCaptureFixture) -> None:
    identity = ephemeral_identity(["127.0.0.1"]) if encrypted else None
    # The deadline is far away: only the bound on pending connections can make room.
    with (
        ExchangeEndpoint("127.0.0.1", run=RUN, tls=identity, handshake_timeout_s=60, max_pending=16) as endpoint,
        ExitStack() as stack,
        caplog.at_level(logging.WARNING),
    ):
        for number in range(200):
            sock = socket.create_connection((endpoint.host, endpoint.port), timeout=5)
            stack.enter_context(sock)
            if number % 3 == 0:
                sock.sendall(b"\x16\x03" if encrypted else header(100)[:5])  # slow rather than silent
        honest_exchange(endpoint)
        assert endpoint.refused.keys() == {"PeerLost"}
        assert 200 - 16 <= endpoint.refused["PeerLost"] <= 200
        assert len(caplog.records) <= 25, "strangers must not fill the log"


def test_a_slow_hello_is_dropped_at_its_deadline(endpoint: ExchangeEndpoint) -> None:
    data = joined(hello_for(endpoint))
    began = time.monotonic()
    with dial(endpoint) as sock:
        sock.sendall(data[:3])
        time.sleep(0.5)
        sock.sendall(data[3:9])
        assert read_all(sock) == b""
    assert 0.8 < time.monotonic() - began < 3
    refused_as(endpoint, "PeerLost")
    honest_exchange(endpoint)


def test_a_lower_that_is_not_one_is_refused_by_the_upper() -> None:
    hello = Hello(RUN, 7, 0, (1,), 50, "data", bytes(32))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answering(reply: bytes) -> None:
            def answer() -> None:
                sock, _ = server.accept()
                with sock:
                    sock.recv(65_536)
                    sock.sendall(reply)

            threading.Thread(target=answer, daemon=True).start()

        for reply, error in [
            (b"SSH-2.0-OpenSSH_9.2 and more\r\n", PslError),
            (joined(Step()), ProtocolError),
            (header(10, 2**60), PslError),
        ]:
            answering(reply)
            with pytest.raises(error) as caught:
                connect("127.0.0.1", port, hello, cafile_pem=None, timeout_s=5)
            assert not isinstance(caught.value, PeerLost | AuthenticationError)
