"""What the benchmark measures and writes: one record per trial, and what they amount to."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

from simulations import reports
from simulations.reports import Spread, Values

VERSION = 1
# Of the images of the larger ingest to those of the smaller one: memory that grows with them would show.
GROWTH = 4


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How to measure.

    Attributes
    ----------
    images : int
        Training images in the stores that are read, and in the smaller ingest; the larger one has `GROWTH` times as
        many.
    batches, steps, warmup : int
        Batches read from each kind of store, training steps that are timed, and those before them that are not.
    restored : int
        Images put together again.
    repetitions : int
        How often all of it is measured, each time in fresh processes, in turns.
    threads : int
        Threads of the training step; everything else has one core.
    """

    images: int
    batches: int
    steps: int
    warmup: int
    restored: int
    repetitions: int
    threads: int


class Settings(Options, frozen=True, kw_only=True):
    """What is measured.

    Attributes
    ----------
    config : dict
        Settings of the training step by their kebab-case keys: dataset, grid, network, batch size.
    uppers : int
        Upper nodes, and stores.
    """

    config: Values
    uppers: int


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """Random batches read by one Upper, and training steps of the same batch size, in one process.

    Attributes
    ----------
    sealed_s, plain_s : tuple of float
        Seconds of each batch.
    step_s : tuple of float
        Seconds of each training step in one process, from plain stores.
    opening_s : float
        Opening the sealed store and reading its first batch, when the order of the records is derived.
    record_bytes : int
        Patches of one image in this store.
    """

    sealed_s: tuple[float, ...]
    plain_s: tuple[float, ...]
    step_s: tuple[float, ...]
    opening_s: float
    record_bytes: int


class Ingest(msgspec.Struct, frozen=True, kw_only=True):
    """One ingest in a process of its own, on one core.

    Attributes
    ----------
    images : int
        Sealed, those to test on included.
    seconds : float
        From the first image to the signed manifest.
    before_bytes, peak_bytes : int
        Highest resident memory (VmHWM) before and after it.
    own_before_bytes, own_peak_bytes : int
        The same without mapped files, such as the images' table: seen every few hundred images.
    """

    images: int
    seconds: float
    before_bytes: int
    peak_bytes: int
    own_before_bytes: int
    own_peak_bytes: int


class Restoring(msgspec.Struct, frozen=True, kw_only=True):
    """Images put together from all stores by two restorers, logged and written as PNG, on one core."""

    images: int
    seconds: float


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One repetition; `ingests` has the smaller and the larger one."""

    reading: Reading
    ingests: tuple[Ingest, Ingest]
    restoring: Restoring


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What the trials amount to; each `Spread` is over the repetitions.

    Attributes
    ----------
    sealed_s, plain_s : Spread
        Median seconds of a batch.
    sealed_slow_s, plain_slow_s : float
        95 of 100 batches of all repetitions took at most so long.
    step_s : Spread
        Median seconds of a training step.
    share : Spread
        All Uppers' sealed reads, one after the other, over the step: the least favourable count.
    extra : Spread
        The same of what sealing adds to plain stores.
    opening_s : Spread
        As in `Reading`.
    ingest_per_min, restore_per_min : Spread
        Images a minute; of the larger ingests.
    memory : dict
        Images of an ingest -> its memory.
    """

    sealed_s: Spread
    plain_s: Spread
    sealed_slow_s: float
    plain_slow_s: float
    step_s: Spread
    share: Spread
    extra: Spread
    opening_s: Spread
    ingest_per_min: Spread
    restore_per_min: Spread
    memory: dict[int, Memory]


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Memory of an ingest: its highest, and that added since before it; see `Ingest`."""

    peak_bytes: Spread
    added_bytes: Spread
    own_peak_bytes: Spread
    own_added_bytes: Spread


class Report(reports.Report, frozen=True, kw_only=True):
    """A result file: what was measured, every trial, and what they amount to."""

    benchmark: str = "sealed-cost"
    version: int = VERSION
    settings: Settings
    measurements: tuple[Trial, ...]
    summary: Summary


def summarise(settings: Settings, trials: Sequence[Trial]) -> Summary:
    """Return what one or more trials amount to."""
    readings = [trial.reading for trial in trials]
    sealed, plain, step = (
        [statistics.median(times) for times in column]
        for column in zip(*((r.sealed_s, r.plain_s, r.step_s[settings.warmup :]) for r in readings), strict=True)
    )
    return Summary(
        sealed_s=Spread.of(sealed),
        plain_s=Spread.of(plain),
        sealed_slow_s=slow([s for reading in readings for s in reading.sealed_s]),
        plain_slow_s=slow([s for reading in readings for s in reading.plain_s]),
        step_s=Spread.of(step),
        share=Spread.of(settings.uppers * a / c for a, c in zip(sealed, step, strict=True)),
        extra=Spread.of(settings.uppers * (a - b) / c for a, b, c in zip(sealed, plain, step, strict=True)),
        opening_s=Spread.of(reading.opening_s for reading in readings),
        ingest_per_min=Spread.of(60 * t.ingests[-1].images / t.ingests[-1].seconds for t in trials),
        restore_per_min=Spread.of(60 * t.restoring.images / t.restoring.seconds for t in trials),
        memory={
            trials[0].ingests[k].images: _memory([trial.ingests[k] for trial in trials])
            for k in range(len(trials[0].ingests))
        },
    )


def slow(seconds: Sequence[float]) -> float:
    """Return the time that 95 of 100 did not exceed."""
    return sorted(seconds)[max(0, -(-95 * len(seconds) // 100) - 1)]


def _memory(ingests: Sequence[Ingest]) -> Memory:
    return Memory(
        peak_bytes=Spread.of(i.peak_bytes for i in ingests),
        added_bytes=Spread.of(i.peak_bytes - i.before_bytes for i in ingests),
        own_peak_bytes=Spread.of(i.own_peak_bytes for i in ingests),
        own_added_bytes=Spread.of(i.own_peak_bytes - i.own_before_bytes for i in ingests),
    )
