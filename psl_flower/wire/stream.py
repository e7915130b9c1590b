"""The Upper's end of a stream: one connection to the Lower's exchange endpoint, for one round.

with connect(host, port, hello, cafile_pem=certificate, timeout_s=30) as stream:
    turn = stream.receive(Expectation((Step, Finish)), timeout_s=600)
    stream.send(Smashed(turn.message.plan.id), [smashed], "bfloat16", timeout_s=60)
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Mapping, Sequence

from torch import Tensor

from psl_flower.errors import AuthenticationError, ConfigError, PeerLost
from psl_flower.text import printable
from psl_flower.wire import tls
from psl_flower.wire.connection import Connection, translated
from psl_flower.wire.frames import Expectation, Frame, Limits, raise_ending
from psl_flower.wire.messages import Abort, Failed, Hello, Message, Welcome
from psl_flower.wire.tickets import knock
from psl_flower.wire.tls import NodeTls

# The endpoint drops the oldest silent connection when strangers crowd it; an honest node then knocks again.
_ATTEMPTS = 5
_FIRST_PAUSE_S = 0.05
# Where nothing comes back at all, five attempts end within the Lower's own wait, and the node can be asked again.
_CONNECT_S = 30.0


class UpperStream:
    """An accepted stream to the Lower. Not for use by several threads at once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        connection.bytes_sent = connection.bytes_received = 0  # both transports count exchanged frames, not greetings

    @property
    def bytes_up(self) -> int:
        """Bytes of whole frames sent since the greeting."""
        return self._connection.bytes_sent

    @property
    def bytes_down(self) -> int:
        """Bytes of whole frames received since the greeting."""
        return self._connection.bytes_received

    def receive(self, expect: Expectation, timeout_s: float) -> Frame:
        """Wait for the Lower's next frame, at most `timeout_s` seconds for all of it.

        Raises
        ------
        ProtocolError
            The Lower ended the exchange (its reason is given) or sent something not expected.
        PeerLost
            The stream ended, or the time is over.
        WireError
            A malformed frame.
        """
        frame = self._connection.receive(expect, time.monotonic() + timeout_s)
        raise_ending(frame, self._connection.peer)
        return frame

    def send(
        self, message: Message, tensors: Sequence[Tensor] = (), codec: str = "float32", *, timeout_s: float
    ) -> None:
        """Send one frame, as `Frame` describes it, in at most `timeout_s` seconds.

        Raises
        ------
        ProtocolError
            The Lower ended the exchange meanwhile; its reason is given.
        PeerLost
            The stream ended, or the time is over.
        WireError, TrainingError
            The frame cannot be encoded.
        """
        try:
            self._connection.send(Frame(message, tuple(tensors), codec), time.monotonic() + timeout_s)
        except PeerLost:
            word = self._connection.last_words(Expectation(Abort))
            if word is not None:
                raise_ending(word, self._connection.peer)
            raise

    def fail(self, reason: Failed) -> None:
        """Tell the Lower, as far as that is possible, why this Upper stops; then close. Never raises."""
        self._connection.part(Frame(reason), linger_s=1.0)

    def fileno(self) -> int:
        """Return the socket's file descriptor."""
        return self._connection.sock.fileno()

    def close(self) -> None:
        """Close the stream; never raises."""
        self._connection.close()

    def __enter__(self) -> UpperStream:
        """Return this object."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Close."""
        self.close()


def heard(streams: Mapping[int, UpperStream], timeout_s: float) -> list[int]:
    """Wait until one of several streams has something to read; return the numbers of those that have, ascending.

    A frame is read to its end, and the Lower sends no other before it is answered, so nothing waits in TLS's buffers.

    Raises
    ------
    PeerLost
        Nothing has come within `timeout_s` seconds.
    """
    poller, numbers = select.poll(), {stream.fileno(): m for m, stream in streams.items()}
    for descriptor in numbers:
        poller.register(descriptor, select.POLLIN)
    found = poller.poll(timeout_s * 1000)
    if not found:
        raise PeerLost(f"the Lower: the deadline passed while waiting on {len(streams)} streams")
    return sorted(numbers[descriptor] for descriptor, _ in found)


