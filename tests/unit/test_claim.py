"""One process at a time works on a run."""

import json
import os
import subprocess
import sys

import pytest

from psl_flower.cli.main import main
from psl_flower.config import RunConfig
from psl_flower.errors import DatasetNotFound, RunError
from psl_flower.runs import claim
from psl_flower.runs.claim import claimed, starting
from psl_flower.runs.folder import RunFolder, Status, create_run

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


@pytest.fixture
def new(tmp_path):
    return RunFolder(tmp_path / "workspace" / "runs" / "new")


def listed(workspace, capsys) -> dict[str, str]:
    assert main(["runs", "--workspace", str(workspace), "--json"]) == 0
    return {run["run"]: run["state"] for run in json.loads(capsys.readouterr().out)["runs"]}


def test_a_run_is_listed_from_its_first_moment(new, capsys):
    workspace = new.path.parents[1]
    with starting(new):
        assert listed(workspace, capsys) == {"new": "starting"}
        assert main(["runs", "--workspace", str(workspace)]) == 0
        assert "starting" in capsys.readouterr().out
        create_run(workspace, "new", "digits").write_config(RunConfig())
        assert listed(workspace, capsys) == {"new": "starting"}  # no longer "unknown"
        new.write_status(Status(state="preparing"))
        assert listed(workspace, capsys) == {"new": "preparing"}
        new.write_status(Status(state="completed"))
        assert listed(workspace, capsys) == {"new": "completed"}  # also while Flower's processes are ended
    assert os.listdir(new.path.parent) == ["new"]


def test_a_run_that_is_continued_is_listed_as_starting(new, capsys):
    workspace = new.path.parents[1]
    create_run(workspace, "new", "digits").write_config(RunConfig())
    new.write_status(Status(state="stopped"))
    with starting(new, new=False):
        assert listed(workspace, capsys) == {"new": "starting"}
        for command in ("rm", "prune"):
            assert main([command, "new", "--workspace", str(workspace)]) == 1
            assert "run new: is starting" in capsys.readouterr().err
        with pytest.raises(RunError, match="this run is being continued by another command"), starting(new, new=False):
            pytest.fail("two commands at once")
    assert listed(workspace, capsys) == {"new": "stopped"}


def test_a_run_that_came_to_nothing_leaves_nothing(new, tmp_path):
    with pytest.raises(DatasetNotFound), starting(new):
        raise DatasetNotFound("mistyped")
    assert os.listdir(tmp_path) == []


def test_a_killed_command_is_not_listed_and_its_notice_goes(new, capsys):
    hold = _HOLD.replace("claimed(", "starting(").replace("import claimed", "import starting")
    command = [sys.executable, "-c", hold, new.path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "claimed\n"
        assert listed(new.path.parents[1], capsys) == {"new": "starting"}
        process.kill()
    assert listed(new.path.parents[1], capsys) == {}
    with starting(RunFolder(new.path.with_name("next"))):
        assert os.listdir(new.path.parent) == [".next.starting"]
