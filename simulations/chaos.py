"""Kills processes of a run again and again, and compares the weights at its end with those of an undisturbed run.

    python -m simulations.chaos --kills 50 --seed 1

The run is a real one (`psl train --retries`) in a simulation on this machine; the undisturbed one is the same network
trained in one process on the same batches.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from psl_flower.data.preparing import prepare_stores
from psl_flower.engine.monolith import Monolith
from psl_flower.errors import PslError, RunError
from psl_flower.launch.superlink import environment
from psl_flower.runs import RunFolder
from simulations.throughput.bench import describe_machine

# What is killed -> how its processes are recognised.
ROLES = {"node": "ClientAppActor", "server": "flwr-simulation", "SuperLink": "flower-superlink"}
_MARK = "PSL_CHAOS"
_NAME = "chaos"
_POLL_S = 0.2


@dataclass
class Outcome:
    """What became of the run.

    Attributes
    ----------
    kills : dict[str, int]
        Kills by role.
    steps, steps_repeated : int
        Training steps of the run, and how many were done again.
    seconds, seconds_lost : float
        Wall time of the run, and of it from each kill to the first step after it.
    equal : bool
        Whether the weights are bit for bit those of the undisturbed run.
    """

    steps: int
    kills: dict[str, int] = field(default_factory=dict)
    steps_repeated: int = 0
    seconds: float = 0.0
    seconds_lost: float = 0.0
    equal: bool = False

    def __str__(self) -> str:
        """Return three lines for people."""
        killed = ", ".join(f"{role} {count}" for role, count in self.kills.items())
        return (
            f"{sum(self.kills.values())} kills survived ({killed})\n"
            f"{self.steps} steps, {self.steps_repeated} of them repeated; {self.seconds:.0f} s, of which "
            f"{self.seconds_lost:.0f} s were lost by kills\n"
            f"weights {'bit-equal to' if self.equal else 'DIFFERENT from'} those of the undisturbed run"
        )


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0 if the weights are equal, 1 if not or if the run failed."""
    parser = argparse.ArgumentParser(prog="python -m simulations.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=5, help="processes to kill [5]")
    parser.add_argument("--seed", type=int, default=0, help="of roles and moments [0]")
    parser.add_argument("--steps", type=int, default=0, help="training steps [six for each kill]")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(arguments)
    if given.kills < 1 or given.steps < 0:
        parser.error("--kills must be 1 or more, --steps not negative")
    try:
        with tempfile.TemporaryDirectory(prefix="psl-chaos-") as folder:
            outcome = storm(Path(folder), given.kills, given.seed, given.steps or 6 * given.kills)
    except PslError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if given.json:
        print(json.dumps({**asdict(outcome), "machine": describe_machine()}))
    else:
        print(outcome)
    return 0 if outcome.equal else 1


def storm(workspace: Path, kills: int, seed: int, steps: int) -> Outcome:
    """Train through a number of kills in a workspace of its own.

    Raises
    ------
    RunError
        If the run does not survive, or is over before the last kill.
    """
    settings = [
        "dataset=digits", "max-train=96", "max-test=32", "batch-size=16", "lr=0.02", "rounds=1", "checkpoint-every=1",
        f"steps-per-round={steps}", f"run-name={_NAME}", "upper-threads=1", "lower-threads=1",
    ]  # fmt: skip
    command = [sys.executable, "-m", "psl_flower.cli.main", "train", *settings, "--retries", str(kills)]
    outcome, run = Outcome(steps), RunFolder(workspace / "runs" / _NAME)
    began = time.monotonic()
    process = subprocess.Popen(
        command, env={**environment(), "PSL_WORKSPACE": str(workspace), _MARK: str(workspace)},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        _kill_now_and_then(process, run, workspace, kills, random.Random(seed), outcome)
        output, _ = process.communicate()
    finally:
        for left in [process, *_processes(workspace)]:
            left.kill()
    outcome.seconds = time.monotonic() - began
    if process.returncode != 0:
        raise RunError(f"the run did not survive: {output.strip().splitlines()[-1] if output else 'it said nothing'}")
    outcome.equal = _equal(run, steps)
    return outcome


def _kill_now_and_then(
    process: subprocess.Popen[str], run: RunFolder, workspace: Path, kills: int, draw: random.Random, outcome: Outcome
) -> None:
    count: Counter[str] = Counter()
    reached = 0
    for number in range(kills):
        role = draw.choice(list(ROLES))
        # Spread over the run, never so late that it could be over; at any moment of a step.
        target = max(reached + 1, (number + 1) * outcome.steps // (kills + 2))
        _wait_for(process, run, target)
        time.sleep(draw.uniform(0.0, 1.0))
        victims = [p for p in _processes(workspace) if ROLES[role] in _title(p)]
        if not victims:
            raise RunError(f"no {role} to kill at step {target}")
        before = _step(run)
        draw.choice(victims).kill()
        killed = time.monotonic()
        count[role] += 1
        committed = _wait_for_restart(process, run)
        outcome.steps_repeated += max(0, before - committed)
        _wait_for(process, run, committed + 1)
        outcome.seconds_lost += time.monotonic() - killed
        reached = _step(run)
        print(f"kill {number + 1} of {kills}: {role} at step {before}, going on from {committed}", file=sys.stderr)
    outcome.kills = dict(count)


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
        raise RunError(f"the run ended too early: {output.strip().splitlines()[-1] if output.strip() else 'silently'}")


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


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
