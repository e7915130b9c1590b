"""The Lower's exchange endpoint: Upper nodes connect here; a step is one `exchange` with all of them.

with ExchangeEndpoint("0.0.0.0", run=run, tls=identity, advertise="lower.example") as endpoint:
    tokens = {m: endpoint.issue_ticket(m, node[m], positions[m], num_samples, dataset) for m in uppers}
    ...                                     # host, port, certificate and token travel in Flower messages
    endpoint.wait_for(uppers, timeout_s=120)
    answers = endpoint.exchange({m: Frame(Step(plan=plan)) for m in uppers}, expect, timeout_s=600)
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from psl_flower.errors import ConfigError, PeerLost, ProtocolError
from psl_flower.wire import tls as tls_module
from psl_flower.wire.connection import Connection
from psl_flower.wire.frames import Expectation, Frame, Limits
from psl_flower.wire.gate import Gate
from psl_flower.wire.messages import Finish, Hello, party_names
from psl_flower.wire.tickets import TicketBook
from psl_flower.wire.tls import TlsIdentity
from psl_flower.wire.worker import Job, Outcome, Worker

_END_TIMEOUT_S = 2.0
# Connections that wait to be accepted: beyond it a flood costs a node a second or more, until its system asks again.
_BACKLOG = 1024
# Workers keep the deadline; this much later the caller stops trusting them to.
_GRACE_S = 5.0


class Traffic(NamedTuple):
    """Bytes of whole frames exchanged with an Upper, over all its connections; no greetings, no TLS."""

    bytes_up: int = 0
    bytes_down: int = 0


class ExchangeEndpoint:
    """Listens for Upper nodes and exchanges frames with all of them at once.

    Parameters
    ----------
    host : str
        Address to bind.
    port : int
        Port to bind; 0 takes a free one (see `port`).
    run : str
        Name of the run, which every `Hello` must give.
    tls : TlsIdentity or None
        To serve TLS with, and whom nodes must prove themselves by (`TlsIdentity.peers_pem`); None for plaintext,
        which is refused outside loopback.
    advertise : str, optional
        Host name or address given to nodes; `host` by default.
    limits : Limits, optional
        Most bytes that a frame from an Upper may declare.
    handshake_timeout_s : float
        Longest time, in seconds, from a connection to its complete `Hello`.
    max_pending : int
        Most connections of strangers without a valid `Hello`, and as many of nodes; beyond it the oldest silent one of
        the busiest network and host is dropped.
    allow_plaintext : bool
        Permit plaintext outside loopback.
    names : sequence of str
        The parties' names, by number, if they have any.

    Raises
    ------
    ConfigError
        The address cannot be bound, would be of no use to nodes, or would send smashed data in the clear; or the
        identity cannot be used.
    """

    def __init__(
        self,
        host: str,
        port: int = 0,
        *,
        run: str,
        tls: TlsIdentity | None = None,
        advertise: str | None = None,
        limits: Limits | None = None,
        handshake_timeout_s: float = 10.0,
        max_pending: int = 64,
        allow_plaintext: bool = False,
        names: Sequence[str] = (),
    ) -> None:
        tls_module.check_plaintext(host, encrypted=tls is not None, allow_plaintext=allow_plaintext)
        if advertise is None and tls_module.is_wildcard(host):
            raise ConfigError(f"the exchange endpoint listens on {host}: say which address nodes should connect to")
        self.host = advertise or host
        self.cert_pem = tls.cert_pem if tls is not None else None
        self._limits = limits or Limits()
        self._handshake_timeout_s = handshake_timeout_s
        self._names = tuple(names)
        self._tickets = TicketBook(run)
        self._changed = threading.Condition()  # guards what follows; re-entrant, so a signal handler may abort
        self._workers: dict[int, Worker] = {}
        self._threads: set[Worker] = set()  # also those replaced or failed that have not ended yet
        self._traffic: dict[int, Traffic] = {}
        self._ended = ""
        context = tls_module.server_context(tls) if tls is not None else None
        listener = _listen(host, port)
        self.port: int = listener.getsockname()[1]
        self._gate = Gate(listener, context, self._tickets, self._let_in, handshake_timeout_s, max_pending)

    def renew(self, tls: TlsIdentity) -> None:
        """Serve connections from now on with another identity; open ones stay. Announce it before they come.

        Raises
        ------
        ConfigError
            The identity cannot be used; the former stays.
        """
        self._gate.context = tls_module.server_context(tls)
        self.cert_pem = tls.cert_pem

    def issue_ticket(
        self, upper: int, node: int, positions: Sequence[int], num_samples: int | None, dataset: str
    ) -> bytes:
        """Return the one-time token, 32 bytes, with which `upper` may connect; its earlier ticket is void.

        The node's `Hello` must give exactly these values; `num_samples` None is not checked. A connection
        that this Upper already has is replaced when the new ticket is used, not before.
        """
        return self._tickets.issue(upper, node, positions, num_samples, dataset)

    @property
    def connected(self) -> frozenset[int]:
        """The Uppers believed to be connected; none is asked."""
        with self._changed:
            return frozenset(self._workers)

    @property
    def traffic(self) -> dict[int, Traffic]:
        """Bytes exchanged with each Upper since the endpoint was made."""
        with self._changed:
            return dict(self._traffic)

    @property
    def refused(self) -> dict[str, int]:
        """Number of connections refused, by class of the error."""
        return dict(self._gate.refusals.counts)

    def wait_for(self, uppers: Collection[int], timeout_s: float) -> None:
        """Wait until all of `uppers` are connected.

        Raises
        ------
        PeerLost
            Some were not within `timeout_s` seconds; the message names them.
        ProtocolError
            `abort` or `close` was called meanwhile.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not self._workers.keys() >= set(uppers):
                self._check_open()
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    missing = sorted(set(uppers) - self._workers.keys())
                    raise PeerLost(
                        f"{party_names(missing, self._names)} did not connect to {self.host}:{self.port} "
                        f"within {timeout_s:g} s; {len(set(uppers)) - len(missing)} others did"
                    )
                self._changed.wait(left_s)
            self._check_open()

    def exchange(
        self,
        down: Mapping[int, Frame],
        expect: Mapping[int, Expectation],
        timeout_s: float,
        meanwhile: Callable[[], None] | None = None,
    ) -> dict[int, Frame]:
        """Send to and receive from many Uppers at once.

        Parameters
        ----------
        down : mapping of int to Frame
            What to send, by Upper. Its tensors are read by other threads until this returns; after an error,
            until the connections concerned are closed.
        expect : mapping of int to Expectation
            What each Upper answers; an Upper not in it is only sent to, an Upper only in it is only listened
            to.
        timeout_s : float
            Longest time, in seconds, for all of it.
        meanwhile : callable, optional
            Called once, in this thread, while the Uppers work.

        Returns
        -------
        dict of int to Frame
            The answers of the Uppers in `expect`.

        Raises
        ------
        PeerLost
            An Upper is not connected, its connection broke, or the time is over.
        NodeError
            An Upper reported its own failure.
        WireError, ProtocolError
            An Upper sent something malformed or not expected, or `abort` was called.
        ConfigError, TrainingError
            A frame cannot be encoded.

        Notes
        -----
        The first failure is raised at once; it closes that Upper's connection. The others finish the exchange
        on their own, their answers are dropped, and they can take part in the next one.
        """
        deadline = time.monotonic() + timeout_s
        results: queue.SimpleQueue[tuple[int, Outcome]] = queue.SimpleQueue()
        uppers = sorted(down.keys() | expect.keys())
        with self._changed:
            self._check_open()
            missing = [upper for upper in uppers if upper not in self._workers]
            if missing:
                raise PeerLost(f"{party_names(missing, self._names)} is not connected")
            for upper in uppers:
                self._workers[upper].submit(Job(down.get(upper), expect.get(upper), deadline, results))
        if meanwhile is not None:
            meanwhile()
        answers: dict[int, Frame] = {}
        for _ in uppers:
            try:
                upper, outcome = results.get(timeout=max(0.0, deadline - time.monotonic()) + _GRACE_S)
            except queue.Empty:
                raise PeerLost(f"an exchange with {len(uppers)} Uppers did not end within {timeout_s:g} s") from None
            if isinstance(outcome, BaseException):
                with self._changed:
                    self._check_open()
                raise outcome
            if outcome is not None:
                answers[upper] = outcome
        return answers

    def finish(self, uppers: Collection[int], timeout_s: float) -> None:
        """Send Uppers the end of the round and disconnect them; for the next one they connect with new tickets.

        Raises PslError as `exchange`.
        """
        self.exchange({upper: Frame(Finish()) for upper in uppers}, {}, timeout_s)
        with self._changed:
            # At once, not when a worker notices: `wait_for` must not take the old connection for the new one.
            for upper in uppers:
                worker = self._workers.pop(upper, None)
                if worker is not None:
                    worker.end("the round is over", tell_peer=False)

    def abort(self, reason: str) -> None:
        """Send every connected Upper the reason why the exchange ends, waiting only a moment; then close.

        May be called from any thread; `wait_for` and `exchange` in other threads end at once with
        ProtocolError.
        """
        self._end(f"the exchange was aborted: {reason}", tell_peer=reason)

    def close(self) -> None:
        """Close every connection and stop listening; safe to call again."""
        self._end("the exchange endpoint is closed", tell_peer=None)

    def __enter__(self) -> ExchangeEndpoint:
        """Return this object."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Close."""
        self.close()

    def _end(self, ended: str, tell_peer: str | None) -> None:
        with self._changed:
            self._ended = self._ended or ended
            workers = list(self._threads)
            for worker in workers:
                worker.end(tell_peer or ended, tell_peer=tell_peer is not None)
            self._changed.notify_all()
        self._gate.close()
        deadline = time.monotonic() + _END_TIMEOUT_S
        for worker in workers:
            if worker is not threading.current_thread():
                worker.join(max(0.0, deadline - time.monotonic()))

    def _check_open(self) -> None:
        if self._ended:
            raise ProtocolError(self._ended)

    def _let_in(self, connection: Connection, hello: Hello) -> None:
        """Start a worker for an Upper whose `Hello` was valid; runs in the gate's thread."""
        connection.limits = self._limits
        worker = Worker(connection, hello, self._handshake_timeout_s, self._count, self._gone, self._names)
        with self._changed:
            before = self._workers.get(hello.upper)
            self._workers[hello.upper] = worker
            self._threads.add(worker)
            if before is not None:
                before.end("the Upper opened a new connection", tell_peer=False)
            if self._ended:
                worker.end(self._ended, tell_peer=True)
            worker.start()
            self._changed.notify_all()

    def _gone(self, worker: Worker) -> None:
        with self._changed:
            self._threads.discard(worker)
            if self._workers.get(worker.upper) is worker:
                del self._workers[worker.upper]

    def _count(self, upper: int, bytes_up: int, bytes_down: int) -> None:
        with self._changed:
            before = self._traffic.get(upper, Traffic())
            self._traffic[upper] = Traffic(before.bytes_up + bytes_up, before.bytes_down + bytes_down)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(f"the exchange endpoint cannot listen on {host}:{port}: {error.strerror or error}") from None
