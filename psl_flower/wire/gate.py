"""The gate of the exchange endpoint: takes strangers' connections, lets in those with a valid ticket.

One thread drives all connections without a valid `Hello` yet, none of them ever blocking it: a
silent, slow or hostile connection costs a file descriptor and at most 64 KiB, until its deadline or until newer
ones crowd it out, those of the same network and host first. Connections that have shown a certificate, or that they
hold a valid ticket, have reserved places, which no crowd of strangers takes. No tensor is read here.
"""

from __future__ import annotations

import logging
import os
import select
import selectors
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from operator import attrgetter

from psl_flower.errors import AuthenticationError, PeerLost, ProtocolError, PslError
from psl_flower.wire.connection import Connection, Steps, translated
from psl_flower.wire.frames import Expectation, Frame, Limits
from psl_flower.wire.messages import Abort, Hello
from psl_flower.wire.tickets import TicketBook

log = logging.getLogger("psl_flower")

_HELLO_LIMITS = Limits(metadata_bytes=64 * 2**10, payload_bytes=0)
_ACCEPTS_PER_TURN = 16
_DRAIN_S = 1.0
_MAPPED = bytes(10) + b"\xff\xff"  # an IPv4 address as an IPv6 one
_MINUTE_S = 60.0
_LOGGED_PER_ORIGIN = 5
_LOGGED_PER_MINUTE = 60

# The same words for any wrong credential: a stranger must not learn which guess was right.
_REFUSAL = (
    "refused: this run has no valid ticket for what the node presented "
    "(token, run, node, Upper, positions, data set); a ticket is good for one connection only"
)


@dataclass(eq=False, slots=True)
class _Guest:
    """A connection that has not been let in."""

    connection: Connection
    host: str
    port: int
    network: bytes
    deadline: float
    steps: Steps[Hello | None] | None = None
    known: bool = False  # has shown a certificate, or that it holds a valid ticket
    turned_away: bool = False

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


def network_of(host: str) -> bytes:
    """Return the network of an address, all of which one stranger may well have: of IPv4 a /24, of IPv6 a /64."""
    if ":" not in host:
        return socket.inet_pton(socket.AF_INET, host)[:3]
    packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    return packed[12:15] if packed.startswith(_MAPPED) else packed[:8]


@dataclass(slots=True)
class RefusalLog:
    """Counts refusals by error class and logs each with its reason, up to a limit.

    Strangers must not fill the disk, nor hide others' refusals behind theirs: in a minute at most 5 refusals of one
    host and class get a line each, and 60 in all. The rest is counted in one line when the minute is over.
    """

    counts: Counter[str] = field(default_factory=Counter)
    minute_end: float | None = None  # on the clock of `time.monotonic`; None: nobody was refused lately
    _logged: Counter[tuple[str, str]] = field(default_factory=Counter)
    _kept_back: Counter[str] = field(default_factory=Counter)

    def note(self, address: str, error: PslError) -> None:
        """Count and perhaps log one refusal; `address` is host:port."""
        kind = type(error).__name__
        self.counts[kind] += 1
        self.settle()
        if self.minute_end is None:
            self.minute_end = time.monotonic() + _MINUTE_S
        origin = address.rpartition(":")[0], kind
        if self._logged[origin] >= _LOGGED_PER_ORIGIN or self._logged.total() >= _LOGGED_PER_MINUTE:
            self._kept_back[kind] += 1
            return
        self._logged[origin] += 1
        log.warning("refused a connection from %s: %s: %s", address, kind, error)

    def settle(self, *, closing: bool = False) -> None:
        """Log the refusals held back, if the minute is over or the gate is closing."""
        if self.minute_end is None or (time.monotonic() < self.minute_end and not closing):
            return
        if self._kept_back:
            listed = ", ".join(f"{count} {kind}" for kind, count in self._kept_back.most_common())
            log.warning("refused %d more connections within a minute: %s", self._kept_back.total(), listed)
        self.minute_end = None
        self._logged.clear()
        self._kept_back.clear()


