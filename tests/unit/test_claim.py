"""One process at a time works on a run."""

import os
import subprocess
import sys

import pytest

from psl_flower.errors import RunError
from psl_flower.runs import claim
from psl_flower.runs.claim import claimed
from psl_flower.runs.folder import RunFolder, Status

_HOLD = """
import sys
from pathlib import Path
from psl_flower.runs.claim import claimed
from psl_flower.runs.folder import RunFolder
with claimed(RunFolder(Path(sys.argv[1]))):
    print("claimed", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


@pytest.fixture
def other(run):
    """A process that works on the run until its standard input ends."""
    command = [sys.executable, "-c", _HOLD, run.path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "claimed\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_and_told_of_the_first(run, other, monkeypatch):
    monkeypatch.setattr(claim, "_PATIENCE_S", 0.2)
    run.write_status(Status(state="training", process="here:7"))
    before = (run.path / "status.json").read_bytes()
    words = r"run run: another process \(here:7\) is at work on it; wait for its end"
    with pytest.raises(RunError, match=words), claimed(run):
        pytest.fail("two processes at once")
    assert (run.path / "status.json").read_bytes() == before


def test_a_process_that_was_killed_holds_nothing(run, other):
    other.kill()
    with claimed(run):
        assert os.listdir(run.path) == ["lock"]
    with claimed(run):
        pass


def test_one_that_is_ending_is_waited_for(run, other):
    other.stdin.close()
    with claimed(run):
        assert other.wait() == 0


def test_a_disk_that_refuses_is_not_taken_for_another_process(run):
    (run.path / "lock").mkdir()
    with pytest.raises(RunError, match="lock: cannot be locked: Is a directory"), claimed(run):
        pytest.fail("not locked")
