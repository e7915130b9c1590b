"""A signal that ends a command leaves nothing of Flower's behind; which signals, and when they count."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from psl_flower.cli.train import _follow
from psl_flower.errors import RunError
from psl_flower.kinds import Train
from psl_flower.launch import signals
from psl_flower.launch.running import Watch
from psl_flower.runs.folder import RunFolder, Status, create_run

# Stands for a command that is busy while its SuperLink runs: a program that starts one of its own, as Flower's do.
COMMAND = """
import sys, time
from psl_flower.launch import superlink
superlink._program = lambda name: sys.argv[1]
with superlink.LocalSuperLink() as link:
    print(link.home, flush=True)
    time.sleep(60)
"""
PROGRAM = """
import signal, subprocess, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen(["sleep", "50"])
time.sleep(50)
"""
SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_leaves_neither_processes_nor_folder(number, tmp_path):
    assert SIGNALS
    program = tmp_path / "superlink"
    program.write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(program)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: [signal.signal(each, signal.SIG_DFL) for each in SIGNALS],
    )  # fmt: skip
    assert process.stdout is not None
    home = Path(process.stdout.readline().strip())
    while len(children(process)) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    family = children(process)
    os.kill(process.pid, number)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGTERM)  # impatience does not end the cleaning up
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert not home.exists()
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.raising():
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(signals.Terminated, match="SIGTERM"):
                os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return create_run(tmp_path, "tiny", "digits")


def test_the_end_is_noted_unless_the_run_has_said_it(run):
    run.write_status(Status(state="completed", step=9))
    time.sleep(0.01)
    watch = Watch(None, run, Train().how_to_continue)
    noted = watch.note_end("stopped", "ended at once by SIGTERM")
    assert noted.state == "stopped", "the old status was another attempt's"
    assert run.read_status().message == "ended at once by SIGTERM"
    assert (run.path / "log.txt").read_text().endswith(" INFO ended at once by SIGTERM\n")
    run.write_status(Status(state="training", step=3))
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints" / "step-00000002.pt").touch()
    noted = watch.note_end("failed", "error: gone")
    assert (noted.state, noted.step) == ("failed", 3)
    assert noted.message == "error: gone; continue with: psl train resume=tiny"
    assert (run.path / "log.txt").read_text().splitlines()[-1].endswith(f" ERROR {noted.message}")
    assert watch.note_end("stopped", "too late") == run.read_status(), "the run has said how it ended"


@pytest.mark.parametrize("state", ["failed", "stopped"])
def test_the_end_is_noted_though_the_disk_takes_no_line_of_the_log(run, state):
    """Else nothing would say why the run ended, and its last status would go on saying that it trains."""
    run.write_status(Status(state="training", step=3))
    watch = Watch(None, run)
    run.write_status(Status(state="training", step=4))
    (run.path / "log.txt").unlink(missing_ok=True)
    (run.path / "log.txt").symlink_to("/dev/full")
    noted = watch.note_end(state, "error: gone")
    assert (noted.state, noted.step) == (state, 4)
    assert noted.message.startswith("error: gone; ") and "log.txt: cannot be written" in noted.message
    found = run.read_status()
    assert (found.state, found.message) == (noted.state, noted.message)


def test_why_a_run_ended_is_returned_though_the_disk_takes_no_status(run, monkeypatch):
    def full(self, status):
        raise RunError("status.json: cannot be written: No space left on device")

    monkeypatch.setattr(RunFolder, "write_status", full)
    noted = Watch(None, run).note_end("failed", "error: gone")
    assert noted.state == "failed"
    assert noted.message == "error: gone; status.json: cannot be written: No space left on device"


def test_a_full_disk_does_not_hold_an_interruption_up(tmp_path, monkeypatch):
    run = create_run(tmp_path, "tiny", "digits")
    (run.path / "stop").symlink_to("/proc/none")  # nobody can write there, not even root
    notices = []

    def interrupted():
        raise KeyboardInterrupt

    watch, follower = SimpleNamespace(poll=interrupted), SimpleNamespace(notice=notices.append)
    with pytest.raises(KeyboardInterrupt):
        _follow(watch, run, follower, "step")
    assert len(notices) == 1 and "stop: cannot be written" in notices[0] and notices[0].endswith("ends at once")
