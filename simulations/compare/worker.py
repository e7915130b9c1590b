"""Trials without Flower, each in a separate process: the whole image, and patch-split learning where asked for.

"in-process" is the engine of the federated run with every party in one process (`psl_flower.engine.local`): frames are
encoded, counted and decoded as on a wire. "one-graph" is the same network as one graph
(`psl_flower.engine.one_process`), whose weights are those of the federated run; it sends nothing and counts no bytes.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from psl_flower.config import RunConfig
from simulations.child import Child, Tell, serve
from simulations.compare.results import MERGED, Absence, Mean, Point
from simulations.reports import Values

if TYPE_CHECKING:
    import torch

    from psl_flower.engine.local import LocalExchange
    from psl_flower.engine.round_driver import RoundDriver
    from psl_flower.models import PatchSplitNet
    from psl_flower.patches.store import PatchStore
    from psl_flower.stores.store_set import StoreSet

# At the next evaluation: a checkpoint of a network of this size is 90 MB.
_SAVE_EVERY_S = 20.0


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is to do."""

    kind: str  #: "whole", "merged", "one-graph" or "in-process".
    config: Values  #: Settings of a run, by their kebab-case keys; it is evaluated after every round.
    threads: int
    folder: str  #: Folder of checkpoints, from which an interrupted job continues (not "in-process").
    absent: bool = False  #: Whether to measure the accuracy without some Uppers at the end; "one-graph" only.
    #: Images to evaluate: "test", or "valid" for those held back to validate on (not "in-process").
    judge: str = "test"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Its result; see `simulations.compare.results.Trial`."""

    points: tuple[Point, ...]
    label: tuple[int, ...]
    predicted: tuple[int, ...]
    up: dict[str, int] = {}
    down: dict[str, int] = {}
    peak_bytes: dict[str, int] = {}
    absent: tuple[Absence, ...] = ()


def run(job: Job, show: Tell) -> Outcome:
    """Do a job in a fresh process; `show` is called with the number of steps done.

    Raises
    ------
    RunError
        If it fails, with its own words.
    """
    with Child("simulations.compare.worker", job, Outcome, "the trial") as child:
        return child.finish(show)


def work(job: Job, tell: Tell = lambda steps: None) -> Outcome:
    """Do a job in this process; raises PslError if the data cannot be used, or training fails."""
    import torch

    from psl_flower.stores.prepare import prepare_stores
    from psl_flower.system.devices import choose_device
    from psl_flower.system.machine import keep_freed_memory
    from simulations.machine import peak

    keep_freed_memory()
    torch.set_num_threads(job.threads)
    config = RunConfig.from_mapping(job.config)
    device = choose_device(config.machine.device)
    stores = prepare_stores(config)
    train = _exchange if job.kind == "in-process" else _alone
    with stores.opened() as opened:
        outcome = train(job, config, stores, opened, device, tell)
    peaks = {"one process": peak()}
    if device.type == "cuda":
        peaks["GPU"] = torch.cuda.max_memory_allocated(device)
    return msgspec.structs.replace(outcome, peak_bytes=peaks)


def _alone(
    job: Job, config: RunConfig, stores: StoreSet, opened: list[PatchStore], device: torch.device, tell: Tell
) -> Outcome:
    """Train in one graph, from the last state that an earlier process saved, if any."""
    from psl_flower.baselines.whole_image import MergedPatches
    from psl_flower.engine.batches import batch_order
    from psl_flower.engine.checkpoints import load_state, save_state
    from psl_flower.engine.one_process import OneProcessTrainer

    make = MergedPatches if job.kind == MERGED else OneProcessTrainer
    trainer = make(config, stores.description, stores.labels, opened, device)
    steps_per_epoch = batch_order(config, stores.description).steps_per_epoch
    points: list[Point] = []
    saved, saved_at = Path(job.folder) / "trial.pt", time.monotonic()
    if saved.exists():
        state = load_state(saved)
        trainer.load_state_dict(state["trainer"])
        points = msgspec.convert(state["points"], list[Point])
    train_s, found = points[-1].train_s if points else 0.0, None
    while len(points) < config.training.rounds:
        began = time.perf_counter()
        trainer.train(config.training.steps_per_round, lambda step, loss, seconds: tell(step))
        train_s += time.perf_counter() - began
        found = trainer.evaluate(split=job.judge)
        points.append(
            Point(epoch=trainer.step / steps_per_epoch, accuracy=found.accuracy, test_loss=found.loss, train_s=train_s)
        )
        if time.monotonic() - saved_at >= _SAVE_EVERY_S:
            save_state(saved, {"trainer": trainer.state_dict(), "points": msgspec.to_builtins(points)})
            saved_at = time.monotonic()
    found = found or trainer.evaluate(split=job.judge)
    absent = _absent(trainer.net, config, stores, device) if job.absent else ()
    saved.unlink(missing_ok=True)
    return Outcome(points=tuple(points), label=_ints(found.label), predicted=_ints(found.predicted), absent=absent)


def _absent(net: PatchSplitNet, config: RunConfig, stores: StoreSet, device: torch.device) -> tuple[Absence, ...]:
    """Return the accuracy with all Uppers of a trained network, without one, without two and so on."""
    from psl_flower.inference.absence import absence_curve
    from psl_flower.inference.evaluation import LabelledImages, images_in
    from psl_flower.inference.trained_model import TrainedModel
    from psl_flower.system.devices import autocast

    samples_N = stores.description.samples_of("test")
    images = LabelledImages(
        dataset=config.data.dataset,
        num_images=len(samples_N),
        batches=images_in(stores, samples_N, config.training.evaluate_batch_size),
    )
    assembled = TrainedModel(net=net.eval(), description=stores.description, config=config, device=device)
    with autocast(device, config.machine.autocast):
        points = absence_curve(assembled, images)
    return tuple(
        Absence(
            absent=point.absent,
            accuracy=Mean(mean=point.accuracy, low=point.lowest, high=point.highest),
            tried=point.tried,
            possible=point.possible,
        )
        for point in points
    )


def _exchange(
    job: Job, config: RunConfig, stores: StoreSet, opened: list[PatchStore], device: torch.device, tell: Tell
) -> Outcome:
    """Train with all parties of the federated engine."""
    from psl_flower.engine.batches import batch_order

    driver, exchange = _parties(Path(job.folder), config, stores, opened, device, tell)
    steps_per_epoch = batch_order(config, stores.description).steps_per_epoch
    points: list[Point] = []
    train_s = 0.0
    for _ in range(config.training.rounds):
        report = driver.run(exchange, driver.lower.step + config.training.steps_per_round, evaluate=True)
        found = report.predictions
        assert found is not None
        train_s += report.train_s
        points.append(
            Point(
                epoch=driver.lower.step / steps_per_epoch,
                accuracy=found.accuracy,
                test_loss=found.loss,
                train_s=train_s,
                bytes_up=sum(exchange.bytes_up().values()),
                bytes_down=sum(exchange.bytes_down().values()),
            )
        )
    assert found is not None
    return Outcome(
        points=tuple(points),
        label=_ints(found.label),
        predicted=_ints(found.predicted),
        up={str(m): count for m, count in exchange.bytes_up().items()},
        down={str(m): count for m, count in exchange.bytes_down().items()},
    )


def _parties(
    folder: Path, config: RunConfig, stores: StoreSet, opened: list[PatchStore], device: torch.device, tell: Tell
) -> tuple[RoundDriver, LocalExchange]:
    """Return the server's side, and the exchange with all Uppers, whose checkpoints go to the folder."""
    from psl_flower.engine.build import Blueprint
    from psl_flower.engine.checkpoints import Checkpoints
    from psl_flower.engine.exchange import WireFormat
    from psl_flower.engine.local import LocalExchange
    from psl_flower.engine.looks import looks_of
    from psl_flower.engine.pretrained import started_network
    from psl_flower.engine.round_driver import RoundDriver
    from psl_flower.engine.upper import UpperEngine

    blueprint = Blueprint(config, stores.description)
    lower = blueprint.lower_engine(device)
    options, task = blueprint.upper_options(device), blueprint.task(stores.labels)
    models = started_network(blueprint).uppers
    uppers = {
        m: UpperEngine(models[m], store, options, Checkpoints(folder / f"upper-{m:03d}"))
        for m, store in enumerate(opened)
    }
    exchange = LocalExchange(uppers, WireFormat.of(config, lower.dtype))
    driver = RoundDriver(
        lower,
        task,
        blueprint.smashed_shapes(),
        Checkpoints(folder / "lower"),
        averaging=blueprint.averaging(),
        looks=looks_of(blueprint, task, folder / "looks", "comparison"),
        on_step=lambda report: tell(report.step),
    )
    return driver, exchange


def _ints(values: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(values.tolist())


if __name__ == "__main__":
    serve(Job, work)
