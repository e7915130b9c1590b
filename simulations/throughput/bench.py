"""The trials: one process and each transport in turn, again and again, so that drift of the machine hits all alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from psl_flower.config import RunConfig
from psl_flower.data.preparing import prepare_stores
from psl_flower.data.store_set import StoreSet
from psl_flower.engine.build import make_task
from psl_flower.launch.running import federation, local_paths
from simulations import settings as common
from simulations.machine import circumstances
from simulations.progress import Progress
from simulations.throughput import federated, one_process
from simulations.throughput.results import ONE_PROCESS, Measurement, Options, Report, Settings, summarise

# Keys that the benchmark decides, each with the option that asks for it; empty where there is none.
DECIDED = {
    **common.DECIDED,
    "rounds": "--steps", "steps-per-round": "--steps", "transport": "--transports", "workspace": "--keep",
}  # fmt: skip


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
    began = circumstances()
    total_steps = options.warmup + options.steps
    shared = config.replace(
        **local_paths(config.to_mapping()),
        workspace=str(workspace), rounds=1, steps_per_round=total_steps, evaluate_every=0, collect_model=False,
    )  # fmt: skip
    stores = prepare_stores(shared, progress.ingesting)
    nodes = int(federation(stores.manifest.num_uppers)["num-supernodes"])
    settings = Settings(
        **msgspec.structs.asdict(options),
        config=common.without(config, DECIDED),
        upper_threads=max(1, options.threads // nodes),
        nodes=nodes,
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
        **began,
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
