"""psl doctor: what it says of things that are right, and of each that is wrong; all inputs are real."""

import email.utils
import json
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from psl_flower.cli.main import main
from psl_flower.config import RunConfig
from psl_flower.data.ingest import ensure_stores
from psl_flower.data.store_set import store_request
from psl_flower.doctor import certificates, machine, network, stores, versions
from tests.authority import DAY, NOW, Authority

SERVER_AUTH, CLIENT_AUTH = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


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


@pytest.fixture
def closed_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take it
        yield f"127.0.0.1:{sock.getsockname()[1]}"


def levels(findings):
    return [finding.level for finding in findings]


def only_failed(findings):
    """Return the one failure's text, with its advice."""
    wrong = [finding for finding in findings if finding.level == "failed"]
    assert len(wrong) == 1, findings
    assert wrong[0].do
    return wrong[0].found


# Versions


def test_versions_are_those_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    text = ".".join(map(str, versions.PYTHON[0])), ".".join(map(str, versions.PYTHON[1]))
    assert project["requires-python"] == f">={text[0]},<{text[1]}"
    wanted = {}
    for requirement in project["dependencies"]:
        name, _, bounds = requirement.partition(">=")
        wanted[name.split("[")[0]] = bounds
    for package, (start, stop) in versions.PACKAGES.items():
        bounds = ".".join(map(str, start)) + (f",<{'.'.join(map(str, stop))}" if stop else "")
        assert wanted[package] == bounds
    assert set(levels(versions.check_versions())) == {"ok"}


@pytest.mark.parametrize("version", ["1.40.2", "1.42.0", "2.0"])
def test_another_flower_is_a_failure(monkeypatch, version):
    installed = versions.metadata.version
    monkeypatch.setattr(versions.metadata, "version", lambda name: version if name == "flwr" else installed(name))
    assert "1.41 or newer, below 1.42" in only_failed(versions.check_versions())


# Certificates


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
    path, _ = authority.issue("wild", hosts=("*.example",))
    assert levels(certificates.check_server_certificate(path, None, ["lower.example"], None)) == ["ok", "ok"]
    assert "a.lower.example" in only_failed(
        certificates.check_server_certificate(path, None, ["a.lower.example"], None)
    )
    path, _ = authority.issue("nameless", hosts=())
    assert "subjectAltName" in only_failed(certificates.check_server_certificate(path, None, ["lower.example"], None))


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


# Network


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
    assert "nobody listens there" in only_failed(network.check_superlink(closed_port, authority.path))
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


def test_addresses():
    assert network.split_address("lower.example:9092") == ("lower.example", 9092)
    assert network.split_address("[2001:db8::1]:9092") == ("2001:db8::1", 9092)


# Machine


def test_folders(tmp_path):
    assert levels(machine.check_folder("state", tmp_path / "not" / "there")) in (["ok"], ["warning"])
    assert not (tmp_path / "not").exists()
    (tmp_path / "file").write_text("")
    assert "cannot be written" in only_failed(machine.check_folder("state", tmp_path / "file"))


def test_little_space_and_memory(tmp_path, monkeypatch):
    usage = machine.shutil.disk_usage(tmp_path)
    for free, level in ((1e8, "failed"), (1e9, "warning"), (9e9, "ok")):
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda path, free=free: usage._replace(free=int(free)))
        assert levels(machine.check_folder("state", tmp_path)) == [level]
    import psutil

    memory = psutil.virtual_memory()
    for available, level in ((1e8, "failed"), (1e9, "warning"), (9e9, "ok")):
        monkeypatch.setattr(psutil, "virtual_memory", lambda a=available: memory._replace(available=int(a)))
        assert levels(machine.check_memory()) == [level]


def test_device():
    assert levels(machine.check_device("cpu")) == ["ok"]
    assert levels(machine.check_device("auto")) == ["ok"]
    assert "cuda:99" in only_failed(machine.check_device("cuda:99"))


# Stores


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    config = RunConfig(max_train=8, max_test=4, uppers=2)
    return ensure_stores(tmp_path_factory.mktemp("plain"), store_request(config))


def test_good_store(plain):
    found = stores.check_store(str(plain.store_path(1)), None, None, "", plain.folder / "manifest.json")
    assert levels(found) == ["ok", "ok"]
    assert "Upper 1" in found[0].found


def test_damaged_or_missing_store(plain, tmp_path):
    assert "no such patch store" in only_failed(stores.check_store(str(tmp_path / "none"), None, None, "", None))
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in plain.store_path(0).iterdir():
        (copy / file.name).write_bytes(file.read_bytes()[:-1])
    assert "damaged" in only_failed(stores.check_store(str(copy), None, None, "", None))


