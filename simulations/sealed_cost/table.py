"""The report in words."""

from __future__ import annotations

import msgspec

from simulations.reports import Spread
from simulations.sealed_cost.results import Options, Report
from simulations.tables import Cells, Presentation, again, machine, spread


def present(report: Report) -> Presentation:
    """Return the report in words."""
    return Presentation(
        title=title(report),
        tables=(reads(report), rates(report), memory(report)),
        notes=notes(report),
        command=command(report),
    )


def title(report: Report) -> str:
    """Return one line: what was read and trained, and where."""
    settings, config = report.settings, report.settings.config
    return (
        f"{config['dataset']}, {settings.uppers} stores, {report.measurements[0].reading.record_bytes} bytes "
        f"of patches a record, batch {config['batch-size']}, {config['backbone']}; {machine(report)}"
    )


def reads(report: Report) -> Cells:
    """Return names and cells of the table of reading."""
    found, batch = report.summary, report.settings.config["batch-size"]
    return ("what", "time, ms", "95 % within, ms", "of a step"), [
        (f"one Upper reads {batch} images, sealed", _ms(found.sealed_s), f"{1e3 * found.sealed_slow_s:.2f}", "-"),
        (f"one Upper reads {batch} images, plain", _ms(found.plain_s), f"{1e3 * found.plain_slow_s:.2f}", "-"),
        (f"all {report.settings.uppers} Uppers, one after the other, sealed", "-", "-", spread(found.share, _percent)),
        ("what sealing adds to that", "-", "-", spread(found.extra, _percent)),
        ("training step in one process", _ms(found.step_s), "-", "-"),
        ("opening a sealed store, first batch included", _ms(found.opening_s), "-", "-"),
    ]


def rates(report: Report) -> Cells:
    """Return names and cells of the table of ingest and restoration."""
    found = report.summary
    return ("on one core", "images a minute"), [
        ("ingest: decode, cut, seal, sign", spread(found.ingest_per_min, _thousands)),
        ("restoration: log, open, put together, write PNG", spread(found.restore_per_min, _thousands)),
    ]


def memory(report: Report) -> Cells:
    """Return names and cells of the table of an ingest's memory."""
    head = ("images ingested", "peak, MB", "added by the ingest, MB", "without mapped files, MB", "added, MB")
    return head, [
        (
            f"{images}",
            *(spread(of, _megabytes) for of in (m.peak_bytes, m.added_bytes, m.own_peak_bytes, m.own_added_bytes)),
        )
        for images, m in sorted(report.summary.memory.items())
    ]


def notes(report: Report) -> str:
    """Return how to read the tables."""
    settings = report.settings
    return (
        f"Median (lowest to highest) of {settings.repetitions} repetition{'s' * (settings.repetitions > 1)}, each the "
        f"median of {settings.batches} random batches out of {settings.images} images (files in the page cache) and "
        f"of {settings.steps} training steps after {settings.warmup} of warm-up with {settings.threads} "
        f"thread{'s' * (settings.threads > 1)}, in the same process; shares within a repetition. Real Uppers read "
        f"at the same time, so the sum over all is the most that reading can cost. {settings.restored} images were "
        f"restored. Peaks are those of a process of its own for each ingest; mapped files are the dataset's own table. "
        f"Load of the machine before: {report.machine['load_before']}."
    )


def command(report: Report) -> str:
    """Return the command line that measures the same again."""
    options = [
        word
        for field in msgspec.structs.fields(Options)
        for word in (f"--{field.name}", str(getattr(report.settings, field.name)))
    ]
    return again("sealed_cost", options, report.settings.config)


def _ms(values: Spread) -> str:
    return spread(values, _milliseconds)


def _milliseconds(value: float) -> str:
    return f"{1e3 * value:.2f}" if value < 0.1 else f"{1e3 * value:.0f}"


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _thousands(value: float) -> str:
    return f"{round(value, -2):,.0f}"


def _megabytes(value: float) -> str:
    return f"{value / 1e6:.0f}"
