"""psl doctor: what it says of good certificates and keys, and of each that is wrong; all are real."""

import shutil
import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from psl_flower.wire import certificates
from tests.authority import DAY, NOW, Authority
from tests.unit.doctor_support import levels, only_failed


def test_good_certificate(authority):
    paths = authority.issue("good")
    found = certificates.check_server_certificate(*paths, ["lower.example", "127.0.0.1"], authority.path)
    assert levels(found) == ["ok"] * 5
    assert levels(certificates.check_authority(authority.path)) == ["ok"]


@pytest.mark.parametrize(
    ("days", "level", "words"),
    [((-10, -1), "failed", "expired on"), ((1, 9), "failed", "is valid from"), ((-1, 20), "warning", "expires on")],
)
def test_dates(authority, days, level, words):
    path, _ = authority.issue("dated", NOW + days[0] * DAY, NOW + days[1] * DAY)
    finding = certificates.check_server_certificate(path, None, [], None)[0]
    assert finding.level == level
    assert words in finding.found


@pytest.mark.parametrize("address", ["upper.example", "127.0.0.2", "example", "2001:db8::1"])
def test_wrong_name(authority, address):
    path, _ = authority.issue("named")
    found = certificates.check_server_certificate(path, None, [address], None)
    assert f"is for lower.example, 127.0.0.1, not for {address}" in only_failed(found)


def test_wildcard_and_no_name(authority):
    path, _ = authority.issue("wild", hosts=("*.example", "127.0.0.1"))
    assert levels(certificates.check_server_certificate(path, None, ["lower.example"], None)) == ["ok", "ok"]
    assert "a.lower.example" in only_failed(
        certificates.check_server_certificate(path, None, ["a.lower.example"], None)
    )
    path, _ = authority.issue("nameless", hosts=())
    assert "subjectAltName" in only_failed(certificates.check_server_certificate(path, None, ["lower.example"], None))


def test_a_superlink_that_does_not_reach_itself(authority):
    path, _ = authority.issue("far", hosts=("lower.example",))
    finding = certificates.check_server_certificate(path, None, ["lower.example"], None)[-1]
    assert (finding.level, finding.found) == ("warning", f"{path}: is not for 127.0.0.1")
    assert "--host 0.0.0.0" in finding.do


def test_other_authority_and_other_key(authority, tmp_path):
    path, key = authority.issue("first")
    other = Authority(tmp_path, "other")
    assert "was not signed by" in only_failed(certificates.check_server_certificate(path, key, [], other.path))
    _, foreign = authority.issue("second")
    assert "another certificate" in only_failed(certificates.check_server_certificate(path, foreign, [], None))
    key.chmod(0o644)
    assert levels(certificates.check_server_certificate(path, key, [], None)) == ["ok", "warning"]


def test_files_that_are_no_certificates(tmp_path):
    assert "cannot be read" in only_failed(certificates.check_authority(tmp_path / "missing.crt"))
    (tmp_path / "text.crt").write_text("hello")
    assert "holds no certificate" in only_failed(certificates.check_authority(tmp_path / "text.crt"))


def test_node_keys(tmp_path):
    path, good = tmp_path / "auth", ec.generate_private_key(ec.SECP384R1())

    def check(key, form=PrivateFormat.OpenSSH, protection=None):
        path.write_bytes(key.private_bytes(Encoding.PEM, form, protection or NoEncryption()))
        path.chmod(0o600)
        return certificates.check_node_key(path)

    assert levels(check(good, PrivateFormat.PKCS8)) == ["ok"]
    (finding,) = check(good)
    assert finding.level == "ok"
    if shutil.which("ssh-keygen"):
        shown = subprocess.run(["ssh-keygen", "-lf", path], capture_output=True, text=True, check=True).stdout
        assert shown.split()[1] in finding.found
    path.chmod(0o640)
    assert levels(certificates.check_node_key(path)) == ["warning"]
    path.chmod(0o600)
    assert "NIST" in only_failed(check(rsa.generate_private_key(65537, 2048)))
    protected = check(good, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    assert "passphrase" in only_failed(protected)
    path.write_text("ecdsa-sha2-nistp384 AAAA")
    assert "is not a private key" in only_failed(certificates.check_node_key(path))
