"""TLS of the streams with an operator's certificates, mutual TLS, and what is said of each that is wrong."""

import datetime
import logging
import time
from pathlib import Path

import pytest
import torch
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID
from flwr.app import Context, RecordDict

from psl_flower.config.wire import WireSettings
from psl_flower.errors import AuthenticationError, ConfigError
from psl_flower.flower.link import server_identity
from psl_flower.flower.node_config import own_tls
from psl_flower.wire.credentials import endpoint_identity, node_tls
from psl_flower.wire.endpoint import ExchangeEndpoint
from psl_flower.wire.frames import Expectation, Frame
from psl_flower.wire.messages import Hello, Smashed, Step
from psl_flower.wire.plan import StepId
from psl_flower.wire.stream import connect
from psl_flower.wire.tls import NodeTls, TlsIdentity
from tests.authority import DAY, NOW, Authority

RUN = "run-1"
HOST = "127.0.0.1"
EXPECT = Expectation(Smashed, "float32", (2, 3), StepId(0, 0))


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("other"), "other")


@pytest.fixture
def endpoint(authority):
    """Return an endpoint with the operator's certificate."""
    with ExchangeEndpoint(HOST, run=RUN, tls=operators(authority), handshake_timeout_s=5) as made:
        yield made


def operators(authority, **options):
    cert, key = authority.issue("lower", usage=ExtendedKeyUsageOID.SERVER_AUTH)
    return endpoint_identity(HOST, cert=str(cert), key=str(key), **options)


def own(authority, **issued):
    """Return a node's certificate and key, as they are: unchecked, to see what the other end says of them."""
    cert, key = authority.issue("node", **{"usage": ExtendedKeyUsageOID.CLIENT_AUTH, **issued})
    return TlsIdentity(cert.read_text(), key.read_bytes())


def join(endpoint, node=None, upper=0):
    hello = Hello(RUN, 7, upper, (upper,), 50, "data", endpoint.issue_ticket(upper, 7, (upper,), 50, "data"))
    return connect(endpoint.host, endpoint.port, hello, cafile_pem=endpoint.cert_pem, timeout_s=5, own=node)


def exchange(endpoint, stream, upper=0):
    tensor = torch.randn(2, 3)
    stream.send(Smashed(StepId(0, 0)), [tensor], timeout_s=5)
    answer = endpoint.exchange({upper: Frame(Step())}, {upper: EXPECT}, timeout_s=5)[upper]
    assert torch.equal(answer.tensor, tensor)
    assert isinstance(stream.receive(Expectation(Step), timeout_s=5).message, Step)


def refused(endpoint, node=None):
    with pytest.raises(AuthenticationError) as caught:
        join(endpoint, node, upper=9).close()
    assert 9 not in endpoint.connected
    return str(caught.value)


def wait_until(true):
    """Wait for what the gate's thread does after its answer."""
    deadline = time.monotonic() + 5
    while not true() and time.monotonic() < deadline:
        time.sleep(0.005)


# Whom a node trusts


def test_a_node_goes_by_its_authority_or_by_what_was_announced(endpoint, authority, other):
    for upper, node in enumerate([node_tls(ca=str(authority.path)), None]):
        with join(endpoint, node, upper) as stream:
            endpoint.wait_for([upper], 5)
            exchange(endpoint, stream, upper)
    said = refused(endpoint, node_tls(ca=str(other.path)))
    assert f"it is not from exchange-ca {other.path}" in said and "the run announced one that is valid from" in said


def test_only_the_announced_certificate_is_pinned_not_its_authority(endpoint, authority):
    announced = endpoint.cert_pem
    endpoint.renew(operators(authority))  # of the same authority, for the same host
    endpoint.cert_pem, renewed = announced, endpoint.cert_pem
    assert "it is not from the one that this run announced" in refused(endpoint)
    endpoint.cert_pem = renewed
    join(endpoint).close()