class Gate:
    """Accepts connections on `listener` until closed.

    Parameters
    ----------
    listener : socket.socket
        Listening; owned from now on.
    context : ssl.SSLContext or None
        The Lower's TLS context; None for plaintext. May be replaced: later connections use the new one.
    tickets : TicketBook
        What a `Hello` is checked against.
    let_in : callable
        Takes over a connection whose `Hello` was valid; called in the gate's thread, must not block.
    handshake_timeout_s : float
        Longest time from accepting a connection to its complete `Hello`, in seconds.
    max_pending : int
        Most connections of strangers, and as many of those that have shown a certificate or that they hold a valid
        ticket; beyond it the oldest silent one of the busiest network and host is dropped.
    """

    def __init__(
        self,
        listener: socket.socket,
        context: ssl.SSLContext | None,
        tickets: TicketBook,
        let_in: Callable[[Connection, Hello], None],
        handshake_timeout_s: float,
        max_pending: int,
    ) -> None:
        self.refusals = RefusalLog()
        self._listener = listener
        self.context = context
        self._tickets = tickets
        self._let_in = let_in
        self._handshake_timeout_s = handshake_timeout_s
        self._max_pending = max_pending
        self._guests: dict[_Guest, None] = {}  # in order of arrival, so in order of deadline but for those refused
        self._closing = False
        self._wake_fd, self._waker_fd = os.pipe()
        self._selector = selectors.DefaultSelector()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._wake_fd, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="psl-gate", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening and drop every connection not let in."""
        if not self._closing:
            self._closing = True
            os.write(self._waker_fd, b"x")
            self._thread.join()
            os.close(self._waker_fd)
            os.close(self._wake_fd)

    def _serve(self) -> None:
        try:
            self._serve_until_closed()
        finally:  # also after a defect of ours: another endpoint may need the port
            self.refusals.settle(closing=True)
            for guest in list(self._guests):
                self._drop(guest, None)
            self._selector.close()
            self._listener.close()

    def _serve_until_closed(self) -> None:
        while not self._closing:
            times = [guest.deadline for guest in self._guests]
            if self.refusals.minute_end is not None:
                times.append(self.refusals.minute_end)
            timeout = max(0.0, min(times) - time.monotonic()) if times else None
            ready = self._selector.select(timeout)
            for key, _ in ready:
                if isinstance(key.data, _Guest) and key.data in self._guests:
                    self._advance(key.data)
            if any(key.fileobj is self._listener for key, _ in ready):
                self._accept()  # after those already here: a flood of newcomers does not starve them
            now = time.monotonic()
            for guest in [guest for guest in self._guests if guest.deadline <= now]:
                self._drop(guest, PeerLost(f"no valid Hello within {self._handshake_timeout_s:g} s"))
            self.refusals.settle()

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                sock, peer = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # a connection that is gone already, or no file descriptor left
                self.refusals.note("unknown:0", PeerLost(f"cannot be accepted: {error.strerror or error}"))
                self._crowd_out([guest for guest in self._guests if not guest.known] or list(self._guests))
                time.sleep(0.01)  # the listener stays readable: do not spin
                return
            host, port = peer[:2]
            try:
                connection = Connection(sock, f"peer at {host}:{port}", _HELLO_LIMITS, trusted="exchange-client-ca")
            except OSError:  # reset before we looked at it
                sock.close()
                continue
            self._make_room(known=False, places=self._max_pending - 1)
            deadline = time.monotonic() + self._handshake_timeout_s
            guest = _Guest(connection, host, port, network_of(host), deadline)
            guest.steps = self._greet(guest)
            self._guests[guest] = None
            self._selector.register(sock, selectors.EVENT_READ, guest)
            self._advance(guest)  # an honest Hello follows the connection at once and is often here already

    def _greet(self, guest: _Guest) -> Steps[Hello | None]:
        """Return the valid `Hello`, or None after the guest has been turned away."""
        connection, context = guest.connection, self.context
        try:
            with translated(connection.peer, "its handshake", connection.trusted):
                if context is not None:
                    guest.known = self._tickets.knows((yield from connection.peeking()))
                    connection.sock = context.wrap_socket(
                        connection.sock, server_side=True, do_handshake_on_connect=False
                    )
                    yield from connection.handshake()
                    guest.known = guest.known or context.verify_mode == ssl.CERT_REQUIRED
                frame = yield from connection.receiving(Expectation(Hello))
            if not isinstance(frame.message, Hello):
                raise ProtocolError(f"{connection.peer}: expected Hello, received {type(frame.message).__name__}")
            self._tickets.redeem(frame.message)
            return frame.message
        except PslError as error:
            self.refusals.note(guest.address, error)
            guest.turned_away = True
            guest.deadline = min(guest.deadline, time.monotonic() + _DRAIN_S)
            reason = _REFUSAL if isinstance(error, AuthenticationError) else f"refused: {error}"
            with suppress(OSError, PslError):
                yield from connection.sending(Frame(Abort(reason)))  # not where TLS failed: its alert is the reason
            with suppress(OSError):
                connection.sock.shutdown(socket.SHUT_WR)
                # Closing with unread bytes would reset the connection, and the peer might never read the
                # reason.
                yield from connection.draining()
            return None

    def _advance(self, guest: _Guest) -> None:
        assert guest.steps is not None
        known = guest.known
        try:
            wanted = next(guest.steps)
        except StopIteration as end:
            self._drop(guest, None, close=end.value is None)
            if end.value is not None:
                self._admit(guest, end.value)
        except Exception:  # a defect of ours must not close the gate for everybody
            log.exception("the greeting of %s failed", guest.address)
            self._drop(guest, None)
        else:
            if guest.known and not known:
                self._make_room(known=True, places=self._max_pending)
            if guest not in self._guests:
                return
            events = selectors.EVENT_WRITE if wanted == select.POLLOUT else selectors.EVENT_READ
            self._selector.modify(guest.connection.sock, events, guest)

    def _admit(self, guest: _Guest, hello: Hello) -> None:
        try:
            self._let_in(guest.connection, hello)
        except Exception:  # such as no file descriptor left for its worker
            log.exception("%s could not be let in", guest.address)
            guest.connection.close()

    def _make_room(self, *, known: bool, places: int) -> None:
        """Drop guests of one kind, known or strangers, until they fit into the places."""
        while len(crowd := [guest for guest in self._guests if guest.known == known]) > places:
            self._crowd_out(crowd)

    def _crowd_out(self, crowd: list[_Guest]) -> None:
        """Drop one of the busiest network's busiest host: the oldest silent or turned away one, else the oldest."""
        for of in (attrgetter("network"), attrgetter("host")):
            counts = Counter(map(of, crowd))
            most = max(counts.values(), default=0)
            crowd = [guest for guest in crowd if counts[of(guest)] == most]
        idle = (guest for guest in crowd if guest.turned_away or not guest.connection.heard)
        victim = next(idle, None) or next(iter(crowd), None)
        if victim is not None:
            self._drop(victim, PeerLost("crowded out by newer connections before its Hello"))

    def _drop(self, guest: _Guest, error: PslError | None, *, close: bool = True) -> None:
        del self._guests[guest]
        self._selector.unregister(guest.connection.sock)
        if error is not None and not guest.turned_away:
            self.refusals.note(guest.address, error)
        if close:
            guest.connection.close()
