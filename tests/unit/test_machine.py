"""What a process does to itself before it holds keys."""

import subprocess
import sys

import pytest

_PROBE = """
import resource
{}
print(resource.getrlimit(resource.RLIMIT_CORE))
"""
_COMMAND = "from psl_flower.cli.main import main; assert main(['verify', 'none', '--manifest', 'none']) == 1"
_NODE = "from psl_flower.machine import forbid_core_dumps; forbid_core_dumps()"


@pytest.mark.parametrize("done", [_NODE, _COMMAND], ids=["a node", "any command"])
def test_no_core_file_can_hold_a_key(done):
    probed = subprocess.run([sys.executable, "-c", _PROBE.format(done)], capture_output=True, text=True, check=True)
    assert probed.stdout == "(0, 0)\n"