def test_certificates_between_the_authority_and_the_endpoint(authority, tmp_path):
    between = Authority(tmp_path, "between", issuer=authority)
    cert, key = between.issue("lower")
    cert.write_bytes(cert.read_bytes() + between.path.read_bytes())
    identity = endpoint_identity(HOST, cert=str(cert), key=str(key))
    with ExchangeEndpoint(HOST, run=RUN, tls=identity) as endpoint:
        join(endpoint, node_tls(ca=str(authority.path))).close()
        join(endpoint).close()


def test_a_certificate_made_for_the_run_does_not_satisfy_an_authority(authority):
    with ExchangeEndpoint(HOST, run=RUN, tls=endpoint_identity(HOST)) as endpoint:
        assert "it is not from exchange-ca" in refused(endpoint, node_tls(ca=str(authority.path)))
        join(endpoint).close()


def test_what_a_node_says_of_the_endpoints_certificate(authority):
    wrong = {
        "it has expired": {"start": NOW - 9 * DAY, "end": NOW - DAY},
        "it is not valid yet": {"start": NOW + DAY, "end": NOW + 9 * DAY},
        "exchange-advertise must be": {"hosts": ("lower.example", "127.0.0.2")},
        "extendedKeyUsage must have serverAuth": {"usage": ExtendedKeyUsageOID.CLIENT_AUTH},
    }
    for words, issued in wrong.items():
        with ExchangeEndpoint(HOST, run=RUN, tls=own(authority, **{"usage": None, **issued})) as endpoint:
            for node in (NodeTls(), node_tls(ca=str(authority.path))):
                said = refused(endpoint, node)
                assert words in said
                if "start" in issued:
                    assert f"valid from {issued['start']:%Y-%m-%d %H:%M} to {issued['end']:%Y-%m-%d %H:%M} UTC" in said


# Mutual TLS


def test_mutual_tls(authority, other, caplog):
    identity = operators(authority, client_ca=str(authority.path))
    cert, key = authority.issue("node0", usage=ExtendedKeyUsageOID.CLIENT_AUTH, hosts=())
    honest = node_tls(ca=str(authority.path), cert=str(cert), key=str(key))
    wrong = {
        "none was shown": (NodeTls(), "it shows no certificate, which must come from exchange-client-ca"),
        "not from an authority that is trusted": (NodeTls(identity=own(other)), "it is not from exchange-client-ca"),
        "it has expired": (NodeTls(identity=own(authority, end=NOW - DAY / 2)), "it has expired"),
        "not valid for this, or not yet": (NodeTls(identity=own(authority, start=NOW + DAY)), "it is not valid yet"),
        "wrong kind": (NodeTls(identity=own(authority, usage=ExtendedKeyUsageOID.SERVER_AUTH)), "clientAuth at a node"),
    }
    with ExchangeEndpoint(HOST, run=RUN, tls=identity) as endpoint, caplog.at_level(logging.WARNING):
        for number, (told, (node, logged)) in enumerate(wrong.items()):
            assert told in refused(endpoint, node)
            wait_until(lambda: len(caplog.records) > number)  # noqa: B023
            assert logged in caplog.records[number].getMessage()
        assert endpoint.refused == {"AuthenticationError": len(wrong)}
        with join(endpoint, honest) as stream:
            endpoint.wait_for([0], 5)
            exchange(endpoint, stream)