def connect(
    host: str,
    port: int,
    hello: Hello,
    *,
    cafile_pem: str | None,
    timeout_s: float,
    limits: Limits | None = None,
    own: NodeTls | None = None,
) -> UpperStream:
    """Open a stream to the Lower and be accepted.

    Parameters
    ----------
    host, port : str and int
        The endpoint's address, as the Lower announced it.
    hello : Hello
        Who we are, with the one-time token.
    cafile_pem : str or None
        The endpoint's certificate as the run announced it, PEM; nothing else is trusted, unless `own` names
        authorities. None: plaintext.
    timeout_s : float
        Longest wait, in seconds, for all attempts together.
    limits : Limits, optional
        Most bytes that a frame from the Lower may declare.
    own : NodeTls, optional
        This node's own TLS settings; by default none.

    Raises
    ------
    ConfigError
        Plaintext that `own` does not permit, or an unreadable certificate.
    AuthenticationError
        The Lower refused us, or its certificate is refused here.
    PeerLost
        Nothing answers, or the time is over.
    ProtocolError, WireError
        The peer does not use this protocol.
    """
    own = own or NodeTls()
    tls.check_plaintext(host, encrypted=cafile_pem is not None, allow_plaintext=own.allow_plaintext)
    if own.authority_pem and cafile_pem is None:
        raise ConfigError(f"the run streams in plaintext to {host}, but this node has {own.authority}: drop one")
    context = tls.client_context(cafile_pem, own) if cafile_pem is not None else None
    if context is not None:
        context.set_alpn_protocols([knock(hello.token)])
    announced = f"the run announced one that is {tls.dates(cafile_pem)}" if cafile_pem is not None else ""
    trusted = own.authority if own.authority_pem else "the one that this run announced"
    deadline = time.monotonic() + timeout_s
    pause_s = _FIRST_PAUSE_S
    peer, unanswered = f"Lower at {host}:{port}", None
    for attempt in range(1, _ATTEMPTS + 1):
        greeted = False
        try:
            connection = _open(host, port, peer, context, trusted, announced, deadline, limits or Limits())
            greeted = True
            return _greet(connection, hello, peer, deadline)
        except PeerLost as error:
            unanswered = error if greeted else unanswered
            if attempt == _ATTEMPTS or time.monotonic() + pause_s >= deadline:
                raise
        except AuthenticationError:
            if greeted and unanswered is not None:
                # The unanswered Hello may have used up the token: report that first failure.
                raise unanswered from None
            raise
        time.sleep(pause_s)
        pause_s *= 2
    raise AssertionError("unreachable: the last attempt returns or raises")


def _open(
    host: str,
    port: int,
    peer: str,
    context: ssl.SSLContext | None,
    trusted: str,
    announced: str,
    deadline: float,
    limits: Limits,
) -> Connection:
    with translated(peer, "connecting"):
        sock = socket.create_connection((host, port), timeout=max(0.001, min(_CONNECT_S, deadline - time.monotonic())))
        try:
            if context is not None:
                sock.setblocking(False)
                sock = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
            connection = Connection(sock, peer, limits, trusted)
        except BaseException:
            sock.close()
            raise
    try:
        try:
            connection.run(connection.handshake(), deadline, "the TLS handshake")
        except AuthenticationError as error:
            raise AuthenticationError(f"{error} ({announced})") from error
        return connection
    except BaseException:
        connection.close()
        raise


def _greet(connection: Connection, hello: Hello, peer: str, deadline: float) -> UpperStream:
    try:
        connection.send(Frame(hello), deadline)
        answer = connection.receive(Expectation(Welcome), deadline)
        if isinstance(answer.message, Abort):
            raise AuthenticationError(f"{peer}: {printable(answer.message.reason)}")
        return UpperStream(connection)
    except BaseException:
        connection.close()
        raise
