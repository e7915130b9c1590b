"""What a process does to itself before it holds keys."""

import subprocess
import sys

_PROBE = """
import resource
from psl_flower.machine import forbid_core_dumps
forbid_core_dumps()
print(resource.getrlimit(resource.RLIMIT_CORE))
"""


def test_no_core_file_can_hold_a_key():
    done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=True)
    assert done.stdout == "(0, 0)\n"