def test_a_certificate_that_expires_during_a_run(authority):
    """Open streams go on; who comes anew is refused until the certificate is renewed."""
    end = datetime.datetime.now(datetime.UTC).replace(microsecond=0) + datetime.timedelta(seconds=3)
    cert, key = authority.issue("short", end=end)
    identity = endpoint_identity(HOST, cert=str(cert), key=str(key))
    node = node_tls(ca=str(authority.path))
    with ExchangeEndpoint(HOST, run=RUN, tls=identity) as endpoint, join(endpoint, node) as stream:
        endpoint.wait_for([0], 5)
        exchange(endpoint, stream)
        time.sleep(max(0.0, (end - datetime.datetime.now(datetime.UTC)).total_seconds()) + 1)
        exchange(endpoint, stream)
        with pytest.raises(AuthenticationError, match="it has expired: renew it"):
            join(endpoint, node, upper=1)
        with pytest.raises(ConfigError, match=f"exchange-cert: .*short.pem: expired on {end:%Y-%m-%d %H:%M} UTC; make"):
            endpoint_identity(HOST, cert=str(cert), key=str(key))  # what the next round begins with
        exchange(endpoint, stream)
        endpoint.renew(operators(authority))
        with join(endpoint, node, upper=1) as renewed:
            endpoint.wait_for([0, 1], 5)
            exchange(endpoint, renewed, upper=1)
            exchange(endpoint, stream)


# What is said at the start


