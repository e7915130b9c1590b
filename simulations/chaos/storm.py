"""The storm: a real run (`psl train --retries`) in a simulation on this machine, and kills of its processes.

The undisturbed run is the same network trained in one process on the same batches.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from psl_flower.data.preparing import prepare_stores
from psl_flower.engine.monolith import Monolith
from psl_flower.errors import RunError
from psl_flower.launch.superlink import environment, last_line
from psl_flower.runs import RunFolder
from simulations.chaos.results import Kill, Report
from simulations.machine import circumstances
from simulations.reports import Values

# What is killed -> how its processes are recognised.
ROLES = {"node": "ClientAppActor", "server": "flwr-simulation", "SuperLink": "flower-superlink"}
# One thread each, so that the weights can be compared bit for bit.
_SETTINGS: Values = {
    "dataset": "digits", "max-train": 96, "max-test": 32, "batch-size": 16, "lr": 0.02, "rounds": 1,
    "checkpoint-every": 1, "upper-threads": 1, "lower-threads": 1,
}  # fmt: skip
_MARK = "PSL_CHAOS"
_NAME = "chaos"
_POLL_S = 0.2


def storm(workspace: Path, kills: int, seed: int, steps: int) -> Report:
    """Train through a number of kills in a workspace of its own.

    Raises
    ------
    RunError
        If the run does not survive, or is over before the last kill.
    """
    settings = {**_SETTINGS, "steps-per-round": steps, "run-name": _NAME}
    command = [
        sys.executable, "-m", "psl_flower.cli.main", "train", *(f"{key}={value}" for key, value in settings.items()),
        "--retries", str(kills),
    ]  # fmt: skip
    told, run = circumstances(), RunFolder(workspace / "runs" / _NAME)
    began = time.monotonic()
    process = subprocess.Popen(
        command, env={**environment(), "PSL_WORKSPACE": str(workspace), _MARK: str(workspace)},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        killed = _kill_now_and_then(process, run, workspace, kills, steps, random.Random(seed))
        output, _ = process.communicate()
    finally:
        for left in [process, *_processes(workspace)]:
            left.kill()
    seconds = time.monotonic() - began
    if process.returncode != 0:
        raise RunError(f"the run did not survive: {last_line(output)}")
    return Report(
        **told,
        settings=_SETTINGS,
        seed=seed,
        measurements=tuple(killed),
        kills=dict(Counter(kill.role for kill in killed)),
        steps=steps,
        steps_repeated=sum(kill.steps_repeated for kill in killed),
        seconds=seconds,
        seconds_lost=sum(kill.lost_s for kill in killed),
        equal=_equal(run, steps),
    )


def _kill_now_and_then(
    process: subprocess.Popen[str], run: RunFolder, workspace: Path, kills: int, steps: int, draw: random.Random
) -> list[Kill]:
    done: list[Kill] = []
    reached = 0
    for number in range(kills):
        role = draw.choice(list(ROLES))
        # Spread over the run, never so late that it could be over; at any moment of a step.
        target = max(reached + 1, (number + 1) * steps // (kills + 2))
        _wait_for(process, run, target)
        time.sleep(draw.uniform(0.0, 1.0))
        victims = [p for p in _processes(workspace) if ROLES[role] in _title(p)]
        if not victims:
            raise RunError(f"no {role} to kill at step {target}")
        before = _step(run)
        draw.choice(victims).kill()
        killed = time.monotonic()
        committed = _wait_for_restart(process, run)
        _wait_for(process, run, committed + 1)
        done.append(Kill(role=role, step=before, committed=committed, lost_s=time.monotonic() - killed))
        reached = _step(run)
        print(f"kill {number + 1} of {kills}: {role} at step {before}, going on from {committed}", file=sys.stderr)
    return done


def _wait_for(process: subprocess.Popen[str], run: RunFolder, step: int) -> None:
    while _step(run) < step or not run.checkpoints.steps():
        _check_alive(process)
        time.sleep(_POLL_S)


def _wait_for_restart(process: subprocess.Popen[str], run: RunFolder) -> int:
    """Wait until the run has begun anew; return the step that it goes on from."""
    while (status := run.read_status()) is None or status.state != "preparing":
        _check_alive(process)
        time.sleep(_POLL_S)
    return run.checkpoints.steps()[-1]


def _check_alive(process: subprocess.Popen[str]) -> None:
    if process.poll() is not None:
        output = process.stdout.read() if process.stdout else ""
        raise RunError(f"the run ended too early: {last_line(output)}")


def _step(run: RunFolder) -> int:
    status = run.read_status()
    return status.step if status is not None and status.state == "training" else 0


def _processes(workspace: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARK) == str(workspace) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def _title(process: psutil.Process) -> str:
    try:
        return f"{process.name()} {' '.join(process.cmdline())}"
    except psutil.Error:
        return ""


def _equal(run: RunFolder, steps: int) -> bool:
    torch.set_num_threads(1)
    config = run.read_config().replace(workspace=str(run.path.parents[1]))
    stores = prepare_stores(config)
    opened = [stores.open(m) for m in range(stores.manifest.num_uppers)]
    monolith = Monolith(config, stores.manifest, stores.labels, opened)
    monolith.train(steps)
    expected, found = monolith.net.state_dict(), load_file(run.model / "model.safetensors")
    return expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)
