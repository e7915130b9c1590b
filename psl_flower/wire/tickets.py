"""One-time tickets, each of which lets one Upper open a stream to the Lower.

The Lower issues one ticket for each Upper; its token reaches the node inside a Flower message. A `Hello` must
equal the ticket in every field. The token is consumed by the first `Hello` that does, and by no other.
"""

from __future__ import annotations

import hmac
import re
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from psl_flower.errors import AuthenticationError
from psl_flower.text import cut
from psl_flower.wire.messages import TOKEN_BYTES, Hello, party_names

_KNOCK = re.compile(rb"psl-knock-[0-9a-f]{64}")


def knock(token: bytes) -> str:
    """Return a node's proof, sent before the connection is encrypted, that it holds a token.

    It travels as an application protocol (ALPN) in the first words of TLS. The token does not follow from it: those who
    read it on the way can only show it again, which gets them a place in the endpoint's queue and nothing else.
    """
    return f"psl-knock-{hmac.digest(token, b'psl-flower knock', 'sha256').hex()}"


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a `Hello` must say; `num_samples` None is not checked; the token is hidden from `repr`."""

    upper: int
    node: int
    positions: tuple[int, ...]
    num_samples: int | None
    dataset: str
    token: bytes = field(repr=False)


class TicketBook:
    """The valid tickets of one run, at most one for each Upper. Safe for use by several threads."""

    def __init__(self, run: str) -> None:
        self.run = run
        self._lock = threading.Lock()
        self._tickets: dict[int, Ticket] = {}

    def issue(self, upper: int, node: int, positions: Sequence[int], num_samples: int | None, dataset: str) -> bytes:
        """Return the token, 32 random bytes, of a new ticket; an earlier ticket of this Upper is void."""
        ticket = Ticket(upper, node, tuple(positions), num_samples, dataset, secrets.token_bytes(TOKEN_BYTES))
        with self._lock:
            self._tickets[upper] = ticket
        return ticket.token

    def knows(self, first_bytes: bytes) -> bool:
        """Check if a connection's first bytes hold the knock of a valid ticket."""
        with self._lock:
            wanted = [knock(ticket.token).encode() for ticket in self._tickets.values()]
        shown = _KNOCK.search(first_bytes)
        return shown is not None and any(hmac.compare_digest(shown[0], each) for each in wanted)

    def redeem(self, hello: Hello) -> None:
        """Consume the ticket that `hello` presents.

        Raises
        ------
        AuthenticationError
            It names no valid ticket, or differs from it; the ticket stays valid. The text is for the Lower's
            own log.
        """
        with self._lock:
            ticket = self._tickets.get(hello.upper)
            # The token comes first: without it a stranger learns nothing about the other fields, not even
            # by time.
            expected = ticket.token if ticket is not None else bytes(TOKEN_BYTES)
            if not hmac.compare_digest(expected, hello.token) or ticket is None:
                raise AuthenticationError(f"{party_names([hello.upper])}: its token is not that of a valid ticket")
            checks: list[tuple[str, object, object]] = [
                ("run", self.run, hello.run),
                ("node", ticket.node, hello.node),
                ("positions", ticket.positions, hello.positions),
                ("data set", ticket.dataset, hello.dataset),
            ]
            if ticket.num_samples is not None:
                checks.append(("number of samples", ticket.num_samples, hello.num_samples))
            for what, wanted, got in checks:
                if wanted != got:
                    shown = f"expected {cut(repr(wanted), 100)}, received {cut(repr(got), 100)}"
                    raise AuthenticationError(f"{party_names([hello.upper])}: {what}: {shown}")
            del self._tickets[hello.upper]
