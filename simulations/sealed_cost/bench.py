"""The trials: reading, ingest and restoration in turn, again and again, so that drift of the machine hits all alike."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from psl_flower.config import RunConfig
from psl_flower.data.preparing import prepare_stores
from simulations.sealed_cost.defaults import DECIDED
from simulations.sealed_cost.results import GROWTH, Ingest, Reading, Report, Restoring, Settings, Trial, summarise
from simulations.sealed_cost.work import IngestJob, ReadJob, RestoreJob, ask
from simulations.throughput.bench import describe_machine, versions
from simulations.throughput.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to measure; the fields are those of `Settings`."""

    images: int
    batches: int
    steps: int
    warmup: int
    restored: int
    repetitions: int
    threads: int


def run(config: RunConfig, options: Options, workspace: Path, progress: Progress) -> Report:
    """Measure and return the report.

    Parameters
    ----------
    config : RunConfig
        Dataset, grid, network, batch size.
    options : Options
        How to measure.
    workspace : Path
        Where the stores are made.
    progress : Progress
        Told how it goes.

    Raises
    ------
    PslError
        If the dataset cannot be used, or a trial fails.
    """
    date, machine = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), describe_machine()
    dataset = Path(config.dataset).expanduser()
    shared = config.replace(
        dataset=str(dataset.absolute()) if dataset.exists() else config.dataset,
        workspace=str(workspace), max_train=options.images, rounds=1, steps_per_round=options.warmup + options.steps,
        upper_threads=options.threads, lower_threads=options.threads,
    )  # fmt: skip
    stores = prepare_stores(shared, progress.ingesting)
    prepare_stores(shared.replace(stores="plain"), progress.ingesting)
    settings = Settings(
        config={key: value for key, value in config.to_mapping().items() if key not in DECIDED},
        uppers=stores.manifest.num_uppers,
        images=options.images,
        batches=options.batches,
        steps=options.steps,
        warmup=options.warmup,
        restored=options.restored,
        repetitions=options.repetitions,
        threads=options.threads,
    )
    trials = []
    for repetition in range(1, options.repetitions + 1):
        progress.trial(f"repetition {repetition} of {options.repetitions}")
        trials.append(_trial(shared, options, workspace / f"trial-{repetition}", repetition))
        progress.result(_said(trials[-1]))
    return Report(
        date=date,
        machine=machine,
        versions=versions(),
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
