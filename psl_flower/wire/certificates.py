"""Checks of certificate and key files: dates, addresses, issuer; and of a node's authentication key."""

from __future__ import annotations

import base64
import datetime
import hashlib
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from psl_flower.system.files import open_regular, open_to_others
from psl_flower.system.findings import Finding, failed, ok, warning

SOON = datetime.timedelta(days=30)
_RENEW = "make a new one (deploy/make-certificates.sh) and restart the SuperLink"
_LOOPBACK = "127.0.0.1"
_WITHOUT_LOOPBACK = (
    "a SuperLink with --host 0.0.0.0 reaches itself there, and starts no run if it cannot: "
    "make a new one (deploy/make-certificates.sh), or give --host one of the certificate's addresses"
)
_RENEW_STREAMS = "make a new one (deploy/make-certificates.sh); it is read at every round, and by resume"
_RENEW_AUTHORITY = "make a new authority, and certificates of it for all (deploy/make-certificates.sh in a new folder)"
_USAGES = {
    "server": (ExtendedKeyUsageOID.SERVER_AUTH, "serverAuth"),
    "node": (ExtendedKeyUsageOID.CLIENT_AUTH, "clientAuth"),
}


def check_authority(path: Path, what: str = "authority") -> list[Finding]:
    """Return findings about the certificates that are trusted here, a PEM file."""
    loaded = _load_certificates(path, what)
    if isinstance(loaded, Finding):
        return [loaded]
    return [finding for certificate in loaded for finding in _dates(what, path, certificate, _RENEW_AUTHORITY)]


def check_server_certificate(
    path: Path, key: Path | None, addresses: Sequence[str], authority: Path | None
) -> list[Finding]:
    """Return findings about the SuperLink's own certificate.

    Parameters
    ----------
    path, key : Path
        PEM files; without `key` it is not looked at.
    addresses : sequence of str
        Names and addresses that nodes connect to; each must be in the certificate.
    authority : Path, optional
        The certificates that nodes trust; one of them must have signed this one.
    """
    what = "certificate"
    loaded = _load_certificates(path, what)
    if isinstance(loaded, Finding):
        return [loaded]
    certificate = loaded[0]
    findings = _dates(what, path, certificate, _RENEW)
    findings += [_names(what, path, certificate, address, _RENEW) for address in addresses]
    if _names(what, path, certificate, _LOOPBACK, _RENEW).level != "ok":
        findings.append(warning(what, f"{path}: is not for {_LOOPBACK}", _WITHOUT_LOOPBACK))
    if authority is not None:
        trusted = _load_certificates(authority, "authority")
        findings.append(trusted if isinstance(trusted, Finding) else _issuer(path, certificate, authority, trusted))
    if key is not None:
        findings.append(_key_of("certificate key", key, certificate, _RENEW))
    return findings


def check_exchange_certificate(
    path: Path, key: Path, role: Literal["server", "node"], addresses: Sequence[str] = ()
) -> list[Finding]:
    """Return findings about a certificate for the streams, by the names of the settings that give it.

    Parameters
    ----------
    path, key : Path
        PEM files: the certificate, then those between it and its authority, if any; and its private key.
    role : {"server", "node"}
        Whose it is: the exchange endpoint's, or a node's for mutual TLS.
    addresses : sequence of str
        Names and addresses that nodes connect to; each must be in the endpoint's certificate.
    """
    what = "exchange-cert"
    loaded = _load_certificates(path, what)
    if isinstance(loaded, Finding):
        return [loaded]
    certificate = loaded[0]
    findings = _dates(what, path, certificate, _RENEW_STREAMS)
    findings += [_names(what, path, certificate, address, _RENEW_STREAMS) for address in addresses]
    findings += _usage(what, path, certificate, role)
    return [*findings, _key_of("exchange-key", key, certificate, _RENEW_STREAMS)]