def files(authority, other, folder):
    """Return wrong pairs of files by what is said of them."""
    good, key = authority.issue("good")
    text = folder / "text.pem"
    text.write_text("hello")
    protected = folder / "protected.key"
    form = (Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    protected.write_bytes(load_pem_private_key(key.read_bytes(), None).private_bytes(*form))
    return {
        f"exchange-cert: {folder}/missing.pem: cannot be read: No such file": (folder / "missing.pem", key),
        f"exchange-cert: {folder}: cannot be read: Is a directory": (folder, key),
        f"exchange-cert: {text}: holds no certificate": (text, key),
        f"exchange-key: {folder}/missing.key: cannot be read: No such file": (good, folder / "missing.key"),
        f"exchange-key: {text}: is not a private key": (good, text),
        f"exchange-key: {protected}: is not a private key without passphrase": (good, protected),
        "belongs to another certificate; give the key": (good, other.issue("foreign")[1]),
        f"old.pem: expired on {NOW - DAY / 2:%Y-%m-%d %H:%M} UTC; make a new one": authority.issue(
            "old", end=NOW - DAY / 2
        ),
        f"new.pem: is valid from {NOW + DAY:%Y-%m-%d %H:%M} UTC on; set": authority.issue("new", start=NOW + DAY),
    }


def test_files_of_the_server(authority, other, tmp_path):
    wrong = files(authority, other, tmp_path) | {
        "named.pem: is for lower.example, not for 127.0.0.1; make": authority.issue("named", hosts=["lower.example"]),
        "nameless.pem: has no subjectAltName": authority.issue("nameless", hosts=()),
        "is not for a server: its extendedKeyUsage lacks serverAuth": authority.issue(
            "node", usage=ExtendedKeyUsageOID.CLIENT_AUTH
        ),
    }
    for words, (cert, key) in wrong.items():
        with pytest.raises(ConfigError) as caught:
            endpoint_identity(HOST, cert=str(cert), key=str(key))
        assert words in str(caught.value)
    for client_ca, words in {tmp_path / "none.crt": "cannot be read", tmp_path / "text.pem": "holds no cert"}.items():
        with pytest.raises(ConfigError, match=f"^exchange-client-ca: {client_ca}: {words}"):
            endpoint_identity(HOST, client_ca=str(client_ca))


def test_files_of_a_node(authority, other, tmp_path):
    wrong = files(authority, other, tmp_path) | {
        "is not for a node: its extendedKeyUsage lacks clientAuth": authority.issue(
            "server", usage=ExtendedKeyUsageOID.SERVER_AUTH
        )
    }
    for words, (cert, key) in wrong.items():
        with pytest.raises(ConfigError) as caught:
            node_tls(cert=str(cert), key=str(key))
        assert words in str(caught.value)
    with pytest.raises(ConfigError, match=f"^exchange-ca: {tmp_path}/none.crt: cannot be read"):
        node_tls(ca=str(tmp_path / "none.crt"))
    with pytest.raises(ConfigError, match="belong together"):
        node_tls(cert="a.pem")
    with pytest.raises(ConfigError, match="contradict each other"):
        node_tls(ca=str(authority.path), allow_plaintext=True)


def test_node_config(authority):
    cert, key = map(str, authority.issue("node0", usage=ExtendedKeyUsageOID.CLIENT_AUTH))

    def of(**values):
        config = {name.replace("_", "-"): value for name, value in values.items()}
        return own_tls(Context(run_id=1, node_id=2, node_config=config, state=RecordDict(), run_config={}))

    given = of(store="s", exchange_ca=str(authority.path), exchange_cert=cert, exchange_key=key)
    assert given == node_tls(ca=str(authority.path), cert=cert, key=key)
    assert given.identity is not None and not given.allow_plaintext
    assert of(store="s") == NodeTls()
    assert of(store="s", exchange_plaintext_on_untrusted_network=True).allow_plaintext
    assert of(partition_id=0, num_partitions=4).allow_plaintext  # simulated: on the Lower's own machine
    with pytest.raises(
        ConfigError, match="^node-config exchange-plaintext-on-untrusted-network: expected true or false"
    ):
        of(store="s", exchange_plaintext_on_untrusted_network="true")
    with pytest.raises(ConfigError, match="^node-config exchange-ca: expected a text"):
        of(store="s", exchange_ca=True)


def test_a_certificate_that_will_expire_soon_is_mentioned(authority, caplog):
    cert, key = authority.issue("soon", end=NOW + 9 * DAY)
    with caplog.at_level(logging.WARNING):
        endpoint_identity(HOST, cert=str(cert), key=str(key))
    (record,) = caplog.records
    assert f"soon.pem: expires on {NOW + 9 * DAY:%Y-%m-%d}" in record.getMessage()


# When there is TLS


def test_when_streams_are_encrypted(authority):
    cert, key = map(str, authority.issue("lower"))
    plain = [
        {},
        {"exchange_host": "localhost"},
        {"exchange_host": "0.0.0.0", "exchange_advertise": "h", "exchange_plaintext_on_untrusted_network": True},
    ]
    encrypted = [
        {"exchange_host": "0.0.0.0", "exchange_advertise": HOST},
        {"exchange_advertise": "lower.example"},  # through a tunnel that begins here
        {"exchange_cert": cert, "exchange_key": key},
        {"exchange_client_ca": str(authority.path)},
    ]
    assert [server_identity(WireSettings(**settings)) for settings in plain] == [None] * len(plain)
    for settings in encrypted:
        identity = server_identity(WireSettings(**settings))
        assert identity is not None
        assert bool(identity.peers_pem) == ("exchange_client_ca" in settings)
        assert (identity.cert_pem == Path(cert).read_text()) == ("exchange_cert" in settings)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_nodes_must_be_told_an_address(host):
    with pytest.raises(ConfigError, match="^exchange-advertise: .* is every address; set the one"):
        server_identity(WireSettings(exchange_host=host))


def test_both_ends_must_ask_for_plaintext(authority):
    hello = Hello(RUN, 7, 0, (0,), 50, "data", bytes(32))
    beyond = {"host": "192.0.2.1", "port": 1, "hello": hello, "cafile_pem": None, "timeout_s": 0.1}
    with pytest.raises(ConfigError, match="exchange-plaintext-on-untrusted-network"):
        connect(**beyond)
    with pytest.raises(Exception, match=r"192\.0\.2\.1") as caught:
        connect(**beyond, own=node_tls(allow_plaintext=True))
    assert not isinstance(caught.value, ConfigError)
    with ExchangeEndpoint(HOST, run=RUN) as endpoint:
        with pytest.raises(
            ConfigError, match=f"in plaintext to 127.0.0.1, but this node has exchange-ca {authority.path}"
        ):
            join(endpoint, node_tls(ca=str(authority.path)))
        join(endpoint).close()
