"""The command and its trials: reading, ingest and restoration take turns, so that the machine's drift hits all."""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from psl_flower.config import RunConfig
from psl_flower.launch.running import local_paths
from psl_flower.stores.prepare import prepare_stores
from simulations import settings as common
from simulations.command_line import ReportBenchmark, Workspace
from simulations.machine import circumstances
from simulations.progress import Progress
from simulations.sealed_cost.results import (
    GROWTH,
    Ingest,
    Options,
    Reading,
    Report,
    Restoring,
    Settings,
    Trial,
    summarise,
)
from simulations.sealed_cost.work import IngestJob, ReadJob, RestoreJob, ask

# Keys that the benchmark decides, each with the option that asks for it, if any.
DECIDED = {
    **common.DECIDED,
    "rounds": "", "steps-per-round": "--steps", "transport": "", "workspace": "", "max-train": "--images",
    "stores": "", "keys": "", "owner": "", "image-size": "", "device": "",
}  # fmt: skip


class SealedCost(ReportBenchmark[Options]):
    """The benchmark."""

    name, options, decided = "sealed_cost", Options, DECIDED
    about = "Measure what sealing costs on this machine: reads beside a step, ingest, restoration, memory."

    def measure(self, config: RunConfig, options: Options, workspace: Workspace, progress: Progress) -> Report:
        """Measure and return the report."""
        began = circumstances()
        shared = config.replace(
            **local_paths(config.to_mapping()),
            workspace=str(workspace.path), max_train=options.images, rounds=1,
            steps_per_round=options.warmup + options.steps, upper_threads=options.threads,
            lower_threads=options.threads,
        )  # fmt: skip
        stores = prepare_stores(shared, progress.ingesting)
        prepare_stores(shared.replace(stores="plain"), progress.ingesting)
        settings = Settings(
            **asdict(options),
            config=common.without(config, DECIDED),
            uppers=stores.description.num_uppers,
        )
        trials = []
        for repetition in range(1, options.repetitions + 1):
            progress.trial(f"repetition {repetition} of {options.repetitions}")
            trials.append(_trial(shared, options, workspace.path / f"trial-{repetition}", repetition))
            progress.result(_said(trials[-1]))
        return Report(
            **began,
            settings=settings,
            measurements=tuple(trials),
            summary=summarise(settings, trials),
        )


def _trial(config: RunConfig, options: Options, folder: Path, seed: int) -> Trial:
    job = ReadJob(
        config=config.to_mapping(),
        batches=options.batches,
        steps=options.warmup + options.steps,
        threads=options.threads,
        seed=seed,
    )
    reading = ask(job, Reading)
    small, large = (
        ask(
            IngestJob(config=config.replace(max_train=times * options.images).to_mapping(), folder=str(folder / name)),
            Ingest,
        )
        for name, times in (("small", 1), ("large", GROWTH))
    )
    restoring = ask(
        RestoreJob(config=config.to_mapping(), folder=str(folder / "large"), images=options.restored, seed=seed),
        Restoring,
    )
    shutil.rmtree(folder)
    return Trial(reading=reading, ingests=(small, large), restoring=restoring)


def _said(trial: Trial) -> str:
    large = trial.ingests[-1]
    return (
        f"{1e3 * sorted(trial.reading.sealed_s)[len(trial.reading.sealed_s) // 2]:.2f} ms a batch, "
        f"{60 * large.images / large.seconds:.0f} images ingested a minute"
    )


BENCHMARK = SealedCost()

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
