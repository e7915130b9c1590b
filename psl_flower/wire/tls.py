"""TLS for the stream: a throw-away identity for the Lower, pinned by the Upper nodes.

The Lower makes a key and a self-signed certificate for one run. The certificate (not the key) reaches the
nodes inside Flower messages; a node accepts that certificate and no other, for the address it was told, over
TLS 1.3 only.
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


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate and its private key, both PEM; the key is hidden from `repr` and lives in memory only."""

    cert_pem: str
    key: bytes = field(repr=False)


def ephemeral_identity(hosts: Sequence[str], valid_days: int = VALID_DAYS) -> Identity:
    """Return a new self-signed ECDSA P-256 identity for the given host names and IP addresses.

    Parameters
    ----------
    hosts : sequence of str
        What nodes may connect to: names or IPv4 or IPv6 addresses, at least one.
    valid_days : int
        Days of validity from now on; one day backwards is added for clocks that differ.

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
    return Identity(
        certificate.public_bytes(serialization.Encoding.PEM).decode(),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def server_context(identity: Identity) -> ssl.SSLContext:
    """Return the Lower's TLS context."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # no resumption: every connection proves itself anew
    with _as_file(identity.cert_pem.encode() + identity.key) as path:
        context.load_cert_chain(path)
    return context


def client_context(cert_pem: str) -> ssl.SSLContext:
    """Return a TLS context that trusts `cert_pem` and nothing else, and checks the host name.

    Raises
    ------
    ConfigError
        `cert_pem` is not a certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cadata=cert_pem)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(f"the exchange endpoint's certificate is not readable: {error}") from None
    return context


def is_loopback(host: str) -> bool:
    """Return whether `host` is "localhost" or a loopback address; other names are not looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
            "loopback), or allow plaintext explicitly on a network that nobody else can read"
        )


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
