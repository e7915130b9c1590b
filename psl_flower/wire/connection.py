"""One framed connection over a TCP or TLS socket, with a deadline on every wait.

Reading and writing are generators that yield what they wait for (`select.POLLIN` or `POLLOUT`) whenever the
socket would block. One thread can so drive a single connection to its end (`Connection.run`), or a selector
many half-open ones (the endpoint's gate); the protocol is written once. Only the thread that runs a
connection touches its socket, which OpenSSL needs; another thread interrupts it through a wake-up descriptor.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from psl_flower.errors import AuthenticationError, PeerLost, ProtocolError
from psl_flower.wire import tls
from psl_flower.wire.frames import (
    HEADER_BYTES,
    Expectation,
    Frame,
    Limits,
    encode_frame,
    parse_header,
    parse_metadata,
    parse_payload,
    payload_buffer,
)

T = TypeVar("T")
Steps = Generator[int, None, T]

# A peer whose machine vanished is noticed after 10 + 3 * 5 s, also while it is thought to compute.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
# Keepalive is silent while data is under way to a machine that vanished; then the system sends it again, for a quarter
# of an hour. Three retransmissions take a second or two, in which a bad link has delivered what it lost; if nothing is
# acknowledged for this long after that, the peer is lost. One that is only busy, or stopped, still acknowledges.
# (TCP_USER_TIMEOUT would not do: it would also end the connection to a peer that does not read for this long.)
_SOME_RETRANSMITS = 3
_UNACKNOWLEDGED_S = 30.0
_LOOK_EVERY_S = 5.0
# More than the first words of TLS have.
_PEEK_BYTES = 4096


class Interrupted(Exception):
    """Another thread asked this connection's thread to stop waiting."""


