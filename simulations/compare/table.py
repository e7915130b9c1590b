"""The report in words: tables of accuracy, of what is sent and computed, and of what each party gets to see."""

from __future__ import annotations

import csv
import io
from statistics import fmean

from simulations.compare.notes import notes
from simulations.compare.results import AVERAGING, MERGED, PATCHES, WHOLE, Mean, Method, Report, Summary
from simulations.compare.study import DEFAULTS
from simulations.tables import Cells, Presentation, again, dataset_name, machine, spread


def present(report: Report) -> Presentation:
    """Return the report in words."""
    tables = (accuracy(report), traffic(report), work(report), seen(report))
    return Presentation(
        title=title(report),
        tables=(*tables, absent(report)) if any(trial.absent for trial in report.measurements) else tables,
        notes=notes(report),
        command=command(report),
    )


def title(report: Report) -> str:
    """Return one line: what was trained on what, and where."""
    settings = report.settings
    dataset = dataset_name(str(settings.config["dataset"]))
    seeds = len({trial.seed for trial in report.measurements})
    return (
        f"{dataset}, {settings.config['backbone']}, {settings.train_images} training and "
        f"{settings.test_images} test images, {settings.epochs} epochs, {seeds} seed{'s' * (seeds > 1)}; "
        f"{machine(report)}"
    )


def accuracy(report: Report) -> Cells:
    """Return names and cells of the table of accuracy and time."""
    head = ("method", "accuracy, %", f"epochs to {report.settings.target:.1%}", "training, s", "start to end, s")
    return head, [
        (
            summary.method.name,
            _mean(summary.accuracy, 100),
            _epochs(summary),
            spread(summary.train_s, _whole),
            spread(summary.wall_s, _whole),
        )
        for summary in report.summaries
    ]


def traffic(report: Report) -> Cells:
    """Return names and cells of the table of what is sent."""
    head = ("method", "up from a node, MB", "down to a node, MB", "up in all, MB", "down in all, MB")
    return head, [
        (
            summary.method.name,
            *(_megabytes(of.get(which)) for which in ("node", "all") for of in (summary.up, summary.down)),
        )
        for summary in report.summaries
    ]


def work(report: Report) -> Cells:
    """Return names and cells of the table of what a node computes and holds."""
    on_gpu = any("GPU" in summary.peak_bytes for summary in report.summaries)
    head = (
        "method",
        "node, GFLOP/epoch",
        "server, GFLOP/epoch",
        "node, peak MB",
        "server, peak MB",
        "node, 1000 weights",
        *["GPU, peak MB"] * on_gpu,
    )
    return head, [
        (
            summary.method.name,
            _gigaflops(summary.cost.node_flops * summary.cost.node_images),
            _gigaflops(summary.cost.server_flops * report.settings.train_images),
            _megabytes(_node_peak(summary)),
            _megabytes(summary.peak_bytes.get("server")),
            f"{summary.cost.node_weights / 1000:,.0f}",
            *[_megabytes(summary.peak_bytes.get("GPU"))] * on_gpu,
        )
        for summary in report.summaries
    ]


def absent(report: Report) -> Cells:
    """Return names and cells of the table of accuracy without some Uppers: mean over choices of them and seeds."""
    found = {summary.method.name: absence(report, summary.method.name) for summary in report.summaries}
    counts = sorted({count for means in found.values() for count in means})
    head = ("accuracy, %, without so many Uppers", *map(str, counts))
    return head, [
        (name, *(_mean(means[count], 100) if count in means else "-" for count in counts))
        for name, means in found.items()
        if means
    ]


def absence(report: Report, method: str) -> dict[int, Mean]:
    """Return a method's accuracy by absent Uppers: the mean over choices of them and seeds, and lowest and highest."""
    found: dict[int, list[Mean]] = {}
    for trial in report.trials_of(method):
        for point in trial.absent:
            found.setdefault(point.absent, []).append(point.accuracy)
    return {
        count: Mean(mean=fmean(m.mean for m in means), low=min(m.low for m in means), high=max(m.high for m in means))
        for count, means in found.items()
    }


def seen(report: Report) -> Cells:
    """Return names and cells of the table of what each party gets to see."""
    return ("method", "a node sees", "the server sees"), [
        (summary.method.name, *sees(summary.method, report)) for summary in report.summaries
    ]


