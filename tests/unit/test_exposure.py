"""Where others can reach a simulation its user is warned, and an owner's keys are refused; a deployment is none."""

import os
import sys
from types import SimpleNamespace

import pytest

from psl_flower.config import RunConfig
from psl_flower.errors import ConfigError
from psl_flower.system.exposure import GUARDED, close_ray
from server.exposure import exposure

SIMULATION, DEPLOYMENT = SimpleNamespace(pull_interval=0.1), SimpleNamespace()
CLOSED = {GUARDED: "1", "RAY_AUTH_MODE": "token"}
OPEN = {
    "the SuperLink": ({"RAY_AUTH_MODE": "token"}, "any user of this machine"),
    "Ray": ({GUARDED: "1"}, "anybody who reaches Ray's ports"),
    "Ray without tokens": ({**CLOSED, "RAY_AUTH_MODE": "disabled"}, "RAY_AUTH_MODE"),
    "another's Ray": ({**CLOSED, "RAY_ADDRESS": "10.0.0.1:6379"}, "RAY_ADDRESS"),
    "both": ({}, "local SuperLink, and anybody"),
}


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch):
    for name in (*CLOSED, "RAY_ADDRESS", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("case", OPEN)
def test_open_doors(case, monkeypatch, tmp_path):
    environment, words = OPEN[case]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert exposure(DEPLOYMENT, RunConfig.of(keys="k")) == ""
    assert words in exposure(SIMULATION, RunConfig())
    assert words in exposure(SIMULATION, RunConfig.of(keys="k", keys_in_open_simulation=True))
    (tmp_path / "manifest.psl").touch()
    for owners in (RunConfig.of(keys="k"), RunConfig.of(dataset=str(tmp_path))):
        with pytest.raises(ConfigError, match="keys-in-open-simulation=true") as refusal:
            exposure(SIMULATION, owners)
        assert words in str(refusal.value)


def test_closed_doors(monkeypatch):
    assert len(OPEN) == 5
    for name, value in CLOSED.items():
        monkeypatch.setenv(name, value)
    assert exposure(SIMULATION, RunConfig.of(keys="k")) == ""


def test_ray_is_closed_in_flowers_simulation_alone_and_as_its_user_has_said(monkeypatch):
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    close_ray()
    assert "RAY_AUTH_MODE" not in os.environ
    monkeypatch.setattr(sys, "argv", ["/somewhere/flwr-simulation"])
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "its own")
    close_ray()
    assert (os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"]) == ("disabled", "its own")