def check_node_key(path: Path) -> list[Finding]:
    """Return findings about a node's authentication key, a private key of an elliptic curve in OpenSSH or PEM form."""
    what = "node key"
    content = _read(path, what)
    if isinstance(content, Finding):
        return [content]
    try:
        if b"OPENSSH" in content[:64]:
            key: object = serialization.load_ssh_private_key(content, None)
        else:
            key = serialization.load_pem_private_key(content, None)
    except TypeError:
        return [failed(what, f"{path}: is protected by a passphrase", "Flower cannot ask for one: make a key without")]
    except (ValueError, UnsupportedAlgorithm):
        do = 'make one: ssh-keygen -t ecdsa -b 384 -N "" -f FILE, and give FILE, not FILE.pub'
        return [failed(what, f"{path}: is not a private key", do)]
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        return [failed(what, f"{path}: is not a key of a NIST curve", "make one with: ssh-keygen -t ecdsa -b 384")]
    findings = _permissions(what, path)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[1]
    shown = base64.b64encode(hashlib.sha256(base64.b64decode(public)).digest()).decode().rstrip("=")
    return findings or [ok(what, f"{path}: SHA256:{shown} (ssh-keygen -lf of the registered FILE.pub shows the same)")]


def _dates(what: str, path: Path, certificate: x509.Certificate, renew: str) -> list[Finding]:
    now = datetime.datetime.now(datetime.UTC)
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < start:
        do = f"set this machine's clock ({now:%Y-%m-%d %H:%M} UTC), or wait"
        return [failed(what, f"{path}: is valid from {start:%Y-%m-%d %H:%M} UTC on", do)]
    if now > end:
        return [failed(what, f"{path}: expired on {end:%Y-%m-%d %H:%M} UTC", renew)]
    if end - now < SOON:
        return [warning(what, f"{path}: expires on {end:%Y-%m-%d %H:%M} UTC", renew)]
    return [ok(what, f"{path}: valid until {end:%Y-%m-%d}")]


def _usage(what: str, path: Path, certificate: x509.Certificate, role: Literal["server", "node"]) -> list[Finding]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except x509.ExtensionNotFound:
        return []  # good for anything
    wanted, name = _USAGES[role]
    if wanted in extension.value or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in extension.value:
        return []
    do = f"give one whose extendedKeyUsage has {name} (deploy/make-certificates.sh makes them for both)"
    return [failed(what, f"{path}: is not for a {role}: its extendedKeyUsage lacks {name}", do)]


def _names(what: str, path: Path, certificate: x509.Certificate, address: str, renew: str) -> Finding:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return failed(what, f"{path}: has no subjectAltName, so no client accepts it", renew)
    names = [name.lower() for name in extension.value.get_values_for_type(x509.DNSName)]
    addresses = extension.value.get_values_for_type(x509.IPAddress)
    try:
        fits = ipaddress.ip_address(address) in addresses
    except ValueError:
        first, _, rest = address.lower().partition(".")
        fits = address.lower() in names or (bool(first) and f"*.{rest}" in names)
    if fits:
        return ok(what, f"{path}: is for {address}")
    held = ", ".join([*names, *map(str, addresses)])
    return failed(what, f"{path}: is for {held}, not for {address}", f"{renew}; or let nodes connect to {held}")


def _issuer(path: Path, certificate: x509.Certificate, authority: Path, trusted: list[x509.Certificate]) -> Finding:
    for candidate in trusted:
        try:
            certificate.verify_directly_issued_by(candidate)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return ok("certificate", f"{path}: was signed by {authority}")
    do = "give nodes the ca.crt of the authority that signed it"
    return failed("certificate", f"{path}: was not signed by {authority}", do)


def _key_of(what: str, path: Path, certificate: x509.Certificate, renew: str) -> Finding:
    content = _read(path, what)
    if isinstance(content, Finding):
        return content
    try:
        public = serialization.load_pem_private_key(content, None).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return failed(what, f"{path}: is not a private key without passphrase", renew)
    own, other = (
        k.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for k in (public, certificate.public_key())
    )
    if own != other:
        return failed(what, f"{path}: belongs to another certificate", "give the key that was made with it")
    return next(iter(_permissions(what, path)), ok(what, f"{path}: belongs to the certificate"))


def _permissions(what: str, path: Path) -> list[Finding]:
    mode = open_to_others(path)
    return [warning(what, f"{path}: others may read it (mode {mode})", f"chmod 600 {path}")] if mode else []


def _load_certificates(path: Path, what: str) -> list[x509.Certificate] | Finding:
    content = _read(path, what)
    if isinstance(content, Finding):
        return content
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        return failed(what, f"{path}: holds no certificate", "give a PEM file that begins with BEGIN CERTIFICATE")


def _read(path: Path, what: str) -> bytes | Finding:
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            return file.read()
    except OSError as error:
        do = "check the path, and that this user may read it"
        return failed(what, f"{path}: cannot be read: {error.strerror or error}", do)
