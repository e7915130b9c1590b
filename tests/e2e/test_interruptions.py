"""Whatever interrupts a run, what is resumed ends with the weights of an undisturbed run."""

from __future__ import annotations

import os
import signal

import pytest

from psl_flower.runs.folder import RunFolder
from tests.e2e.conftest import TINY, Place, differing, model, oracle, wait_until

START_S = 180


def _steps(run: RunFolder) -> int:
    status = run.read_status()
    return status.step if status else 0


def test_ctrl_c_leaves_a_checkpoint_and_resume_continues(place: Place) -> None:
    settings = [*TINY, "rounds=2", "steps-per-round=5", "run-name=stopped", "evaluate-every=0"]
    process = place.start_psl("train", *settings)
    run = place.run("stopped")
    wait_until(lambda: _steps(run) >= 1, START_S, "the first step")
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    status = run.read_status()
    assert status is not None and status.state == "stopped", output
    assert "stopping after this step, with a checkpoint" in output
    assert output.count("resume=stopped") == 1
    assert "error:" not in output
    assert process.returncode == 128 + signal.SIGINT
    committed = run.checkpoints.steps()
    assert committed and committed[-1] == status.step < 10

    done = place.psl("train", "resume=stopped")
    assert done.returncode == 0, done.stderr
    assert [m["step"] for m in run.read_metrics()][-1] == 10
    assert differing(model(run), oracle(run, 10)) == []


def test_sigterm_ends_a_run_soon_and_leaves_nothing(place: Place) -> None:
    settings = [*TINY, "rounds=1", "steps-per-round=200", "run-name=termed"]
    process = place.start_psl("train", *settings)
    run = place.run("termed")
    wait_until(lambda: _steps(run) >= 1, START_S, "the first step")
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    status = run.read_status()
    assert status is not None and status.state == "stopped", output
    assert process.returncode == 128 + signal.SIGTERM
    assert place.processes() == []


def test_kill_of_all_processes_and_resume(place: Place) -> None:
    settings = [*TINY, "rounds=2", "steps-per-round=4", "run-name=killed", "checkpoint-every=2", "evaluate-every=0"]
    process = place.start_psl("train", *settings)
    run = place.run("killed")
    wait_until(lambda: _steps(run) >= 3 and bool(run.checkpoints.steps()), START_S, "a checkpoint")
    place.kill_all()
    process.communicate(timeout=60)
    assert run.checkpoints.steps()[-1] < 8, "the run was over before it was killed"

    done = place.psl("train", "resume=killed")
    assert done.returncode == 0, done.stderr
    assert differing(model(run), oracle(run, 8)) == []
    before = run.read_status()
    complete = place.psl("train", "resume=killed")
    assert complete.returncode == 0
    assert "run killed has finished, all of its 2 rounds" in complete.stdout
    assert run.read_status() == before

    # A one-cycle schedule knows how long it lasts, so more rounds need a word; a constant one does not.
    refused = place.psl("train", "resume=killed", "rounds=3")
    assert refused.returncode == 1 and "resume-anyway=true" in refused.stderr
    assert (
        place.psl("train", *TINY, "rounds=1", "steps-per-round=3", "schedule=constant", "run-name=short").returncode
        == 0
    )
    longer = place.psl("train", "resume=short", "rounds=2")
    assert longer.returncode == 0, longer.stderr
    assert place.run("short").read_config().training.rounds == 2
    assert differing(model(place.run("short")), oracle(place.run("short"), 6)) == []


def test_resume_refuses_what_would_make_it_another_run(place: Place) -> None:
    assert place.psl("train", *TINY, "rounds=1", "steps-per-round=1", "run-name=short").returncode == 0
    refused = place.psl("train", "resume=short", "lr=0.5")
    assert refused.returncode == 1
    assert "lr: run short began with 0.02" in refused.stderr


def _kill_in_step_two(place: Place, victim: str, *arguments: str) -> tuple[int, str, RunFolder]:
    """Kill one process of a run under way; return psl train's exit status and output, and the run."""
    settings = [*TINY, "rounds=1", "steps-per-round=20", "run-name=dead", "checkpoint-every=1"]
    process = place.start_psl("train", *settings, *arguments)
    run = place.run("dead")
    wait_until(lambda: _steps(run) >= 2, START_S, "two steps")
    found = [p for p in place.processes() if victim in " ".join(p.cmdline()) or victim in p.name()]
    assert found, [" ".join(p.cmdline())[:80] for p in place.processes()]
    found[0].send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=240)
    assert "Traceback" not in output
    assert run.checkpoints.steps()
    assert place.processes() == []
    return process.returncode, output, run


@pytest.mark.parametrize("victim", ["ClientAppActor", pytest.param("flwr-simulation", marks=pytest.mark.slow)])
def test_a_dead_process_ends_the_run_with_one_clear_error(place: Place, victim: str) -> None:
    status, output, run = _kill_in_step_two(place, victim)
    assert status == 1
    assert "error:" in output
    assert run.checkpoints.steps()[-1] < 20, "the run was over before its process was killed"


@pytest.mark.slow  # the kill storm goes by retries, too
def test_a_run_with_retries_goes_on_by_itself(place: Place) -> None:
    status, output, run = _kill_in_step_two(place, "ClientAppActor", "--retries", "1")
    assert status == 0, output
    assert "restarting from the last checkpoint, 0 retries left" in output
    assert "continuing after step" in output
    assert differing(model(run), oracle(run, 20)) == []
