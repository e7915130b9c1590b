"""The operator's certificates for the streams, read from files; refused in the words of `psl doctor`."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from psl_flower.errors import ConfigError
from psl_flower.system.findings import Finding
from psl_flower.text import expanded
from psl_flower.wire.certificates import check_authority, check_exchange_certificate
from psl_flower.wire.tls import NodeTls, TlsIdentity, ephemeral_identity

log = logging.getLogger("psl_flower")


def endpoint_identity(address: str, *, cert: str = "", key: str = "", client_ca: str = "") -> TlsIdentity:
    """Return the exchange endpoint's TLS identity.

    Parameters
    ----------
    address : str
        Name or address that nodes connect to; the certificate must hold it.
    cert, key : str
        PEM files of the operator. Without them the certificate is made here, self-signed.
    client_ca : str
        PEM file of the authorities that nodes' certificates must come from; empty: nodes need none.

    Raises
    ------
    ConfigError
        Naming the setting, the file, its fault and the remedy.
    """
    identity = _identity(cert, key, "server", (address,)) if cert else ephemeral_identity([address])
    if not client_ca:
        return identity
    return dataclasses.replace(identity, peers_pem=_authority("exchange-client-ca", client_ca))


def node_tls(*, ca: str = "", cert: str = "", key: str = "", allow_plaintext: bool = False) -> NodeTls:
    """Return the TLS settings in a node's own configuration.

    Parameters
    ----------
    ca : str
        PEM file of the authorities that the endpoint's certificate must come from.
    cert, key : str
        PEM files of the node's own certificate, for mutual TLS.
    allow_plaintext : bool
        As in `NodeTls`.

    Raises
    ------
    ConfigError
        Naming the setting, the file, its fault and the remedy.
    """
    if bool(cert) != bool(key):
        raise ConfigError("node-config: exchange-cert and exchange-key belong together; give both or neither")
    if ca and allow_plaintext:
        raise ConfigError(
            "node-config: exchange-ca and exchange-plaintext-on-untrusted-network contradict each other; give one"
        )
    return NodeTls(
        authority_pem=_authority("exchange-ca", ca) if ca else "",
        authority=f"exchange-ca {ca}".strip(),
        identity=_identity(cert, key, "node") if cert else None,
        allow_plaintext=allow_plaintext,
    )


def _identity(cert: str, key: str, role: Literal["server", "node"], addresses: tuple[str, ...] = ()) -> TlsIdentity:
    cert_path, key_path = expanded(cert, "exchange-cert"), expanded(key, "exchange-key")
    _refuse(check_exchange_certificate(cert_path, key_path, role, addresses))
    own, *chain = x509.load_pem_x509_certificates(cert_path.read_bytes())
    return TlsIdentity(_pem([own]), key_path.read_bytes(), _pem(chain))


def _authority(setting: str, file: str) -> str:
    path = expanded(file, setting)
    _refuse(check_authority(path, setting))
    return _pem(x509.load_pem_x509_certificates(path.read_bytes()))


def _refuse(findings: Iterable[Finding]) -> None:
    for finding in findings:
        if finding.level == "failed":
            raise ConfigError(f"{finding.what}: {finding.found}; {finding.do}")
        if finding.level == "warning":
            log.warning("%s: %s; %s", finding.what, finding.found, finding.do)


def _pem(certificates: Iterable[x509.Certificate]) -> str:
    return "".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in certificates)
