"""A trial through Flower: `flwr run` as `psl train` does it, watched from outside."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from psl_flower.config import RunConfig
from psl_flower.data.store_set import StoreSet
from psl_flower.engine.build import make_task, smashed_shapes
from psl_flower.errors import RunError
from psl_flower.launch.running import Watch, app_folder, prepare, start
from psl_flower.launch.superlink import LocalSuperLink
from psl_flower.runs import RunFolder, Status
from psl_flower.wire.frames import frame_nbytes
from psl_flower.wire.messages import Smashed, Step
from simulations.throughput.memory import MemoryWatch
from simulations.throughput.results import PARTS, Measurement, rate

# Looking costs processor time that the run needs: seldom while it trains.
_STARTING_POLL_S, _TRAINING_POLL_S = 0.1, 1.0
_MEMORY_EVERY_S = 5.0


def measure(
    config: RunConfig,
    stores: StoreSet,
    repetition: int,
    warmup: int,
    batch_sizes: tuple[int, ...],
    show: Callable[[int], None],
    *,
    keep: bool = False,
) -> Measurement:
    """Run one round of training through Flower, with a SuperLink of its own.

    Parameters
    ----------
    config : RunConfig
        Of the run; its one round holds all steps.
    stores : StoreSet
        The stores that the run finds.
    repetition, warmup : int
        For the measurement.
    batch_sizes : tuple of int
        Images of every step.
    show : callable
        Called with the number of steps done.
    keep : bool
        Whether the run's folder stays.

    Raises
    ------
    RunError
        If the run fails; with its own last words.
    """
    memory = MemoryWatch()
    stamps = {"begin": time.time()}
    with LocalSuperLink() as superlink:
        num_uppers, run = prepare(config)
        superlink.wait()
        stamps["SuperLink"] = time.time()
        watch = Watch(superlink, run)
        start(superlink, app_folder(), config.to_mapping(), config, run, num_uppers)
        stamps["flwr run"] = time.time()
        stamps["nodes"], status = _follow(watch, superlink, memory, show)
        if status.state != "completed":
            raise RunError(f"the federated run failed: {_why(status, superlink, run, keep)}")
    measurement = _read(config, stores, run, repetition, warmup, batch_sizes, memory, stamps)
    if not keep:
        shutil.rmtree(run.path, ignore_errors=True)
    return measurement


def _follow(
    watch: Watch, superlink: LocalSuperLink, memory: MemoryWatch, show: Callable[[int], None]
) -> tuple[float, Status]:
    """Look after the run until it ends; return when its nodes were placed, and its last status."""
    placed_at, looked_at, finished = 0.0, 0.0, False
    while True:
        status, over = watch.look()
        if over:
            assert status is not None
            return placed_at or time.time(), status
        if status is not None and status.state not in ("preparing", "starting"):
            placed_at = placed_at or time.time()
            show(status.step)
            last = 0 < status.total_steps <= status.step
            if (last and not finished) or time.monotonic() - looked_at >= _MEMORY_EVERY_S:
                memory.look(superlink.processes(), shares=last)
                looked_at, finished = time.monotonic(), last
        time.sleep(_TRAINING_POLL_S if placed_at and not finished else _STARTING_POLL_S)


def _why(status: Status, superlink: LocalSuperLink, run: RunFolder, keep: bool) -> str:
    """Return what a run that failed says, and where Flower's log is."""
    told = status.message.removeprefix("error: ")
    if not keep:
        return f"{told} (with --keep, Flower's log stays)"
    log = run.path / "flower.log"
    run.path.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(superlink.log, log)
    return f"{told} (Flower's log: {log})"


def _read(
    config: RunConfig,
    stores: StoreSet,
    run: RunFolder,
    repetition: int,
    warmup: int,
    batch_sizes: tuple[int, ...],
    memory: MemoryWatch,
    stamps: dict[str, float],
) -> Measurement:
    """Read what the run has written."""
    (metrics,) = run.read_metrics()
    ends = step_ends(run)
    if len(ends) != len(batch_sizes):
        raise RunError(f"{run.tensorboard}: expected {len(batch_sizes)} steps, found {len(ends)}")
    step_s = [after - before for before, after in pairwise(ends)]
    # The round's mean covers all steps; only the first one's beginning is not in the event file.
    first_s = max(0.0, metrics["step_s"] * len(ends) - sum(step_s))
    step_s.insert(0, first_s)
    up, down = evaluation_bytes(config, stores)
    stamps["ServerApp"] = (run.path / "config.toml").stat().st_mtime
    stamps["first step"] = ends[0] - first_s
    order = ("begin", "SuperLink", "flwr run", "ServerApp", "nodes", "first step")
    return Measurement(
        repetition=repetition,
        mode=config.transport,
        images_per_s=rate(step_s, batch_sizes, warmup),
        step_s=tuple(step_s),
        batch_sizes=batch_sizes,
        parts_s={part: metrics[f"{part}_s"] for part in PARTS},
        bytes_up=metrics["bytes_up"] - up,
        bytes_down=metrics["bytes_down"] - down,
        processes=memory.processes(),
        startup_s=phases([(name, stamps[name]) for name in order]),
        loss=metrics["loss"],
    )


def phases(stamps: list[tuple[str, float]]) -> dict[str, float]:
    """Return the seconds of each phase, named by what ends it; a stamp noticed too late yields to the next one."""
    times = [stamp for _, stamp in stamps]
    ordered = [min(times[i:]) for i in range(len(times))]
    return {name: after - before for (name, _), (before, after) in zip(stamps[1:], pairwise(ordered), strict=True)}


def step_ends(run: RunFolder) -> list[float]:
    """Return when each training step ended, in Unix time, from the run's event files.

    Raises
    ------
    RunError
        If there is none.
    """
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader  # type: ignore[import-untyped]

    files = sorted(Path(run.tensorboard).glob("events.out.tfevents.*"))
    if not files:
        raise RunError(f"{run.tensorboard}: no event file")
    ends = {
        event.step: event.wall_time
        for file in files
        for event in EventFileLoader(str(file)).Load()
        if any(value.tag == "train/loss" for value in event.summary.value)
    }
    return [ends[step] for step in sorted(ends)]


def evaluation_bytes(config: RunConfig, stores: StoreSet) -> tuple[int, int]:
    """Return bytes up and down of the frames of a run through the test split, which is not training."""
    shapes = smashed_shapes(config, stores.manifest)
    up = down = 0
    for plan in make_task(config, stores.manifest, stores.labels).evaluation_plans(
        config.rounds * config.steps_per_round
    ):
        down += len(shapes) * frame_nbytes(Step(plan=plan))
        for shape in shapes.values():
            up += frame_nbytes(Smashed(plan.id), [(plan.num_samples, *shape)], config.wire_activations)
    return up, down
