"""psl doctor: what it says of versions and the machine, and the command itself; all inputs are real."""

import json
import re
import subprocess
import sys
import tomllib

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from psl_flower.cli.main import main
from psl_flower.doctor import machine, versions
from tests.paths import ROOT
from tests.unit.doctor_support import levels, only_failed

SERVER_AUTH, CLIENT_AUTH = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH

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


def test_the_newest_and_the_oldest_flower_are_tested():
    """`make setup` installs the one, `make e2e-old` the other."""
    (start, stop) = versions.PACKAGES["flwr"]
    pinned = re.search(r"^flwr==(\d+)\.(\d+)\.", (ROOT / "constraints.txt").read_text("utf-8"), re.M)
    assert stop == (int(pinned[1]), int(pinned[2]) + 1)
    assert f"OLD_FLWR := {start[0]}.{start[1]}\n" in (ROOT / "Makefile").read_text("utf-8")
    assert "make e2e-old" in (ROOT / ".ci" / "run").read_text("utf-8")


@pytest.mark.parametrize("version", ["1.40.2", "1.43.0", "2.0"])
def test_another_flower_is_a_failure(monkeypatch, version):
    installed = versions.metadata.version
    monkeypatch.setattr(versions.metadata, "version", lambda name: version if name == "flwr" else installed(name))
    assert "1.41 or newer, below 1.43" in only_failed(versions.check_versions())


# Machine


def test_folders(tmp_path):
    (found,) = machine.check_folder("state", tmp_path / "not" / "there")
    assert found.level == "warning" and "does not exist" in found.found and "check the spelling" in found.do
    assert not (tmp_path / "not").exists()
    (tmp_path / "file").write_text("")
    assert "cannot be written" in only_failed(machine.check_folder("state", tmp_path / "file"))


def test_a_folder_that_may_not_be_looked_into(closed_folder):
    assert "cannot be written: Permission denied" in only_failed(machine.check_folder("state", closed_folder / "state"))


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
