"""The systemd units: how exposed systemd itself finds them, and that no line of theirs is lost on it."""

import os
import re
import shutil
import subprocess

import pytest

from tests.paths import ROOT

UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
# As systemd 252 counts: 1.6 of 10, 0 for what nobody could exploit. What is left is the network, devices for GPUs, and
# what torch needs. It was 4.8.
MOST_EXPOSURE = 1.6


def analyze(*arguments: str) -> str:
    done = subprocess.run(
        ["systemd-analyze", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    return done.stdout + done.stderr


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_are_hardened(unit):
    assert len(UNITS) == 2
    told = analyze("security", "--offline=true", "--no-pager", str(unit))
    if "unrecognized option" in told:
        pytest.skip("this systemd-analyze is older than 250")
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", told)
    assert exposure, told
    assert float(exposure[1]) <= MOST_EXPOSURE, told
    assert re.search(r"\+ ProtectProc=", told), told
    assert re.search(r"\+ SystemCallFilter=~@privileged", told), told
    verified = [line for line in analyze("verify", str(unit)).splitlines() if unit.name in line]
    assert [line for line in verified if "is not executable" not in line] == []
