"""The trials: one process and each transport in turn, again and again, so that drift of the machine hits all alike."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

from psl_flower.config import RunConfig
from psl_flower.data.preparing import prepare_stores
from psl_flower.data.store_set import StoreSet
from psl_flower.engine.build import make_task
from psl_flower.launch.running import federation
from psl_flower.machine import count_gpus, usable_cores
from simulations.throughput import federated, one_process
from simulations.throughput.defaults import DECIDED
from simulations.throughput.progress import Progress
from simulations.throughput.results import ONE_PROCESS, Measurement, Report, Settings, summarise

_PACKAGES = ("psl-flower", "torch", "flwr", "ray", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to measure; the fields are those of `Settings`."""

    transports: tuple[str, ...]
    steps: int
    warmup: int
    repetitions: int
    threads: int
    round_at_cut: bool = False


def run(config: RunConfig, options: Options, workspace: Path, progress: Progress, *, keep: bool = False) -> Report:
    """Measure all modes and return the report.

    Parameters
    ----------
    config : RunConfig
        What all trials share.
    options : Options
        How to measure.
    workspace : Path
        Where the stores are made, once, and the runs.
    progress : Progress
        Told how it goes.
    keep : bool
        Whether the runs' folders stay.

    Raises
    ------
    PslError
        If the dataset cannot be used, or a trial fails.
    """
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    machine = describe_machine()
    total_steps = options.warmup + options.steps
    dataset = Path(config.dataset).expanduser()
    shared = config.replace(
        # The trials read it from other folders.
        dataset=str(dataset.absolute()) if dataset.exists() else config.dataset,
        workspace=str(workspace), rounds=1, steps_per_round=total_steps, evaluate_every=0, collect_model=False,
    )  # fmt: skip
    stores = prepare_stores(shared, progress.ingesting)
    nodes = int(federation(stores.manifest.num_uppers)["num-supernodes"])
    settings = Settings(
        config={key: value for key, value in config.to_mapping().items() if key not in DECIDED},
        transports=options.transports,
        steps=options.steps,
        warmup=options.warmup,
        repetitions=options.repetitions,
        threads=options.threads,
        upper_threads=max(1, options.threads // nodes),
        nodes=nodes,
        round_at_cut=options.round_at_cut,
    )
    trials = _Trials(shared, settings, stores, keep)
    measurements = []
    for repetition in range(1, options.repetitions + 1):
        for mode in settings.modes:
            progress.trial(f"repetition {repetition} of {options.repetitions}, {mode}")
            measurement = trials.measure(
                mode, repetition, lambda done: progress.step(done, total_steps, config.batch_size)
            )
            measurements.append(measurement)
            progress.result(
                f"{measurement.images_per_s:.1f} images/s, first step after {measurement.total_startup_s:.1f} s"
            )
    return Report(
        date=date,
        machine=machine,
        versions=versions(),
        settings=settings,
        measurements=tuple(measurements),
        summaries=summarise(settings, measurements),
    )


class _Trials:
    """All that a single trial needs."""

    def __init__(self, config: RunConfig, settings: Settings, stores: StoreSet, keep: bool) -> None:
        self._config, self._settings, self._stores, self._keep = config, settings, stores, keep
        order = make_task(config, stores.manifest, stores.labels).order
        self._batch_sizes = tuple(len(order.samples(step)) for step in range(settings.total_steps))

    def measure(self, mode: str, repetition: int, show: Callable[[int], None]) -> Measurement:
        """Run one trial."""
        settings, warmup = self._settings, self._settings.warmup
        if mode == ONE_PROCESS:
            # A single process has no wire; codecs here would only round what crosses the cut.
            codecs = {} if settings.round_at_cut else {"wire_activations": "float32", "wire_gradients": "float32"}
            job = one_process.Job(
                config=self._config.replace(**codecs).to_mapping(),
                threads=settings.threads,
                steps=settings.total_steps,
            )
            timeout_s = self._config.step_timeout_s
            return one_process.measure(job, repetition, warmup, self._batch_sizes, timeout_s, show)
        config = self._config.replace(
            transport=mode,
            lower_threads=settings.threads,
            upper_threads=settings.upper_threads,
            run_name=f"{mode}-{repetition}",
        )
        return federated.measure(config, self._stores, repetition, warmup, self._batch_sizes, show, keep=self._keep)


def describe_machine() -> dict[str, str | int | float]:
    """Return what the numbers depend on: processor, cores, memory, system, and how busy it was."""
    return {
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "memory_bytes": int(psutil.virtual_memory().total),
        "gpus": count_gpus(),
        "system": platform.platform(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that matter."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("ascii", "replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
