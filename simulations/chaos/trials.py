"""The trials against a deployed federation: the faults, and the weights the runs end with."""

from __future__ import annotations

import contextlib
import hashlib
import random
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from psl_flower.errors import RunError
from psl_flower.runs.folder import MODEL_FILE
from simulations.chaos.deployed_results import Trial
from simulations.chaos.federation import Federation
from simulations.chaos.operated import OperatedRun
from simulations.chaos.storm import Storm
from simulations.separate_hosts.deployment import EXCHANGE_PORT
from simulations.watching import wait_until

UNDISTURBED, ONE_RUN, TWO_RUNS = "undisturbed", "one run", "two runs at once"
NODE_DISK, SERVER_DISK = "a node's disk is full", "the server's disk is full"
_DISKS = (NODE_DISK, SERVER_DISK)
STEPS_PER_ROUND = 12
# Steps of a run with a full disk, and of an undisturbed one.
_FEW_STEPS = 24
# Enough on average, since most kills come while the run still recovers from others.
_STEPS_PER_KILL = 2
# Over the flower transport a step takes a minute on a busy machine: Flower starts a process for every message.
_FLOWER_STEPS, _FLOWER_STEPS_PER_ROUND = 8, 4
# Over streams the Lower's words lag a little behind its steps.
_UNDER_WAY = {"stream": 4, "flower": 0}
# Room for the states of an Upper, and of the Lower, of some steps; and for all.
_ROOM = {NODE_DISK: "3m", SERVER_DISK: "240m"}
_ENOUGH = "2g"
_FULL = "No space left on device"
_LONGEST_RUN_S, _LONGEST_START_S = 900.0, 180.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a trial is to do."""

    #: See `Trial`.
    name: str
    kind: str
    transport: str = "stream"
    kills: int = 0  #: Number of kills.
    steps: int = _FEW_STEPS  #: Training steps of each run.
    steps_per_round: int = STEPS_PER_ROUND  #: Those of a round.
    seed: int = 0  #: Seed of roles and moments.

    @property
    def settings(self) -> tuple[str, ...]:
        """Settings of its runs, as KEY=VALUE, that they do not share with all others."""
        rounds = self.steps // self.steps_per_round
        return (f"transport={self.transport}", f"rounds={rounds}", f"steps-per-round={self.steps_per_round}")


def plans(kills: int, kills_per_run: int, seed: int) -> list[Plan]:
    """Return the trials of a number of kills: one undisturbed, storms in turns, full disks."""
    turns = ((ONE_RUN, "stream"), (TWO_RUNS, "stream"), (ONE_RUN, "flower"), (ONE_RUN, "stream"), (ONE_RUN, "stream"))
    storms = []
    for number, first in enumerate(range(0, kills, kills_per_run)):
        kind, transport = turns[number % len(turns)]
        count = min(kills_per_run, kills - first)
        per_round = _FLOWER_STEPS_PER_ROUND if transport == "flower" else STEPS_PER_ROUND
        steps = _FLOWER_STEPS if transport == "flower" else per_round * max(2, _STEPS_PER_KILL * count // per_round)
        storms.append(
            Plan(
                name=f"storm-{number + 1}", kind=kind, transport=transport, kills=count, steps=steps,
                steps_per_round=per_round, seed=seed + number,
            )
        )  # fmt: skip
    disks = [Plan(name=f"disk-{n}", kind=kind) for n, kind in enumerate(_DISKS, 1)]
    return [Plan(name="undisturbed", kind=UNDISTURBED), *storms[:3], *disks, *storms[3:]]


def attempt(federation: Federation, plan: Plan) -> Trial:
    """Do one trial; its failures are in its result."""
    began, failure = time.monotonic(), ""
    runs: list[OperatedRun] = []
    storm = Storm(
        federation, runs, random.Random(plan.seed), steps_per_round=plan.steps_per_round,
        under_way=_UNDER_WAY[plan.transport],
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        try:
            federation.wait_for_nodes(len(federation.nodes), _LONGEST_START_S)
            if plan.kind in _DISKS:
                room = stack.enter_context(_small_disk(federation, plan))
                runs.append(OperatedRun(federation, plan.name, plan.settings, EXCHANGE_PORT))
                _fill_up(runs[0], room)
            else:
                names = (plan.name, f"{plan.name}-too")[: 2 if plan.kind == TWO_RUNS else 1]
                runs += [
                    OperatedRun(federation, name, plan.settings, EXCHANGE_PORT + n) for n, name in enumerate(names)
                ]
                storm.rage(plan.kills)
        except RunError as error:
            failure = str(error)
        return _told(federation, plan, storm, runs, failure, time.monotonic() - began)


def _told(
    federation: Federation, plan: Plan, storm: Storm, runs: list[OperatedRun], failure: str, seconds: float
) -> Trial:
    weights = tuple(_digest(load_file(run.folder.model / MODEL_FILE)) for run in runs if run.complete)
    if not failure:  # 100 MB each
        for run in runs:
            shutil.rmtree(run.folder.checkpoints.folder)
    return Trial(
        name=plan.name,
        kind=plan.kind,
        transport=plan.transport,
        runs=2 if plan.kind == TWO_RUNS else 1,
        steps=plan.steps,
        kills=tuple(storm.kills),
        resumed=sum(run.resumed for run in runs),
        errors=tuple(_shortened(error, federation) for run in runs for error in run.errors),
        seconds=round(seconds, 1),
        weights=weights,
        undisturbed=_undisturbed(federation, runs[0], plan.steps) if runs and weights else "",
        failure=_shortened(failure, federation),
    )


@contextlib.contextmanager
def _small_disk(federation: Federation, plan: Plan) -> Iterator[Path]:
    """Put a small disk where a host keeps its states, yield the folder, and take the disk away again."""
    node = plan.kind == NODE_DISK
    host = federation.nodes[0] if node else federation.server
    folder = host.folder / "state" if node else federation.run(plan.name).path.parent
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_ROOM[plan.kind]}", "psl-chaos", folder], check=True)
    try:
        # Programs that ran before do not see it: `ip netns exec` gives each its own list of mounts.
        federation.restart(host)
        federation.wait_for_nodes(len(federation.nodes), _LONGEST_START_S)
        yield folder
    finally:
        host.kill_all()
        subprocess.run(["umount", "-l", folder], check=True)
        federation.restart(host)


def _fill_up(run: OperatedRun, folder: Path) -> None:
    """Wait until a full disk ends a run with that error; free space, and have it resumed.

    Raises
    ------
    RunError
        If it does not end, says something else, or is not completed when it is resumed.
    """
    wait_until(lambda: run.over, _LONGEST_RUN_S, "the full disk to end the run")
    said = run.last_words()
    if _FULL not in said:
        raise RunError(f"a full disk ended the run with: {said}")
    subprocess.run(["mount", "-o", f"remount,size={_ENOUGH}", folder], check=True)
    run.tend()
    what = "the run to end that was resumed with room on the disk"
    wait_until(lambda: run.complete or run.over, _LONGEST_RUN_S, what)
    if not run.complete:
        raise RunError(f"resumed with room on the disk, the run ended with: {run.last_words()}")


def _undisturbed(federation: Federation, run: OperatedRun, steps: int) -> str:
    """Return the digest of the weights of the network trained in this process."""
    torch.set_num_threads(1)
    one_process = federation.one_process(run.folder.name)
    one_process.train(steps)
    return _digest(one_process.net.state_dict())


def _digest(state: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + b"\0")
        digest.update(state[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _shortened(text: str, federation: Federation) -> str:
    """Return an error without this machine's folders."""
    return text.replace(str(federation.server.folder.parent), "")[:600]
