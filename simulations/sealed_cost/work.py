"""A trial's work, in a separate process."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from psl_flower.config import RunConfig
from psl_flower.system.machine import forbid_core_dumps
from simulations.child import Child, Tell, serve
from simulations.machine import anonymous, peak
from simulations.sealed_cost.results import Ingest, Reading, Restoring

_TIMEOUT_S = 3600.0


class Job(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What the process is to do; `config` is that of a run."""

    config: dict[str, str | int | float | bool]


class ReadJob(Job, frozen=True, kw_only=True, tag=True):
    """Read random batches and train, see `Reading`."""

    batches: int
    steps: int
    threads: int
    seed: int


class IngestJob(Job, frozen=True, kw_only=True, tag=True):
    """Seal the config's dataset into a new folder, with the keys beside it."""

    folder: str


class RestoreJob(Job, frozen=True, kw_only=True, tag=True):
    """Restore random images of an ingest's folder."""

    folder: str
    images: int
    seed: int


Done = TypeVar("Done", Reading, Ingest, Restoring)


def ask(job: ReadJob | IngestJob | RestoreJob, kind: type[Done]) -> Done:
    """Have a fresh process do a job; raises RunError if it fails, with its own last words."""
    with Child("simulations.sealed_cost.work", job, kind, "the measurement") as child:
        return child.finish(timeout_s=_TIMEOUT_S)


def read(job: ReadJob) -> Reading:
    """Read batches from both kinds of store in turn, then train; the stores are made first if they are missing."""
    import torch

    from psl_flower.engine.one_process import OneProcessTrainer
    from psl_flower.stores.prepare import prepare_stores
    from psl_flower.system.machine import keep_freed_memory

    keep_freed_memory()  # as the nodes do
    torch.set_num_threads(job.threads)
    config = RunConfig.from_mapping(job.config)
    sealed, plain = prepare_stores(config), prepare_stores(config.replace(stores="plain"))
    rng, pool = np.random.default_rng(job.seed), sealed.description.samples_of("train")
    batches = [rng.choice(pool, config.training.batch_size, replace=False) for _ in range(job.batches + 1)]
    began = time.perf_counter()
    stores = {"sealed": sealed.open(0)}
    stores["sealed"].read(batches[0])
    opening_s = time.perf_counter() - began
    stores["plain"] = plain.open(0)
    stores["plain"].read(batches[0])
    seconds: dict[str, list[float]] = {"sealed": [], "plain": []}
    for number, samples_B in enumerate(batches[1:]):
        for kind in ("sealed", "plain") if number % 2 else ("plain", "sealed"):
            began = time.perf_counter()
            stores[kind].read(samples_B)
            seconds[kind].append(time.perf_counter() - began)
    step_s: list[float] = []
    with plain.opened() as opened:
        trainer = OneProcessTrainer(config, plain.description, plain.labels, opened)
        trainer.train(job.steps, lambda step, loss, seconds: step_s.append(seconds))
    meta = stores["sealed"].meta
    return Reading(
        sealed_s=tuple(seconds["sealed"]),
        plain_s=tuple(seconds["plain"]),
        step_s=tuple(step_s),
        opening_s=opening_s,
        record_bytes=len(meta.positions) * int(np.prod(meta.patch_shape)),
    )


def ingest(job: IngestJob) -> Ingest:
    """Seal a dataset, and watch the memory."""
    from psl_flower.sealed.ingest import ingest as do_ingest
    from psl_flower.sealed.keyring import demo_keys
    from psl_flower.stores.sealed_set import demo_plan
    from psl_flower.stores.store_set import store_request

    request, folder = store_request(RunConfig.from_mapping(job.config)), Path(job.folder)
    source = request.open_source()
    first_HWC, _ = next(source.samples("train"))
    grid = request.grid(first_HWC.shape[:2])
    keys = demo_keys(folder / "keys", request.num_uppers or grid.num_patches)
    plan = demo_plan(request, grid, keys)
    before, own_before = peak(), anonymous()
    own = [own_before]
    began = time.perf_counter()
    done = do_ingest(source, folder / "set", keys.owner, plan, progress=lambda *_: own.append(anonymous()))
    seconds = time.perf_counter() - began
    return Ingest(
        images=done.added,
        seconds=seconds,
        before_bytes=before,
        peak_bytes=peak(),
        own_before_bytes=own_before,
        own_peak_bytes=max(own),
    )


def restore(job: RestoreJob) -> Restoring:
    """Put images together as the restorers do, and write them."""
    from psl_flower.cli.image_selection import captions
    from psl_flower.cli.terminal import stores_beside
    from psl_flower.sealed import keyfile
    from psl_flower.sealed import manifest as manifests
    from psl_flower.sealed.audit import FILE, AuditLog
    from psl_flower.sealed.export import export
    from psl_flower.sealed.keyring import DEMO_RESTORERS
    from psl_flower.sealed.restore import restore as do_restore

    folder = Path(job.folder)
    signed = manifests.load(folder / "set")
    people = [keyfile.load(folder / "keys" / f"{name}.key") for name in DEMO_RESTORERS]
    rng = np.random.default_rng(job.seed)
    images = rng.permutation(signed.manifest.num_samples)[: job.images].tolist()
    began = time.perf_counter()
    stores, log = stores_beside(folder / "set", ()), AuditLog(folder / "set" / FILE)
    export(
        lambda: do_restore(signed, stores, people, images, why="benchmark", log=log),
        captions(signed.manifest, dict.fromkeys(images), None),
        folder / "restored",
    )
    return Restoring(images=len(images), seconds=time.perf_counter() - began)


def one_core() -> None:
    """Keep this process, and threads to come, on one core; if that is not possible, at least its libraries'."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def work(job: ReadJob | IngestJob | RestoreJob, tell: Tell) -> Reading | Ingest | Restoring:
    """Do a job in this process."""
    forbid_core_dumps()  # jobs open keys
    if isinstance(job, ReadJob):
        return read(job)
    one_core()
    return ingest(job) if isinstance(job, IngestJob) else restore(job)


if __name__ == "__main__":
    serve(ReadJob | IngestJob | RestoreJob, work)
