"""Flower's processes get no proxy on loopback and nobody's Ray, and a folder whose paths are short enough for sockets."""

import importlib.util
import os
import tempfile

import pytest

from psl_flower.errors import RunError
from psl_flower.launch import home
from psl_flower.launch.environment import environment

FOREIGN = [
    "RAY_ADDRESS",
    "RAY_TMPDIR",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN_PATH",
    "RAY_NAMESPACE",
    "FLWR_INTERNAL_GRPC_CONTROL_API",
]


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_settings_are_not_inherited(name, monkeypatch):
    assert FOREIGN
    monkeypatch.setenv(name, "foreign")
    assert environment().get(name) != "foreign"


def test_every_ray_is_closed_with_a_token_of_its_own(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    first, second = environment(), environment()
    assert first["RAY_AUTH_MODE"] == "token"
    assert len(bytes.fromhex(first["RAY_AUTH_TOKEN"])) == 32
    assert first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]


PROXIES = [("no_proxy", "a.example,b.example"), ("NO_PROXY", "a.example"), ("no_proxy", ""), ("no_proxy", "*")]


@pytest.mark.parametrize(("name", "value"), PROXIES)
def test_loopback_goes_through_no_proxy(name, value, monkeypatch):
    assert PROXIES
    for other in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    made = environment()
    assert made["http_proxy"] == "http://proxy.example:3128"
    assert made["no_proxy"] == made["NO_PROXY"]
    loopback = [] if value == "*" else ["127.0.0.1", "localhost", "::1"]
    assert made["no_proxy"].split(",") == [*filter(None, value.split(",")), *loopback]


def test_a_proxy_that_flower_cannot_even_name(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5h://proxy.example:1080")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "ALL_PROXY" not in environment()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert "ALL_PROXY" in environment()


def test_sockets_of_ray_fit_into_the_folder(monkeypatch):
    """By Ray's own check, in the longest folder that is taken."""
    from ray._private.utils import validate_socket_filepath

    folder = "/" + "x" * (home._LONGEST_FOLDER - 1)
    rays = f"{folder}/psl-12345678/ray/session_2026-11-29_19-21-00_416855_4194304/sockets/plasma_store"
    validate_socket_filepath(rays)
    with pytest.raises(OSError, match="107 bytes"):
        validate_socket_filepath(rays + "x")
    monkeypatch.setattr(tempfile, "tempdir", folder + "x")
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    assert str(home._temporary_folder()) == "/tmp"
    monkeypatch.setattr(tempfile, "tempdir", folder)
    assert str(home._temporary_folder()) == folder


def test_no_place_is_one_error(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * 90)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(RunError, match="set TMPDIR to a folder of at most 26 bytes"):
        home.make()


def test_relative_folders_of_modules_mean_those_of_the_caller(monkeypatch, tmp_path):
    """Flower's processes are started in another folder, where "." would be another one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f".::/opt/own{os.pathsep}code")
    monkeypatch.setenv("HF_HOME", "cache")
    assert environment()["HF_HOME"] == str(tmp_path / "cache")
    assert environment()["PYTHONPATH"] == os.pathsep.join([str(tmp_path), "/opt/own", str(tmp_path / "code")])
