"""TLS for the stream, 1.3 only: identities of the Lower and the nodes, and whom they trust.

The Lower's certificate (not its key) reaches the nodes inside Flower messages; a node accepts that certificate and no
other, for the announced address. A node whose operator gave it an authority (`NodeTls.authority_pem`) trusts that
instead. The certificate is either the operator's (`psl_flower.wire.credentials`) or made for the occasion, self-signed.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from psl_flower.errors import ConfigError

VALID_DAYS = 7
# Nodes whose clock is behind the Lower's must not find the certificate "not yet valid".
_CLOCK_SKEW = datetime.timedelta(days=1)


# Alerts by which a peer rejects our certificate (TLS 1.3 has no other answer).
_ALERTS = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "none was shown",
    "TLSV1_ALERT_UNKNOWN_CA": "it is not from an authority that is trusted there",
    "TLSV1_ALERT_DECRYPT_ERROR": "it is from an authority that has the name of one trusted there, and another key",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it has expired, or a clock is wrong",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it is not valid for this, or not yet",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it was not accepted",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "it is of the wrong kind: for servers or for nodes, not for both",
}
# OpenSSL's x509_vfy.h.
_NOT_YET_VALID, _EXPIRED, _WRONG_PURPOSE = 9, 10, 26
_WRONG_SIGNATURE, _NOT_TRUSTED, _OTHER_NAME = 7, (18, 19, 20, 21), (62, 64)


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """Certificate and key of one end of a stream; keys are hidden from `repr` and live in memory only."""

    cert_pem: str  #: Its certificate.
    key: bytes = field(repr=False)  #: The private key, PEM without passphrase.
    chain_pem: str = ""  #: Certificates between this one and its authority, if any.
    #: Authorities that nodes' certificates must come from; used by the Lower for mutual TLS. Empty: nodes need none.
    peers_pem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTls:
    """TLS settings of a node's streams, from its operator."""

    #: The authorities that the endpoint's certificate must come from. Empty: what the run announced is trusted alone.
    authority_pem: str = ""
    authority: str = "exchange-ca"  #: Their name in errors.
    identity: TlsIdentity | None = None  #: The node's own, for mutual TLS.
    allow_plaintext: bool = False  #: Permit plaintext outside loopback, if the run asks for it.