def test_store_of_another_set(plain, tmp_path):
    other = ensure_stores(tmp_path, store_request(RunConfig(max_train=9, max_test=4, uppers=2)))
    found = stores.check_store(str(plain.store_path(0)), None, None, "", other.folder / "manifest.json")
    assert "is of dataset" in only_failed(found)
    found = stores.check_store(str(plain.store_path(0)), None, None, "", tmp_path / "none.json")
    assert "none.json" in only_failed(found)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sealed")
    for role, name in (("owner", "owner"), ("node", "node0"), ("node", "node1"), ("owner", "other")):
        assert main(["keygen", role, "--out", str(folder / f"{name}.key")]) == 0
    ingested = main([
        "ingest", "digits", "--out", str(folder / "out"), "--owner-key", str(folder / "owner.key"), "--max-train", "8",
        "--max-test", "4", "--node-key", str(folder / "node0.key.pub"), "--node-key", str(folder / "node1.key.pub"),
        "--json",
    ])  # fmt: skip
    assert ingested == 0
    return folder


def test_sealed_store(sealed):
    store, key, owner = str(sealed / "out" / "store-000"), sealed / "node0.key", str(sealed / "owner.key.pub")
    assert levels(stores.check_store(store, key, None, owner, None)) == ["ok"]
    assert "key=" in only_failed(stores.check_store(store, None, None, owner, None))
    assert "of another store" in only_failed(stores.check_store(store, sealed / "node1.key", None, owner, None))
    assert "no private key of" in only_failed(stores.check_store(store, sealed / "other.key", None, owner, None))
    only_failed(stores.check_store(store, key, None, str(sealed / "other.key.pub"), None))
    only_failed(stores.check_store(store, sealed / "missing.key", None, owner, None))


def test_sealed_record_that_was_changed(sealed, tmp_path):
    source = sealed / "out" / "store-001"
    copy = tmp_path / "store-001"
    copy.mkdir()
    for file in source.iterdir():
        content = bytearray(file.read_bytes())
        if "-segment-" in file.name:
            content[len(content) // 2] ^= 1
        (copy / file.name).write_bytes(content)
    only_failed(stores.check_store(str(copy), sealed / "node1.key", None, "", None))


# The command


def test_command(authority, plain, closed_port, tmp_path, capsys):
    paths = authority.issue("server")
    right = [
        "doctor", "--root-certificates", str(authority.path), "--certificate", str(paths[0]), "--certificate-key",
        str(paths[1]), "--address", "lower.example", "--exchange", closed_port, "--store", str(plain.store_path(0)),
        "--state", str(tmp_path), "--device", "cpu",
    ]  # fmt: skip
    assert main(right) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("ok ", "warning ", "         -> ")) for line in lines)
    assert main([*right, "--superlink", closed_port]) == 1
    out, err = capsys.readouterr()
    assert "failed   superlink: " in out
    assert "1 of " in err
    assert main([*right, "--superlink", closed_port, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert set(report["findings"][0]) == {"level", "what", "found", "do"}


def test_command_about_streams(authority, tmp_path, capsys):
    server, node = authority.issue("server", usage=SERVER_AUTH), authority.issue("node", usage=CLIENT_AUTH)
    for (cert, key), place in ((server, ["--address", "127.0.0.1"]), (node, [])):
        given = ["doctor", "--exchange-cert", str(cert), "--exchange-key", str(key), "--device", "cpu"]
        right = ["--exchange-ca", str(authority.path), "--exchange-client-ca", str(authority.path)]
        assert main([*given, *place, *right]) == 0
        assert capsys.readouterr().out.count("ok       exchange-") == 4 + len(place) // 2
        other = [] if place else ["--address", "127.0.0.1"]
        assert main([*given, *other, "--exchange-ca", str(tmp_path / "none.crt")]) == 1
        out = capsys.readouterr().out
        assert "failed   exchange-ca: " in out
        assert f"is not for a {'node' if place else 'server'}: its extendedKeyUsage lacks" in out
    assert main(["doctor", "--exchange-cert", str(server[0])]) == 2


def test_command_in_a_process_of_its_own():
    done = subprocess.run(
        [sys.executable, "-m", "psl_flower.cli.main", "doctor", "--root-certificates", "/nonexistent/ca.crt"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "failed   authority: /nonexistent/ca.crt: cannot be read" in done.stdout
    assert "Traceback" not in done.stderr
