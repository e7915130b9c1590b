"""psl doctor: what it says of a SuperLink and of the exchange, over real sockets with real TLS."""

import email.utils
import socket
import ssl
import threading
import time

import pytest

from psl_flower.doctor import network
from tests.authority import DAY, NOW, Authority
from tests.unit.doctor_support import levels, only_failed


@pytest.fixture
def superlink():
    """Return what serves HTTP over TLS with a certificate, at a clock that may be off, and gives its address."""
    listeners = []

    def serve(paths, clock_s=0.0):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*paths)
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def answer():
            connection, _ = listener.accept()
            try:
                with connection, context.wrap_socket(connection, server_side=True) as sock:
                    sock.recv(4096)
                    date = email.utils.formatdate(time.time() + clock_s, usegmt=True)
                    sock.sendall(f"HTTP/1.1 404 Not Found\r\ndate: {date}\r\n\r\n".encode())
            except OSError:
                pass  # the client refused the certificate

        threading.Thread(target=answer, daemon=True).start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield serve
    for listener in listeners:
        listener.close()


def test_superlink_that_answers(authority, superlink):
    found = network.check_superlink(superlink(authority.issue("server")), authority.path)
    assert [(f.level, f.what) for f in found] == [("ok", "superlink"), ("ok", "clock")]


@pytest.mark.parametrize(("clock_s", "level"), [(-60, "failed"), (-3.5, "warning"), (60, "warning"), (600, "failed")])
def test_clock(authority, superlink, clock_s, level):
    """The SuperLink's clock is ahead of ours by `clock_s`; it refuses what comes from its future sooner."""
    found = network.check_superlink(superlink(authority.issue("server"), clock_s), authority.path)
    assert (found[-1].what, found[-1].level) == ("clock", level)
    assert ("ahead" if clock_s < 0 else "behind") in found[-1].found


def test_superlink_with_a_certificate_that_is_refused(authority, superlink, tmp_path):
    address = superlink(authority.issue("other", hosts=("lower.example",)))
    assert "mismatch" in only_failed(network.check_superlink(address, authority.path))
    address = superlink(authority.issue("old", NOW - 9 * DAY, NOW - DAY))
    assert "expired" in only_failed(network.check_superlink(address, authority.path))
    address = superlink(authority.issue("server"))
    assert "refused" in only_failed(network.check_superlink(address, Authority(tmp_path, "stranger").path))
    assert "cannot be used" in only_failed(network.check_superlink(address, tmp_path / "missing.crt"))


def test_superlink_that_is_not_there(closed_port, authority):
    assert "no process listens on this port" in only_failed(network.check_superlink(closed_port, authority.path))
    assert "not HOST:PORT" in only_failed(network.check_superlink("lower.example", authority.path))


def test_superlink_without_tls(authority):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        found = network.check_superlink(f"127.0.0.1:{listener.getsockname()[1]}", authority.path)
    assert "does not speak TLS" in only_failed(found)


def test_exchange(closed_port):
    """The endpoint listens only during a run; what matters is that the way to it is open."""
    assert levels(network.check_exchange(closed_port)) == ["ok"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        assert "something listens" in network.check_exchange(address)[0].found
        assert "cannot listen" in only_failed(network.check_exchange_port(address))
    assert levels(network.check_exchange_port("127.0.0.1:47113")) == ["ok"]
    assert "cannot listen" in only_failed(network.check_exchange_port("192.0.2.1:47113"))


def test_address_that_does_not_answer(monkeypatch):
    """A full backlog drops what comes, as a firewall does."""
    monkeypatch.setattr(network, "TIMEOUT_S", 0.2)
    with socket.socket() as listener, socket.socket() as one, socket.socket() as two:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for sock in (one, two):
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        found = network.check_exchange(f"127.0.0.1:{listener.getsockname()[1]}")
    assert "no answer within 0.2 s" in only_failed(found)


@pytest.mark.parametrize("address", ["", "host", "host:", ":80", "host:0", "host:65536", "host:x"])
def test_addresses_that_are_none(address):
    assert network.split_address(address) is None


@pytest.mark.parametrize("check", [network.check_exchange, lambda address: network.check_superlink(address, None)])
@pytest.mark.parametrize("address", ["a..b:443", f"{'x' * 64}.example:443"])
def test_a_host_that_no_name_service_is_asked_for(check, address):
    assert "the name is not known here" in only_failed(check(address))


def test_a_port_of_a_host_that_is_none():
    assert "cannot listen there: encoding with" in only_failed(network.check_exchange_port("a..b:443"))


def test_addresses():
    assert network.split_address("lower.example:9092") == ("lower.example", 9092)
    assert network.split_address("[2001:db8::1]:9092") == ("2001:db8::1", 9092)
