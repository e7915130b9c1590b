"""Peers that send a byte now and then, in every phase: each ends in bounded time, and honest nodes get in meanwhile."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import psutil
import pytest
import torch

from psl_flower.errors import PeerLost
from psl_flower.wire.endpoint import ExchangeEndpoint
from psl_flower.wire.frames import Expectation, Frame, encode_frame
from psl_flower.wire.messages import Hello, Smashed, Step
from psl_flower.wire.plan import StepId
from psl_flower.wire.stream import connect
from psl_flower.wire.tls import ephemeral_identity
from tests.security.test_endpoint_flood import first_words, hello_for

MANY, PAUSE_S = 300, 0.25
HANDSHAKE_S = 2.0
# Of a machine that is busy with the drippers themselves; an idle one needs milliseconds.
LONGEST_S = 5.0
ID = StepId(0, 0)


@pytest.fixture
def endpoint() -> Iterator[ExchangeEndpoint]:
    identity = ephemeral_identity(["127.0.0.1"])
    with ExchangeEndpoint("127.0.0.1", run="run-1", tls=identity, handshake_timeout_s=HANDSHAKE_S) as made:
        yield made


def encrypted(endpoint: ExchangeEndpoint, sock: socket.socket) -> socket.socket:
    context = ssl.create_default_context(cadata=endpoint.cert_pem)
    return context.wrap_socket(sock, server_hostname=endpoint.host)


def handshake(endpoint: ExchangeEndpoint) -> tuple[bool, bytes]:
    """Drip the first words of TLS."""
    return False, first_words(endpoint, ["h2"])


def header(endpoint: ExchangeEndpoint) -> tuple[bool, bytes]:
    """Drip a greeting from its first byte, over TLS."""
    return True, b"".join(encode_frame(hello_for(endpoint, 5), ()))


def metadata(endpoint: ExchangeEndpoint) -> tuple[bool, bytes]:
    """Drip, over TLS, a greeting as large as one may be."""
    return True, b"PSLF" + (1).to_bytes(4, "little") + (2**16).to_bytes(4, "little") + bytes(8) + bytes(2**16)


class Drippers:
    """Connections that each send a byte every `PAUSE_S`; `lived` has the seconds until each was ended."""

    def __init__(self, endpoint: ExchangeEndpoint, phase: Callable[[ExchangeEndpoint], tuple[bool, bytes]]) -> None:
        self.lived: list[float] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._drip, args=(endpoint, n, phase)) for n in range(MANY)]
        for thread in self._threads:
            thread.start()

    def _drip(
        self, endpoint: ExchangeEndpoint, n: int, phase: Callable[[ExchangeEndpoint], tuple[bool, bytes]]
    ) -> None:
        while not self._over.is_set():  # whoever is ended comes back
            began = time.monotonic()
            with suppress(OSError), ExitStack() as stack:
                source = (f"127.{1 + n % 97}.{n % 251}.{1 + n % 50}", 0)
                sock: socket.socket = stack.enter_context(
                    socket.create_connection((endpoint.host, endpoint.port), source_address=source, timeout=30)
                )
                inside, data = phase(endpoint)
                if inside:
                    sock = stack.enter_context(encrypted(endpoint, sock))
                sock.settimeout(PAUSE_S)
                for byte in data:
                    sock.sendall(bytes([byte]))
                    with suppress(TimeoutError):
                        if not sock.recv(1):
                            break
                    if self._over.is_set():
                        return
            self.lived.append(time.monotonic() - began)

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(timeout=30)
        assert not any(thread.is_alive() for thread in self._threads)


@contextmanager
def dripping(endpoint: ExchangeEndpoint, phase: Callable[[ExchangeEndpoint], tuple[bool, bytes]]) -> Iterator[Drippers]:
    drippers = Drippers(endpoint, phase)
    try:
        yield drippers
    finally:
        drippers.end()


@pytest.mark.parametrize("phase", [handshake, header, metadata])
def test_many_who_drip_keep_no_node_out(
    endpoint: ExchangeEndpoint, phase: Callable[[ExchangeEndpoint], tuple[bool, bytes]]
) -> None:
    before = psutil.Process().num_fds()
    with dripping(endpoint, phase) as drippers:
        time.sleep(1)
        for upper in range(4):
            began = time.monotonic()
            hello = hello_for(endpoint, upper)
            with connect(endpoint.host, endpoint.port, hello, cafile_pem=endpoint.cert_pem, timeout_s=20) as stream:
                assert time.monotonic() - began < LONGEST_S
                endpoint.wait_for([upper], timeout_s=5)
                stream.send(Smashed(ID), [torch.ones(2, 3)], timeout_s=5)
                expect = Expectation(Smashed, "float32", (2, 3), ID)
                endpoint.exchange({upper: Frame(Step())}, {upper: expect}, timeout_s=5)
            time.sleep(HANDSHAKE_S / 3)
        time.sleep(HANDSHAKE_S)
    # Each was ended, though it never stopped sending: crowded out, or at its deadline.
    assert len(drippers.lived) > MANY
    assert max(drippers.lived) < HANDSHAKE_S + LONGEST_S
    assert endpoint.refused["PeerLost"] > MANY
    deadline = time.monotonic() + 10  # threads close the last connections a moment later
    while psutil.Process().num_fds() >= before + 20:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_one_alone_is_ended_at_its_deadline_in_each_phase(endpoint: ExchangeEndpoint) -> None:
    """Where nobody crowds it out, the deadline counts from the connection, not from its last byte."""
    for phase in (handshake, header, metadata):
        with socket.create_connection((endpoint.host, endpoint.port), timeout=5) as sock:
            began = time.monotonic()
            inside, data = phase(endpoint)
            peer = encrypted(endpoint, sock) if inside else sock
            peer.settimeout(0.1)
            with suppress(OSError):
                for byte in data:
                    peer.sendall(bytes([byte]))
                    with suppress(TimeoutError):
                        if not peer.recv(1):
                            break
            assert HANDSHAKE_S - 0.5 < time.monotonic() - began < HANDSHAKE_S + 2
    assert endpoint.refused == {"PeerLost": 3}
    with (
        ExchangeEndpoint("127.0.0.1", run="run-1", handshake_timeout_s=60) as patient,  # it is by that deadline
        socket.create_connection((patient.host, patient.port), timeout=5) as sock,
    ):
        sock.settimeout(HANDSHAKE_S + 1)
        sock.sendall(b"P")
        with pytest.raises(TimeoutError):
            sock.recv(1)


@pytest.mark.parametrize("what", ["TLS handshake", "Welcome"])
def test_a_lower_that_drips_holds_a_node_no_longer_than_the_node_waits(what: str) -> None:
    """Such as one in the middle who slows a link down to nothing."""
    identity = ephemeral_identity(["127.0.0.1"])
    with (
        ExchangeEndpoint("127.0.0.1", run="run-1", tls=identity) as endpoint,
        socket.create_server(("127.0.0.1", 0)) as middle,
        ExitStack() as stack,
    ):
        drips_after = 0 if what == "TLS handshake" else 1  # of the endpoint's flights, the first is its handshake's

        def relay() -> None:
            with suppress(OSError):
                while True:
                    node = stack.enter_context(middle.accept()[0])
                    lower = stack.enter_context(socket.create_connection((endpoint.host, endpoint.port)))
                    threading.Thread(target=pump, args=(node, lower, None), daemon=True).start()
                    threading.Thread(target=pump, args=(lower, node, drips_after), daemon=True).start()

        threading.Thread(target=relay, daemon=True).start()
        token = endpoint.issue_ticket(0, 7, (0,), 50, "data")
        began = time.monotonic()
        with pytest.raises(PeerLost, match="the deadline passed while"):
            connect(
                "127.0.0.1", middle.getsockname()[1], Hello("run-1", 7, 0, (0,), 50, "data", token),
                cafile_pem=endpoint.cert_pem, timeout_s=3,
            )  # fmt: skip
        assert 2.5 < time.monotonic() - began < 3 + LONGEST_S


def pump(source: socket.socket, target: socket.socket, drips_after: int | None) -> None:
    """Pass on what comes; from a flight on, byte by byte."""
    flights = 0
    with suppress(OSError):
        while data := source.recv(65_536):
            slow = drips_after is not None and flights >= drips_after
            flights += 1
            for piece in [data[n : n + 1] for n in range(len(data))] if slow else [data]:
                target.sendall(piece)
                if slow:
                    time.sleep(0.5)
