"""Checks the network: the SuperLink over TLS, the exchange endpoint, and the clock by the SuperLink's answer."""

from __future__ import annotations

import email.utils
import socket
import ssl
import time
from pathlib import Path

from psl_flower.system.findings import Finding, failed, ok, warning

TIMEOUT_S = 5.0
# A node's signed requests may be 5 s from the SuperLink's future and 305 s old (Flower's routers/fleet/node_auth.py).
AHEAD_S, BEHIND_S = 5.0, 300.0
_NOTABLE_S = 2.0
_ANSWER_BYTES = 65_536


def split_address(address: str) -> tuple[str, int] | None:
    """Return host and port of "HOST:PORT" or "[IPV6]:PORT"; None if it is neither."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        return None
    return host.removeprefix("[").removesuffix("]"), int(port)


def check_superlink(address: str, authority: Path | None) -> list[Finding]:
    """Return findings about the SuperLink at HOST:PORT: reachable, its certificate accepted, its clock and ours.

    Parameters
    ----------
    address : str
        As `flower-supernode --superlink` takes it.
    authority : Path, optional
        As its ``--root-certificates``; None for what the system trusts.
    """
    what = "superlink"
    parts = split_address(address)
    if parts is None:
        return [failed(what, f"{address!r} is not HOST:PORT", "give it as flower-supernode --superlink takes it")]
    try:
        context = ssl.create_default_context(cafile=str(authority) if authority else None)
    except (OSError, ssl.SSLError) as error:
        do = "give the ca.crt of the authority that signed the SuperLink's certificate"
        return [failed(what, f"{authority}: cannot be used as authority: {error}", do)]
    try:
        with (
            socket.create_connection(parts, TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=parts[0]) as sock,
        ):
            findings = [ok(what, f"{address}: answers with an accepted certificate ({sock.version()})")]
            clock = _clock(sock, address)
            return [*findings, clock] if clock else findings
    except ssl.SSLCertVerificationError as error:
        return [failed(what, f"{address}: its certificate is refused: {error.verify_message}", _advice(error))]
    except ssl.SSLError as error:
        do = "start it with --ssl-certfile, --ssl-keyfile and --ssl-ca-certfile, or correct the port"
        return [failed(what, f"{address}: does not speak TLS ({error.reason or error})", do)]
    except (OSError, UnicodeError) as error:
        return [_unreachable(what, address, error)]


def check_exchange(address: str) -> list[Finding]:
    """Return a finding about the way to the exchange endpoint at HOST:PORT, which listens only during a run."""
    what = "exchange"
    parts = split_address(address)
    if parts is None:
        return [failed(what, f"{address!r} is not HOST:PORT", "give exchange-advertise and exchange-port of the run")]
    try:
        socket.create_connection(parts, TIMEOUT_S).close()
    except ConnectionRefusedError:
        return [ok(what, f"{address}: reachable; nothing is listening (normal between runs)")]
    except (OSError, UnicodeError) as error:
        return [_unreachable(what, address, error)]
    return [ok(what, f"{address}: reached, and something listens there")]


def check_exchange_port(address: str) -> list[Finding]:
    """Return a finding about HOST:PORT of this machine, on which the exchange endpoint is to listen."""
    what = "exchange port"
    parts = split_address(address)
    if parts is None:
        return [failed(what, f"{address!r} is not HOST:PORT", "give exchange-host and exchange-port of the run")]
    try:
        family = socket.getaddrinfo(*parts, type=socket.SOCK_STREAM)[0][0]
        socket.create_server(parts, family=family).close()
    except (OSError, UnicodeError) as error:
        do = "choose another exchange-port, or an exchange-host of this machine; is a run active?"
        return [failed(what, f"{address}: cannot listen there: {_reason(error)}", do)]
    return [ok(what, f"{address}: free to listen on")]


def _clock(sock: ssl.SSLSocket, address: str) -> Finding | None:
    """Compare the clocks by the Date line of the SuperLink's answer; None if it gives none."""
    sock.sendall(f"HEAD / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode("ascii", "replace"))
    answer = sock.recv(_ANSWER_BYTES).decode("latin-1")
    dates = [line[5:].strip() for line in answer.splitlines() if line.lower().startswith("date:")]
    try:
        # Whole seconds, cut off: on average the time is half a second later.
        peer = email.utils.parsedate_to_datetime(dates[0]).timestamp() + 0.5
    except (IndexError, ValueError):
        return None
    ahead_s = time.time() - peer
    said = f"{abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} the SuperLink's"
    do = "let both machines set their clocks by NTP (timedatectl set-ntp true)"
    if not -BEHIND_S < ahead_s < AHEAD_S:
        return failed("clock", f"{said}: it refuses this node", do)
    if abs(ahead_s) > _NOTABLE_S:
        return warning("clock", said, do)
    return ok("clock", "as the SuperLink's, to two seconds")


def _advice(error: ssl.SSLCertVerificationError) -> str:
    message = error.verify_message.lower()
    if "mismatch" in message or "not valid for" in message:
        return "make a certificate for this address (deploy/make-certificates.sh), or connect to one that it names"
    if "expired" in message:
        return "renew the SuperLink's certificate (deploy/make-certificates.sh) and restart it; check this clock, too"
    if "not yet valid" in message:
        return "set this machine's clock"
    return "give the ca.crt of the authority that signed it as --root-certificates"


def _unreachable(what: str, address: str, error: OSError | UnicodeError) -> Finding:
    # What is no name at all is refused before anybody is asked for it.
    if isinstance(error, socket.gaierror | UnicodeError):
        return failed(what, f"{address}: the name is not known here", "correct the name, or the name service")
    if isinstance(error, ConnectionRefusedError):
        return failed(
            what,
            f"{address}: the host answers, but no process listens on this port",
            "start the SuperLink, or correct the port",
        )
    if isinstance(error, TimeoutError):
        do = "let firewalls pass outgoing TCP to it, on this side and on the other; is the machine up?"
        return failed(what, f"{address}: no answer within {TIMEOUT_S:g} s", do)
    return failed(what, f"{address}: {_reason(error)}", "check cable, route and address")


def _reason(error: OSError | UnicodeError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