class Connection:
    """A socket that carries frames.

    Parameters
    ----------
    sock : socket.socket
        Connected; an `ssl.SSLSocket` may still have its handshake ahead (`handshake`). Made non-blocking;
        owned. May be wrapped in TLS later.
    peer : str
        The peer's name in errors; may be changed.
    limits : Limits
        Most bytes a received frame may declare.
    trusted : str
        The authority of the peer's certificate, as an error names it.

    Attributes
    ----------
    bytes_sent, bytes_received : int
        Whole frames, header and metadata included, TLS records not.
    heard : bool
        Whether the peer has sent anything yet.
    """

    def __init__(self, sock: socket.socket, peer: str, limits: Limits, trusted: str = "") -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE.items():
            if hasattr(socket, option):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self.sock = sock
        self.peer = peer
        self.limits = limits
        self.trusted = trusted
        self.bytes_sent = 0
        self.bytes_received = 0
        self.heard = False
        self._unacknowledged_since: float | None = None
        self._wake_fd: int | None = None
        self._poller = select.poll()
        self._between_frames = True

    def watch(self, wake_fd: int) -> None:
        """Let `wake_fd`, which stays the caller's, interrupt every wait of `run` while it is readable."""
        self._wake_fd = wake_fd
        self._poller.register(wake_fd, select.POLLIN)

    # The generators.

    def peeking(self) -> Steps[bytes]:
        """Peek at the first bytes, up to 4,096, without consuming them; for a socket without TLS."""
        while True:
            try:
                first = self.sock.recv(_PEEK_BYTES, socket.MSG_PEEK)
            except BlockingIOError:
                yield select.POLLIN
                continue
            if not first:
                raise PeerLost(f"{self.peer} closed the connection")
            self.heard = True
            return first

    def handshake(self) -> Steps[None]:
        """Do the TLS handshake, if there is TLS."""
        if isinstance(self.sock, ssl.SSLSocket):
            while True:
                try:
                    return self.sock.do_handshake()
                except ssl.SSLWantReadError:
                    yield select.POLLIN
                    self.heard = True
                except ssl.SSLWantWriteError:
                    yield select.POLLOUT

    def sending(self, frame: Frame) -> Steps[None]:
        """Encode and send `frame`; errors as `encode_frame`."""
        buffers = encode_frame(frame.message, frame.tensors, frame.codec)
        total_bytes = sum(buffer.nbytes for buffer in buffers)
        self._between_frames = False
        while buffers:
            try:
                sent = self._send_some(buffers)
            except (BlockingIOError, ssl.SSLWantWriteError):
                yield select.POLLOUT
            except ssl.SSLWantReadError:
                yield select.POLLIN
            else:
                while buffers and sent >= buffers[0].nbytes:
                    sent -= buffers.pop(0).nbytes
                if sent:
                    buffers[0] = buffers[0][sent:]
        self._between_frames = True
        self.bytes_sent += total_bytes

    def receiving(self, expect: Expectation) -> Steps[Frame]:
        """Receive one frame; errors as `parse_header`, `parse_metadata` and `parse_payload`."""
        start = bytearray(HEADER_BYTES)
        yield from self._fill(memoryview(start))
        header = parse_header(start, self.limits, self.peer)
        metadata = bytearray(header.metadata_bytes)
        yield from self._fill(memoryview(metadata))
        parsed = parse_metadata(metadata, header, expect, self.peer)
        payload = payload_buffer(header.payload_bytes)
        yield from self._fill(payload)
        self.bytes_received += HEADER_BYTES + header.metadata_bytes + header.payload_bytes
        return parse_payload(payload, parsed, expect, self.peer)

    def draining(self) -> Steps[None]:
        """Read and discard until the peer closes."""
        while True:
            try:
                if not self.sock.recv(65_536):
                    return
            except ssl.SSLWantWriteError:
                yield select.POLLOUT
                continue
            except (BlockingIOError, ssl.SSLWantReadError):
                pass
            yield select.POLLIN  # also after data, so that an endless sender cannot hold the thread

    def _send_some(self, buffers: list[memoryview]) -> int:
        if isinstance(self.sock, ssl.SSLSocket):
            return self.sock.send(buffers[0])
        return self.sock.sendmsg(buffers)

    def _fill(self, view: memoryview) -> Steps[None]:
        while view.nbytes:
            try:
                received = self.sock.recv_into(view)
            except (BlockingIOError, ssl.SSLWantReadError):
                yield select.POLLIN
            except ssl.SSLWantWriteError:
                yield select.POLLOUT
            else:
                if not received:
                    raise PeerLost(f"{self.peer} closed the connection")
                self.heard = True
                view = view[received:]

    # For a thread with one connection.

    def run(self, steps: Steps[T], deadline: float, doing: str) -> T:
        """Drive `steps` to its end.

        The deadline is on the clock of `time.monotonic`; `doing` is the awaited event, as an error names it.

        Raises
        ------
        PeerLost
            The connection broke, or the deadline passed.
        Interrupted
            The wake-up descriptor became readable.
        """
        self._unacknowledged_since = None
        with translated(self.peer, doing, self.trusted):
            while True:
                try:
                    wanted = next(steps)
                except StopIteration as end:
                    result: T = end.value
                    return result
                self._wait(wanted, deadline, doing)

    def send(self, frame: Frame, deadline: float) -> None:
        """Send one frame; errors as `sending` and `run`."""
        self.run(self.sending(frame), deadline, f"sending {type(frame.message).__name__}")

    def receive(self, expect: Expectation, deadline: float) -> Frame:
        """Receive one frame; errors as `receiving` and `run`."""
        return self.run(self.receiving(expect), deadline, "waiting for its answer")

    def last_words(self, expect: Expectation, linger_s: float = 0.2) -> Frame | None:
        """Return the frame, if any, that a peer sent before it closed the connection."""
        with suppress(ProtocolError, OSError):
            return self.receive(expect, time.monotonic() + linger_s)
        return None

    def part(self, frame: Frame, linger_s: float = 0.2) -> None:
        """Send a last frame if the connection is between frames, waiting at most `linger_s`; then close."""
        if self._wake_fd is not None:
            self._poller.unregister(self._wake_fd)
            self._wake_fd = None
        if self._between_frames:
            with suppress(ProtocolError, Interrupted):
                self.send(frame, time.monotonic() + linger_s)
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
        self.close()

    def close(self) -> None:
        """Close the socket; never raises."""
        with suppress(OSError):
            self.sock.close()

    def _wait(self, wanted: int, deadline: float, doing: str) -> None:
        self._poller.register(self.sock, wanted)
        left_s = min(deadline - time.monotonic(), _LOOK_EVERY_S)
        ready = self._poller.poll(left_s * 1000) if left_s > 0 else []
        if any(fd == self._wake_fd for fd, _ in ready):
            raise Interrupted
        if not ready and time.monotonic() >= deadline:
            raise PeerLost(f"{self.peer}: the deadline passed while {doing}")
        if not ready:
            self._check_acknowledged(doing)

    def _check_acknowledged(self, doing: str) -> None:
        """Raise PeerLost if the peer's machine has acknowledged nothing for too long, though data is under way."""
        now = time.monotonic()
        if self._retransmits() < _SOME_RETRANSMITS:
            self._unacknowledged_since = None
        elif self._unacknowledged_since is None:
            self._unacknowledged_since = now
        elif now - self._unacknowledged_since >= _UNACKNOWLEDGED_S:
            raise PeerLost(f"{self.peer}: its machine acknowledges nothing for {_UNACKNOWLEDGED_S:g} s, while {doing}")

    def _retransmits(self) -> int:
        """Return the retransmissions of the oldest unacknowledged data; 0 if the system does not report them."""
        if not hasattr(socket, "TCP_INFO"):
            return 0
        # struct tcp_info of linux/tcp.h: tcpi_retransmits is its third byte.
        return self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[2]


@contextmanager
def translated(peer: str, doing: str, trusted: str = "") -> Iterator[None]:
    """Turn what the operating system and OpenSSL raise into this project's errors."""
    try:
        yield
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError) as error:
        raise PeerLost(f"{peer} closed the connection while {doing}") from error
    except ssl.SSLError as error:
        if complaint := tls.complaint(error, trusted):
            raise AuthenticationError(f"{peer}: {complaint}") from error
        raise ProtocolError(f"{peer}: TLS failed while {doing}: {error.reason or error}") from error
    except TimeoutError as error:
        raise PeerLost(f"{peer}: the deadline passed while {doing}") from error
    except OSError as error:
        raise PeerLost(f"{peer}: the connection broke while {doing}: {error.strerror or error}") from error