def ephemeral_identity(hosts: Sequence[str], valid_days: int = VALID_DAYS) -> TlsIdentity:
    """Return a new self-signed ECDSA P-256 identity for the given host names and IP addresses.

    Nodes may connect to `hosts`, at least one: names or IPv4 or IPv6 addresses. It is valid for `valid_days` from now
    on, and for one day backwards, for clocks that differ.

    Raises
    ------
    ConfigError
        `hosts` is empty or holds something that is neither name nor address.
    """
    if not hosts:
        raise ConfigError("TLS identity: expected at least one host name or address, got none")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "psl-flower exchange endpoint")])
    now = datetime.datetime.now(datetime.UTC)
    key_identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=valid_days))
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(key_identifier, critical=False)
    )
    certificate = builder.sign(key, hashes.SHA256())
    return TlsIdentity(
        certificate.public_bytes(serialization.Encoding.PEM).decode(),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def server_context(identity: TlsIdentity) -> ssl.SSLContext:
    """Return the Lower's TLS context; nodes must show a certificate if `identity.peers_pem` names authorities.

    Raises
    ------
    ConfigError
        OpenSSL does not accept one of the parts.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # no resumption: every connection authenticates
    _prove(context, identity)
    if identity.peers_pem:
        context.verify_mode = ssl.CERT_REQUIRED
        _trust(context, identity.peers_pem, "exchange-client-ca")
    return context


def client_context(announced_pem: str, own: NodeTls) -> ssl.SSLContext:
    """Return a node's TLS context, which checks the host name.

    It trusts `own.authority_pem`; without that, the certificate `announced_pem` and nothing else.

    Raises
    ------
    ConfigError
        OpenSSL does not accept one of the parts.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if own.authority_pem:
        _trust(context, own.authority_pem, own.authority)
    else:
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # that certificate alone, by any signer
        _trust(context, announced_pem, "the exchange endpoint's certificate")
    if own.identity is not None:
        _prove(context, own.identity)
    return context


def complaint(error: ssl.SSLError, trusted: str) -> str:
    """Return the certificate problem that made TLS fail, and whose it is; an empty text for any other cause.

    The error is as a handshake, or the first words after it, raised it. `trusted` is the required authority of the
    peer's certificate, as an error names it.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {_refusal(error, trusted)}"
    if error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return f"it shows no certificate, which must come from {trusted}: set exchange-cert and exchange-key there"
    if error.reason in _ALERTS:
        return f"it refuses this end's certificate: {_ALERTS[error.reason]}; see exchange-cert and exchange-key here"
    return ""


def dates(cert_pem: str) -> str:
    """Return in words when a certificate is valid, and what time it is on this machine.

    Raises
    ------
    ConfigError
        `cert_pem` is no certificate.
    """
    try:
        certificate = x509.load_pem_x509_certificate(cert_pem.encode())
    except ValueError as error:
        raise ConfigError(f"the exchange endpoint's certificate: is not readable as certificate: {error}") from None
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    now = datetime.datetime.now(datetime.UTC)
    return f"valid from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, it is {now:%Y-%m-%d %H:%M} here"


def is_loopback(host: str) -> bool:
    """Check if `host` is "localhost" or a loopback address; other names are not looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_wildcard(host: str) -> bool:
    """Check if `host` stands for all addresses of a machine."""
    try:
        return ipaddress.ip_address(host or "0.0.0.0").is_unspecified  # nosec B104 # compared, not bound
    except ValueError:
        return False


def check_plaintext(host: str, *, encrypted: bool, allow_plaintext: bool) -> None:
    """Refuse to leave this machine without TLS.

    Raises
    ------
    ConfigError
        Neither encrypted, nor loopback, nor allowed.
    """
    if not (encrypted or allow_plaintext or is_loopback(host)):
        raise ConfigError(
            f"smashed data would travel unencrypted to or from {host}: use TLS (the default outside "
            "loopback), or set exchange-plaintext-on-untrusted-network=true for the run and in every node's node-config"
        )


def _refusal(error: ssl.SSLCertVerificationError, trusted: str) -> str:
    code = error.verify_code
    if code == _EXPIRED:
        return "it has expired: renew it where it is served, and check both machines' clocks"
    if code == _NOT_YET_VALID:
        return "it is not valid yet: set both machines' clocks"
    if code in _OTHER_NAME:
        return f"{error.verify_message}: exchange-advertise must be a name or address that it holds"
    if code in _NOT_TRUSTED:
        return f"it is not from {trusted}: another server answers there, or the two were not made for each other"
    if code == _WRONG_SIGNATURE:
        return f"it is not from {trusted}, but from an authority of the same name with another key: was it recreated?"
    if code == _WRONG_PURPOSE:
        return "it is of the wrong kind: its extendedKeyUsage must have serverAuth at the server, clientAuth at a node"
    return error.verify_message


def _prove(context: ssl.SSLContext, identity: TlsIdentity) -> None:
    """Let a context show `identity`'s certificate."""
    try:
        with _as_file(f"{identity.cert_pem}\n{identity.chain_pem}\n".encode() + identity.key) as path:
            context.load_cert_chain(path, password=lambda: b"")  # no passphrase: or OpenSSL would ask at the terminal
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(f"exchange-cert, exchange-key: OpenSSL does not take them: {error}") from None


def _trust(context: ssl.SSLContext, authorities_pem: str, name: str) -> None:
    try:
        context.load_verify_locations(cadata=authorities_pem)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(f"{name}: is not readable as certificate: {error}") from None


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host.encode("idna").decode("ascii"))
    except (UnicodeError, ValueError):
        raise ConfigError(f"TLS identity: {host!r} is neither a host name nor an address") from None


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Give `content` a path for OpenSSL, which loads keys from files only; in memory where the system can."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("psl-identity", os.MFD_CLOEXEC)
        try:
            with os.fdopen(fd, "wb", closefd=False) as file:
                file.write(content)
            yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)
        return
    with tempfile.NamedTemporaryFile() as temporary:  # created readable by this user alone
        temporary.write(content)
        temporary.flush()
        yield temporary.name
