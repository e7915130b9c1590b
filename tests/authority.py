"""A certificate authority such as an operator's, which also makes certificates that are wrong."""

import datetime
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


class Authority:
    """Makes certificates as an operator's authority does, good ones and others.

    An `issuer` makes it an authority between that one and its own certificates.
    """

    def __init__(self, folder, name="authority", issuer=None):
        self.folder, self.key = folder, ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.path = folder / f"{name}.crt"
        signer = issuer or self
        self.certificate = signer._sign(self.name, self.key, NOW - DAY, NOW + 365 * DAY, (), ca=True)
        self.path.write_bytes(self.certificate.public_bytes(Encoding.PEM))

    @classmethod
    def made(cls, folder):
        """Return the one that deploy/make-certificates.sh made in a folder."""
        found = cls.__new__(cls)
        found.folder, found.path = folder, folder / "ca.crt"
        found.certificate = x509.load_pem_x509_certificate(found.path.read_bytes())
        found.key = load_pem_private_key((folder / "ca.key").read_bytes(), None)
        found.name = found.certificate.subject
        return found

    def issue(
        self, name, start=NOW - DAY, end=NOW + 365 * DAY, hosts=("127.0.0.1", "lower.example"), usage=None, key=None
    ):
        """Return the paths of a new certificate and its key, a new one too unless it is given."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, key, start, end, hosts, usage=usage)
        paths = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        paths[0].write_bytes(certificate.public_bytes(Encoding.PEM))
        paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        paths[1].chmod(0o600)
        return paths

    def _sign(self, subject, key, start, end, hosts, ca=False, usage=None):
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name)
        builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(start).not_valid_after(end)
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName([_general(host) for host in hosts]), False)
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), False)
        return builder.sign(self.key, hashes.SHA256())


def _general(host):
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
