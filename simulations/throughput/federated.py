"""A trial through Flower: `flwr run` as `psl train` does it, watched from outside."""

from __future__ import annotations

import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

from psl_flower.config import RunConfig
from psl_flower.engine.build import Blueprint
from psl_flower.errors import RunError
from psl_flower.kinds import Train
from psl_flower.launch.running import Watch, app_folder, prepare, start
from psl_flower.launch.superlink import LocalSuperLink
from psl_flower.runs.folder import CONFIG_FILE, RunFolder, Status
from psl_flower.stores.store_set import StoreSet
from psl_flower.wire.frames import frame_nbytes
from psl_flower.wire.messages import Smashed, Step
from simulations.memory import MemoryWatch
from simulations.throughput.holding import Span, cut_steps
from simulations.throughput.results import PARTS, Measurement, rate, timed
from simulations.throughput.turns import Turns
from simulations.watching import looks

# Looking costs processor time that the run needs: seldom while it trains.
_STARTING_POLL_S, _TRAINING_POLL_S = 0.1, 1.0


def measure(
    config: RunConfig,
    stores: StoreSet,
    repetition: int,
    warmup: int,
    batch_sizes: tuple[int, ...],
    show: Callable[[int], None],
    turns: Turns,
    *,
    keep: bool = False,
) -> Measurement:
    """Run one round of training through Flower, with a separate SuperLink; `turns`, of the one process, hold it.

    The one round of `config` has all steps; `show` is called with the steps done; `keep` leaves the run's folder.

    Raises
    ------
    RunError
        If the run or the one process fails, with its own last words; or if the turns left no step whole.
    """
    memory = MemoryWatch()
    stamps = {"begin": time.time()}
    with LocalSuperLink() as superlink:
        kind = Train(config=config)
        num_uppers, work = prepare(kind)
        run = work.folder
        superlink.wait()
        stamps["SuperLink"] = time.time()
        watch = Watch(superlink, run, kind.how_to_continue)
        start(superlink, app_folder(), kind.to_mapping(), kind, work, num_uppers)
        stamps["flwr run"] = time.time()
        stamps["nodes"] = _follow(
            looks(watch, superlink, run, "the federated run", keep_log=keep), superlink, memory, show, turns
        )
    measurement = _read(config, stores, run, repetition, warmup, batch_sizes, memory, stamps, turns.spans)
    if not keep:
        shutil.rmtree(run.path, ignore_errors=True)
    return measurement


def _follow(
    statuses: Iterator[Status | None],
    superlink: LocalSuperLink,
    memory: MemoryWatch,
    show: Callable[[int], None],
    turns: Turns,
) -> float:
    """Look after the run until it ends; return when its nodes were placed."""
    placed_at, finished = 0.0, False
    for status in statuses:
        if status is not None and status.state not in ("preparing", "starting"):
            placed_at = placed_at or time.time()
            show(status.step)
            if not finished and 0 < status.total_steps <= status.step:
                finished = True
                memory.poll(superlink.processes(), shares=True)
            memory.look_now_and_then(superlink.processes)
            turns.take(status.step, superlink.processes)
        time.sleep(_TRAINING_POLL_S if placed_at and not finished else _STARTING_POLL_S)
    return placed_at or time.time()


def _read(
    config: RunConfig,
    stores: StoreSet,
    run: RunFolder,
    repetition: int,
    warmup: int,
    batch_sizes: tuple[int, ...],
    memory: MemoryWatch,
    stamps: dict[str, float],
    holds: list[Span],
) -> Measurement:
    """Read what the run has written."""
    (metrics,) = run.read_metrics()
    steps = read_steps(run)
    if len(steps) != len(batch_sizes):
        raise RunError(f"{run.tensorboard}: expected {len(batch_sizes)} steps, found {len(steps)}")
    # When the first step began is not in the event file, but its parts are.
    began = steps[0].end - sum(steps[0].parts_s.values())
    ends = [step.end for step in steps]
    step_s = [after - before for before, after in pairwise([began, *ends])]
    cut = cut_steps(began, ends, holds)
    whole = timed(len(steps), warmup, cut)
    up, down = evaluation_bytes(config, stores)
    stamps["ServerApp"] = (run.path / CONFIG_FILE).stat().st_mtime
    stamps["first step"] = began
    order = ("begin", "SuperLink", "flwr run", "ServerApp", "nodes", "first step")
    return Measurement(
        repetition=repetition,
        mode=config.wire.transport,
        images_per_s=rate(step_s, batch_sizes, warmup, cut),
        step_s=tuple(step_s),
        cut=cut,
        batch_sizes=batch_sizes,
        parts_s={part: statistics.mean(steps[i].parts_s[part] for i in whole) for part in PARTS},
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


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """When a training step ended, in Unix time, and the seconds of its parts."""

    end: float
    parts_s: dict[str, float]


def read_steps(run: RunFolder) -> list[StepTimes]:
    """Return the times of each training step from the run's event files.

    Raises
    ------
    RunError
        If there is no event file, or a step is not complete.
    """
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    files = sorted(Path(run.tensorboard).glob("events.out.tfevents.*"))
    if not files:
        raise RunError(f"{run.tensorboard}: no event file")
    ends: dict[int, float] = {}
    parts_s: dict[int, dict[str, float]] = defaultdict(dict)
    for event in chain.from_iterable(EventFileLoader(str(file)).Load() for file in files):
        for value in event.summary.value:
            if value.tag == "train/loss":
                ends[event.step] = event.wall_time
            for part in PARTS:
                if value.tag == f"train/{part}_s":
                    # Of one number; the loader has brought all scalars into this form.
                    parts_s[event.step][part] = value.tensor.float_val[0]
    if any(parts_s[step].keys() != set(PARTS) for step in ends):
        raise RunError(f"{run.tensorboard}: a step without the times of its parts")
    return [StepTimes(end=ends[step], parts_s=parts_s[step]) for step in sorted(ends)]


def evaluation_bytes(config: RunConfig, stores: StoreSet) -> tuple[int, int]:
    """Return bytes up and down of the frames of a run through the test split, which is not training."""
    blueprint = Blueprint(config, stores.description)
    task, shapes = blueprint.task(stores.labels), blueprint.smashed_shapes()
    up = down = 0
    for plan in task.evaluation_plans(task.schedule.total_steps):
        down += len(shapes) * frame_nbytes(Step(plan=plan))
        for shape in shapes.values():
            up += frame_nbytes(Smashed(plan.id), [(plan.num_samples, *shape)], config.smashed_codec)
    return up, down