def sees(method: Method, report: Report) -> tuple[str, str]:
    """Return what a node and the server get to see."""
    if method.kind == PATCHES:
        averaged = bool((report.settings.config | method.config).get("average-every"))
        apart = bool(report.settings.config.get("adaptation-server")) and bool(method.config.get("alpha"))
        return (
            "its own patch positions of every image; no labels, no other node's patches"
            + averaged * "; the mean of all Uppers' weights"
            + apart * "; the Adaptation Net's node: smashed data and labels, no patches",
            "labels; smashed data, which can be inverted at the usual cut (docs/threat-model.md); no image"
            + averaged * "; all Uppers' weights as they are learnt",
        )
    if method.kind == AVERAGING:
        return (
            f"whole images and labels, its own (1 of {method.own['clients']} parts); the whole model",
            "no training image; every client's weights after each round, from which images can leak; the whole model",
        )
    return "everything: all whole images and labels, the whole model", "-"


def _node_peak(summary: Summary) -> int | None:
    """Return the peak of a node's process; one process that has all parties is none, one with whole images is."""
    alone = summary.method.kind in (WHOLE, MERGED)
    return summary.peak_bytes.get("one process" if alone else "node")


def command(report: Report) -> str:
    """Return the command line that measures the same again."""
    options = [word for name, value in report.settings.options.items() for word in (f"--{name}", value) if word]
    return again("compare", options, report.settings.config, DEFAULTS)


def to_csv(report: Report) -> str:
    """Return the tables' numbers as CSV, one line for a method."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        [
            "method", "kind", "trials", "accuracy_mean", "accuracy_low", "accuracy_high", "epochs_to_target",
            "trials_at_target", "train_s", "wall_s", "up_bytes_node", "down_bytes_node", "up_bytes_all",
            "down_bytes_all", "node_flop_per_image", "server_flop_per_image", "node_images_per_epoch",
            "node_peak_bytes", "server_peak_bytes", "gpu_peak_bytes", "node_weights", "weights", "node_sees",
            "server_sees",
        ]
    )  # fmt: skip
    for summary in report.summaries:
        known, found = summary.accuracy, summary.cost
        writer.writerow(
            [
                summary.method.name, summary.method.kind, summary.trials, known.mean, known.low, known.high,
                summary.epochs_to_target.mean if summary.epochs_to_target else "", summary.reached,
                summary.train_s.median, summary.wall_s.median, summary.up.get("node", ""), summary.down.get("node", ""),
                summary.up.get("all", ""), summary.down.get("all", ""), found.node_flops, found.server_flops,
                found.node_images, _node_peak(summary) or "", summary.peak_bytes.get("server", ""),
                summary.peak_bytes.get("GPU", ""), found.node_weights, found.weights, *sees(summary.method, report),
            ]
        )  # fmt: skip
    return file.getvalue()


def curves_csv(report: Report) -> str:
    """Return all evaluations as CSV."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = ("epoch", "accuracy", "test_loss", "train_s", "bytes_up", "bytes_down")
    writer.writerow(["method", "seed", "engine", *names])
    for trial in report.measurements:
        for point in trial.points:
            writer.writerow([trial.method, trial.seed, trial.engine, *(getattr(point, name) for name in names)])
    return file.getvalue()


def absent_csv(report: Report) -> str:
    """Return the accuracy of every trial without some Uppers as CSV."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["method", "seed", "absent", "accuracy_mean", "accuracy_low", "accuracy_high", "choices", "possible"]
    )
    for trial in report.measurements:
        for point in trial.absent:
            known = point.accuracy
            writer.writerow(
                [trial.method, trial.seed, point.absent, known.mean, known.low, known.high, point.tried, point.possible]
            )
    return file.getvalue()


def _epochs(summary: Summary) -> str:
    if summary.epochs_to_target is None:
        return "not reached"
    missing = "" if summary.reached == summary.trials else f", {summary.reached} of {summary.trials} trials"
    return _mean(summary.epochs_to_target, 1) + missing


def _mean(values: Mean, factor: float) -> str:
    mean, low, high = (f"{factor * value:.1f}" for value in (values.mean, values.low, values.high))
    return mean if low == high else f"{mean} ({low} to {high})"


def _whole(value: float) -> str:
    return f"{value:.0f}"


def _megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:,.0f}" if count >= 1e7 else f"{count / 1e6:.2f}"


def _gigaflops(flops: float) -> str:
    return "-" if flops == 0 else f"{flops / 1e9:,.0f}"
