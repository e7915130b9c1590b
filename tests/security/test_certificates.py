"""Mutual TLS: what a node's operator did not get from the authority opens nothing, and what he got opens no more than that."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from psl_flower.errors import AuthenticationError, ConfigError, PslError
from psl_flower.wire import stream
from psl_flower.wire.credentials import endpoint_identity, node_tls
from psl_flower.wire.endpoint import ExchangeEndpoint
from psl_flower.wire.messages import Hello
from psl_flower.wire.stream import connect
from psl_flower.wire.tls import NodeTls, TlsIdentity
from tests.authority import DAY, NOW, Authority

HOST, CLIENT, SERVER = "127.0.0.1", ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def endpoint(authority: Authority) -> Iterator[ExchangeEndpoint]:
    cert, key = authority.issue("lower", usage=SERVER)
    identity = endpoint_identity(HOST, cert=str(cert), key=str(key), client_ca=str(authority.path))
    with ExchangeEndpoint(HOST, run="run", tls=identity, handshake_timeout_s=5) as made:
        yield made


def ticket(endpoint: ExchangeEndpoint, upper: int = 0, node: int = 7) -> Hello:
    return Hello("run", node, upper, (upper,), 50, "data", endpoint.issue_ticket(upper, node, (upper,), 50, "data"))


def enter(endpoint: ExchangeEndpoint, hello: Hello, own: NodeTls) -> None:
    connect(endpoint.host, endpoint.port, hello, cafile_pem=endpoint.cert_pem, timeout_s=5, own=own).close()


def shown(paths: tuple[Path, Path], chain: str = "") -> NodeTls:
    """Return what shows a certificate as it is, unchecked by ourselves."""
    return NodeTls(identity=TlsIdentity(paths[0].read_text(), paths[1].read_bytes(), chain))


def forged(folder: Path, issuer: x509.Name, signer: ec.EllipticCurvePrivateKey | None = None) -> NodeTls:
    """Return a node's certificate in an issuer's name, signed by somebody else, or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node")]) if signer else issuer
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now - DAY).not_valid_after(now + DAY)
    made = made.add_extension(x509.ExtendedKeyUsage([CLIENT]), False)
    cert, file = folder / "forged.pem", folder / "forged.key"
    cert.write_bytes(made.sign(signer or key, hashes.SHA256()).public_bytes(Encoding.PEM))
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return shown((cert, file))


