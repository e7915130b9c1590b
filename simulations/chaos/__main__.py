"""The storm: a real run (`psl train --retries`) in a simulation on this machine, and kills of its processes.

The undisturbed run is the same network trained in one process on the same batches.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from psl_flower.cli.output import exit_status
from psl_flower.config import fields
from psl_flower.config.fields import setting
from psl_flower.engine.checkpoints import same_weights
from psl_flower.engine.one_process import OneProcessTrainer
from psl_flower.runs.folder import MODEL_FILE, RunFolder
from psl_flower.stores.prepare import prepare_stores
from simulations.chaos import deployed
from simulations.chaos.deployed_results import Report as DeployedReport
from simulations.chaos.job import ROLES, Job
from simulations.chaos.results import STARTING, TRAINING, Kill, Report
from simulations.command_line import check_out, deliver, new_parser, workspace_of
from simulations.machine import circumstances
from simulations.options import read_options
from simulations.reports import Values

# One thread each, so that the weights can be compared bit for bit.
_SETTINGS: Values = {
    "dataset": "digits", "max-train": 96, "max-test": 32, "batch-size": 16, "lr": 0.02, "checkpoint-every": 3,
    "upper-threads": 1, "lower-threads": 1,
}  # fmt: skip
_STEPS_PER_ROUND = 30
# This share of the kills comes while the run is restarting, at most this long after the new process appears.
_SHARE_STARTING, _LONGEST_START_S = 0.2, 8.0
_LONGEST_STEP_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Options(fields.Settings):
    """How to disturb the run."""

    kills: int = setting(5, "processes to kill", least=1)
    seed: int = setting(0, "seed of the kills and their times")
    steps: int = setting(0, "training steps; 0: six for each kill; not with --deployed", least=0)
    deployed: bool = setting(
        False, "disturb deployed federations with TLS (network namespaces; needs root), not a simulation; finished "
        "trials in the file of --out are kept",
    )  # fmt: skip
    kills_per_run: int = setting(10, "with --deployed: kills of one run, or of two at once", least=1)
    nodes: int = setting(4, "with --deployed: nodes of a federation", least=1, most=4)
    federations: int = setting(1, "with --deployed: federations side by side", least=1)
    keep: bool = setting(False, "keep the workspace with logs and runs, and print where")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status, see `exit_status`; 1 also if the weights differ."""
    parser = make_parser()
    return exit_status(lambda: _storm(parser.parse_args(arguments)))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    return new_parser(
        "chaos",
        "Kill processes of a run again and again, and compare the weights at its end with those of an undisturbed run.",
        Options,
    )


def _storm(given: argparse.Namespace) -> None:
    check_out(given.out)
    options = read_options(given, Options)
    report: Report | DeployedReport
    with workspace_of("psl-chaos-", keep=options.keep) as workspace:
        if options.deployed:
            report = deployed.rage(
                given.out, workspace.path, kills=options.kills, kills_per_run=options.kills_per_run,
                seed=options.seed, nodes=options.nodes, federations=options.federations,
            )  # fmt: skip
        else:
            report = storm(workspace.path, options)
    deliver(given, report)
    if not report.equal:
        sys.exit(1)


def storm(workspace: Path, options: Options) -> Report:
    """Train through a number of kills in a separate workspace.

    Raises
    ------
    RunError
        If the run does not survive, or is over before the last kill.
    """
    kills, steps = options.kills, options.steps or 6 * options.kills
    rounds = max(1, steps // _STEPS_PER_ROUND)
    settings = {**_SETTINGS, "rounds": rounds, "steps-per-round": steps // rounds}
    steps = rounds * (steps // rounds)
    told, began = circumstances(), time.monotonic()
    # A tenth more than is needed: another failure is then reported, and does not cost an hour.
    with Job(workspace, settings, retries=kills + kills // 10) as job:
        draw = random.Random(options.seed)
        killed = _kill_now_and_then(job, kills, steps, draw)
        job.finish()
    return Report(
        **told,
        settings=settings,
        seed=options.seed,
        measurements=tuple(killed),
        kills=dict(Counter(kill.role for kill in killed)),
        restarts=job.restarts,
        steps=steps,
        steps_repeated=sum(kill.steps_repeated for kill in killed),
        seconds=time.monotonic() - began,
        seconds_lost=sum(kill.lost_s or 0.0 for kill in killed),
        equal=_equal(job.run, steps),
    )


def _kill_now_and_then(job: Job, kills: int, steps: int, draw: random.Random) -> list[Kill]:
    done: list[Kill] = []
    moment = TRAINING
    for number in range(kills):
        role = draw.choice(list(ROLES))
        if moment == TRAINING:
            # Spread over the run, never so late that it could be over; at any moment of a step.
            job.wait_for_step((number + 1) * steps // (kills + 2))
            time.sleep(draw.uniform(0.0, _LONGEST_STEP_S))
        else:
            job.wait_for_process(role)
            time.sleep(draw.uniform(0.0, _LONGEST_START_S))
        before = job.step()
        job.kill(role, draw)
        killed = time.monotonic()
        committed = job.wait_for_restart(number + 1)
        following = STARTING if draw.random() < _SHARE_STARTING and number + 1 < kills else TRAINING
        if following == TRAINING:
            job.wait_for_step(committed + 1)
        lost_s = time.monotonic() - killed
        done.append(Kill(role=role, moment=moment, step=before, committed=committed, lost_s=lost_s))
        print(
            f"kill {number + 1} of {kills}: {role} {moment}, step {before}, continuing from {committed}",
            file=sys.stderr,
        )
        moment = following
    return done


def _equal(run: RunFolder, steps: int) -> bool:
    torch.set_num_threads(1)
    config = run.read_config().replace(workspace=str(run.path.parents[1]))
    stores = prepare_stores(config)
    with stores.opened() as opened:
        trainer = OneProcessTrainer(config, stores.description, stores.labels, opened)
        trainer.train(steps)
    return same_weights(trainer.net.state_dict(), load_file(run.model / MODEL_FILE))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
