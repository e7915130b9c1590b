"""What a process does to itself before it holds keys; which GPUs a machine has."""

import subprocess
import sys

import pytest

from psl_flower.system import machine

_PROBE = """
import resource
{}
print(resource.getrlimit(resource.RLIMIT_CORE))
"""
_COMMAND = "from psl_flower.cli.main import main; assert main(['verify', 'none', '--manifest', 'none']) == 1"
_NODE = "from psl_flower.system.machine import forbid_core_dumps; forbid_core_dumps()"


@pytest.mark.parametrize("done", [_NODE, _COMMAND], ids=["a node", "any command"])
def test_no_core_file_can_hold_a_key(done):
    probed = subprocess.run([sys.executable, "-c", _PROBE.format(done)], capture_output=True, text=True, check=True)
    assert probed.stdout == "(0, 0)\n"


@pytest.mark.parametrize(
    ("listed", "status", "names"),
    [
        ("GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1a)\nGPU 1: NVIDIA T4 (UUID: GPU-2b)", 0, ("NVIDIA H100 80GB HBM3", "NVIDIA T4")),
        ("GPU 0: NVIDIA A100 (UUID: GPU-1a)\n  MIG 1g.5gb Device 0: (UUID: MIG-GPU-9)", 0, ("NVIDIA A100",)),
        ("NVIDIA-SMI has failed because it couldn't communicate with the driver.", 9, ()),
    ],
)  # fmt: skip
def test_gpus_by_name(listed, status, names, tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{listed}\nEND\nexit {status}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    machine.list_gpus.cache_clear()
    try:
        assert machine.list_gpus() == names
        assert machine.count_gpus() == len(names)
    finally:
        machine.list_gpus.cache_clear()