def impostors(authority: Authority, folder: Path) -> dict[str, NodeTls]:
    """Return what somebody with a good ticket, and no certificate for nodes of this authority, may show."""
    (folder / "other").mkdir()
    namesake = Authority(folder / "other", "authority")  # of the same name, with a key of its own
    node = authority.issue("node-a", usage=CLIENT)
    signs = load_pem_private_key(node[1].read_bytes(), None)
    assert isinstance(signs, ec.EllipticCurvePrivateKey)
    by_node = forged(folder, x509.load_pem_x509_certificate(node[0].read_bytes()).subject, signs)
    assert by_node.identity is not None
    chained = TlsIdentity(by_node.identity.cert_pem, by_node.identity.key, node[0].read_text())
    return {
        "none": NodeTls(),
        "self-signed": forged(folder, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node")])),
        "self-signed in the authority's name": forged(folder, authority.name),
        "of an authority of the same name": shown(namesake.issue("node", usage=CLIENT)),
        "signed by a node, which is no authority": NodeTls(identity=chained),
        "expired": shown(authority.issue("old", end=NOW - DAY / 2, usage=CLIENT)),
        "not valid yet": shown(authority.issue("new", start=NOW + DAY, usage=CLIENT)),
        "of a server": shown(authority.issue("server", usage=SERVER)),
    }


def test_without_a_nodes_certificate_a_good_ticket_lets_nobody_in(
    endpoint: ExchangeEndpoint, authority: Authority, tmp_path: Path
) -> None:
    hello = ticket(endpoint)
    for what, own in impostors(authority, tmp_path).items():
        with pytest.raises(AuthenticationError, match="refuses this end's certificate: "):
            enter(endpoint, hello, own)
        assert endpoint.connected == set(), what
    # The ticket was good all the time, and has not been used up.
    enter(endpoint, hello, shown(authority.issue("node-b", usage=CLIENT)))


def test_another_nodes_certificate_and_key_do_not_fit(authority: Authority) -> None:
    """Its certificate is public; to show it takes its key."""
    theirs, ours = authority.issue("node-a", usage=CLIENT), authority.issue("node-b", usage=CLIENT)
    with pytest.raises(ConfigError, match="belongs to another certificate"):
        node_tls(cert=str(theirs[0]), key=str(ours[1]))
    with pytest.raises(ssl.SSLError, match="KEY_VALUES_MISMATCH"):
        ssl.create_default_context().load_cert_chain(theirs[0], ours[1])


def test_a_certificate_lets_in_nobody_without_a_ticket_nor_with_that_of_another(
    endpoint: ExchangeEndpoint, authority: Authority
) -> None:
    """It says that a node is one of yours; which one, its ticket says."""
    own = shown(authority.issue("node-b", usage=CLIENT))
    of_a, of_b = ticket(endpoint, 0, node=7), ticket(endpoint, 1, node=8)
    guesses = [
        Hello("run", 8, 0, (0,), 50, "data", of_b.token),  # node b for Upper 0, with its own token
        Hello("run", 7, 0, (0,), 50, "data", of_b.token),  # as node a
        Hello("run", 8, 0, (0,), 50, "data", of_a.token),  # with the token of a, as b
        Hello("run", 8, 1, (1,), 50, "data", bytes(32)),
    ]
    for guess in guesses:
        with pytest.raises(AuthenticationError, match="no valid ticket"):
            enter(endpoint, guess, own)
    enter(endpoint, of_b, own)


def test_a_node_does_not_pass_for_the_lower(
    endpoint: ExchangeEndpoint, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the node's certificate, or one for another host; nor does a ticket reach it."""
    (tmp_path / "other").mkdir()
    namesake, said = Authority(tmp_path / "other", "authority"), []
    monkeypatch.setattr(stream, "_greet", lambda *arguments: said.append(b"a token was sent"))
    trusting = node_tls(ca=str(authority.path))
    wrong = {
        "a node's": authority.issue("node-a", usage=CLIENT),
        "of another host": authority.issue("elsewhere", hosts=["elsewhere.example"], usage=SERVER),
        "expired": authority.issue("old", end=NOW - DAY / 2, usage=SERVER),
        "of an authority of the same name": namesake.issue("lower", usage=SERVER),
    }
    for what, (cert, key) in wrong.items():
        identity = TlsIdentity(cert.read_text(), key.read_bytes())
        with ExchangeEndpoint(HOST, run="run", tls=identity) as middle:
            for own, announced in ((trusting, endpoint.cert_pem), (NodeTls(), endpoint.cert_pem)):
                with pytest.raises(AuthenticationError, match="its certificate is refused"):
                    connect(HOST, middle.port, ticket(endpoint), cafile_pem=announced, timeout_s=5, own=own)
                assert not said, what


def test_plaintext_where_tls_is_served(endpoint: ExchangeEndpoint, authority: Authority) -> None:
    """Nobody is let in who leaves encryption out, and a node that has an authority does not leave it out."""
    hello = ticket(endpoint)
    with pytest.raises(ConfigError, match="in plaintext"):
        connect(HOST, endpoint.port, hello, cafile_pem=None, timeout_s=5, own=node_tls(ca=str(authority.path)))
    with pytest.raises(PslError) as caught:
        connect(HOST, endpoint.port, hello, cafile_pem=None, timeout_s=5)
    assert not isinstance(caught.value, AuthenticationError)
    assert endpoint.connected == set()
