"""The benchmark's records, one per trial, their summary and the report."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from psl_flower.config import fields
from psl_flower.config.fields import setting
from psl_flower.system.machine import usable_cores
from psl_flower.text import counted
from simulations import kept
from simulations.reports import Cells, Row, Spread, Values
from simulations.tables import network_name, spread

# Of the images of the larger ingest to those of the smaller one: memory that grows with them would show.
GROWTH = 4


@dataclass(frozen=True, kw_only=True)
class Options(fields.Settings):
    """How to measure: all of it in fresh processes, in turns."""

    images: int = setting(12_500, f"training images; the larger ingest takes {GROWTH} times as many", least=1)
    batches: int = setting(100, "batches read from each kind of store", least=1)
    steps: int = setting(5, "timed training steps", least=1)
    warmup: int = setting(2, "steps before them, not timed, at least 1", least=1)
    restored: int = setting(2000, "images to reassemble", least=1)
    repetitions: int = setting(3, "times that everything is measured", least=1)
    threads: int = setting(usable_cores(), "threads of the training step, all cores; the rest has one core", least=1)


@dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """What is measured."""

    config: Values  #: Settings of the training step by their kebab-case keys: dataset, grid, network, batch size.
    uppers: int  #: Upper nodes, and stores.


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """Random batches read by one Upper, and training steps of the same batch size, in one process."""

    #: Seconds of each batch.
    sealed_s: tuple[float, ...]
    plain_s: tuple[float, ...]
    step_s: tuple[float, ...]  #: Seconds of each training step in one process, from plain stores.
    opening_s: float  #: Opening the sealed store and reading its first batch, when the order of the records is derived.
    record_bytes: int  #: Patches of one image in this store.


class Ingest(msgspec.Struct, frozen=True, kw_only=True):
    """One ingest in a separate process, on one core."""

    images: int  #: Images sealed, test images included.
    seconds: float  #: Seconds from the first image to the signed manifest.
    #: Highest resident memory (VmHWM) before and after it.
    before_bytes: int
    peak_bytes: int
    #: The same without mapped files, such as the images' table: seen every few hundred images.
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
    """The trials' summary; each `Spread` is over the repetitions."""

    #: Median seconds of a batch.
    sealed_s: Spread
    plain_s: Spread
    #: 95 of 100 batches of all repetitions took at most this long.
    sealed_slow_s: float
    plain_slow_s: float
    step_s: Spread  #: Median seconds of a training step.
    share: Spread  #: All Uppers' sealed reads, one after the other, over the step: the least favourable count.
    extra: Spread  #: The same of what sealing adds to plain stores.
    opening_s: Spread
    #: Images a minute; of the larger ingests.
    ingest_per_min: Spread
    restore_per_min: Spread
    memory: dict[int, Memory]  #: Images of an ingest -> its memory.


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Memory of an ingest: its highest, and that added since before it; see `Ingest`."""

    peak_bytes: Spread
    added_bytes: Spread
    own_peak_bytes: Spread
    own_added_bytes: Spread


class Report(kept.Report, frozen=True, kw_only=True):
    """A result file: the measured system, every trial, and their summary."""

    benchmark: str = "sealed-cost"
    version: int = 1
    settings: Settings
    measurements: tuple[Trial, ...]
    summary: Summary

    @property
    def title(self) -> str:
        """One line: what was read and trained, and where."""
        settings, config = self.settings, self.settings.config
        return (
            f"{config['dataset']}, {settings.uppers} stores, {self.measurements[0].reading.record_bytes} bytes "
            f"of patches a record, batch {config['batch-size']}, {network_name(config)}; {self.place}"
        )

    @property
    def tables(self) -> tuple[Cells, ...]:
        """Reading; ingest and restoration; an ingest's memory."""
        found, batch, uppers = self.summary, self.settings.config["batch-size"], self.settings.uppers
        reads: list[Row] = [
            (f"one Upper reads {batch} images, sealed", _ms(found.sealed_s), f"{1e3 * found.sealed_slow_s:.2f}", "-"),
            (f"one Upper reads {batch} images, plain", _ms(found.plain_s), f"{1e3 * found.plain_slow_s:.2f}", "-"),
            (f"all {uppers} Uppers, one after the other, sealed", "-", "-", spread(found.share, _percent)),
            ("what sealing adds to that", "-", "-", spread(found.extra, _percent)),
            ("training step in one process", _ms(found.step_s), "-", "-"),
            ("opening a sealed store, first batch included", _ms(found.opening_s), "-", "-"),
        ]
        rates: list[Row] = [
            ("ingest: decode, cut, seal, sign", spread(found.ingest_per_min, _hundreds)),
            ("restoration: log, open, put together, write PNG", spread(found.restore_per_min, _hundreds)),
        ]
        memory: list[Row] = [
            (
                f"{images}",
                *(spread(of, _megabytes) for of in (m.peak_bytes, m.added_bytes, m.own_peak_bytes, m.own_added_bytes)),
            )
            for images, m in sorted(found.memory.items())
        ]
        heads = ("images ingested", "peak, MB", "added by the ingest, MB", "without mapped files, MB", "added, MB")
        return (
            (("what", "time, ms", "95 % within, ms", "of a step"), reads),
            (("on one core", "images a minute"), rates),
            (heads, memory),
        )

    @property
    def notes(self) -> str:
        """How to read the tables."""
        settings = self.settings
        return (
            f"Median (lowest to highest) of {counted(settings.repetitions, 'repetition')}, each the median of "
            f"{settings.batches} random batches out of {settings.images} images (files in the page cache) and "
            f"of {settings.steps} training steps after {settings.warmup} of warm-up with "
            f"{counted(settings.threads, 'thread')}, in the same process; shares within a repetition. Real Uppers read "
            f"at the same time, so the sum over all is the most that reading can cost. {settings.restored} images were "
            "restored. Peaks are measured with one process for each ingest; mapped files are the dataset's own "
            f"table. {self.load}"
        )


def summarise(settings: Settings, trials: Sequence[Trial]) -> Summary:
    """Summarise one or more trials."""
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


def _ms(values: Spread) -> str:
    return spread(values, lambda value: f"{1e3 * value:.2f}" if value < 0.1 else f"{1e3 * value:.0f}")


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _hundreds(value: float) -> str:
    return f"{round(value, -2):,.0f}"


def _megabytes(value: float) -> str:
    return f"{value / 1e6:.0f}"
