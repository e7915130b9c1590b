"""A comparison's report: accuracy, traffic, computing, and what each party sees."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from statistics import fmean

from psl_flower.data.account import Account
from psl_flower.text import counted
from simulations import reports
from simulations.compare.differences import differences, references
from simulations.compare.notes import notes
from simulations.compare.results import (
    AVERAGING,
    DEFAULTS,
    JUDGED,
    MERGED,
    PATCHES,
    WHOLE,
    Mean,
    Method,
    Settings,
    Summary,
    Trial,
)
from simulations.reports import Cells
from simulations.tables import again, dataset_name, network_name, spread

# Heading of the table whose cells are words.
SEEN = "Who sees what"


class Report(reports.Report, frozen=True, kw_only=True):
    """A result file: every trial, and a summary by method."""

    benchmark: str = "compare"
    version: int = 1
    settings: Settings
    measurements: tuple[Trial, ...]
    summaries: tuple[Summary, ...]
    account: Account | None = None  # what was read of the dataset, and what was left out

    def trials_of(self, method: str) -> list[Trial]:
        """Return a method's trials."""
        return [trial for trial in self.measurements if trial.method == method]

    @property
    def title(self) -> str:
        """One line: what was trained on what, and where."""
        settings = self.settings
        trained = settings.train_images - (settings.test_images if settings.judge == "valid" else 0)
        return (
            f"{dataset_name(str(settings.config['dataset']))}, {network_name(settings.config)}, "
            f"{trained} training and {settings.test_images} {JUDGED[settings.judge]}, "
            f"{settings.epochs} epochs, "
            f"{counted(len({trial.seed for trial in self.measurements}), 'seed')}; {self.place}"
        )

    @property
    def headed_tables(self) -> tuple[tuple[str, Cells], ...]:
        """Heading and cells of each table; the last two only where there is something to show."""
        compared = references(self)[:1]
        return (
            ("Accuracy and time", self._accuracy()),
            ("What is sent", self._traffic()),
            ("What is computed and held", self._work()),
            (SEEN, self._seen()),
            *[("Accuracy without some Uppers", self._absent())] * any(trial.absent for trial in self.measurements),
            *[("Differences by seed", self._differences())] * any(differences(self, name) for name in compared),
        )

    @property
    def tables(self) -> tuple[Cells, ...]:
        """The tables' cells."""
        return tuple(cells for _, cells in self.headed_tables)

    @property
    def notes(self) -> str:
        """How to read the tables, and where the comparison is not even."""
        return notes(self)

    @property
    def command(self) -> str:
        """The command line that measures the same again."""
        return again("compare", self.settings.options.items(), self.settings.config, DEFAULTS)

    def _accuracy(self) -> Cells:
        head = ("method", "accuracy, %", f"epochs to {self.settings.target:.1%}", "training, s", "start to end, s")
        return head, [
            (
                summary.method.name,
                _mean(summary.accuracy, 100),
                _epochs(summary),
                spread(summary.train_s, ".0f"),
                spread(summary.wall_s, ".0f"),
            )
            for summary in self.summaries
        ]

    def _traffic(self) -> Cells:
        head = ("method", "up from a node, MB", "down to a node, MB", "up in all, MB", "down in all, MB")
        return head, [
            (
                summary.method.name,
                *(_megabytes(of.get(which)) for which in ("node", "all") for of in (summary.up, summary.down)),
            )
            for summary in self.summaries
        ]

    def _work(self) -> Cells:
        on_gpu = any("GPU" in summary.peak_bytes for summary in self.summaries)
        head = (
            "method", "node, GFLOP/epoch", "server, GFLOP/epoch", "node, peak MB", "server, peak MB",
            "node, 1000 weights", *["GPU, peak MB"] * on_gpu,
        )  # fmt: skip
        return head, [
            (
                summary.method.name,
                _gigaflops(summary.cost.node_flops * summary.cost.node_images),
                _gigaflops(summary.cost.server_flops * self.settings.train_images),
                _megabytes(_node_peak(summary)),
                _megabytes(summary.peak_bytes.get("server")),
                f"{summary.cost.node_weights / 1000:,.0f}",
                *[_megabytes(summary.peak_bytes.get("GPU"))] * on_gpu,
            )
            for summary in self.summaries
        ]

    def _seen(self) -> Cells:
        return ("method", "a node sees", "the server sees"), [
            (summary.method.name, *sees(summary.method, self)) for summary in self.summaries
        ]

    def _absent(self) -> Cells:
        found = {summary.method.name: absence(self, summary.method.name) for summary in self.summaries}
        counts = sorted({count for means in found.values() for count in means})
        head = ("accuracy, %, by absent Uppers", *map(str, counts))
        return head, [
            (name, *(_mean(means[count], 100) if count in means else "-" for count in counts))
            for name, means in found.items()
            if means
        ]

    def _differences(self) -> Cells:
        names = references(self)
        found = [{d.method: str(d) for d in differences(self, name)} for name in names]
        methods = [s.method.name for s in self.summaries if any(s.method.name in of for of in found)]
        return ("accuracy, points", *(f"minus {name}" for name in names)), [
            (method, *(of.get(method, "-") for of in found)) for method in methods
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


def sees(method: Method, report: Report) -> tuple[str, str]:
    """Return the views of a node and of the server."""
    if method.kind == PATCHES:
        averaged = bool((report.settings.config | method.config).get("average-every"))
        apart = bool(report.settings.config.get("adaptation-server")) and bool(method.config.get("alpha"))
        margin = int((report.settings.config | method.config).get("margin") or 0)
        return (
            "its own patch positions of every image"
            + bool(margin) * f", with {counted(margin, 'pixel')} around each"
            + "; no labels, no other node's patches"
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
    """Return the peak of a node's process, such as one with whole images; None for one that has all parties."""
    alone = summary.method.kind in (WHOLE, MERGED)
    return summary.peak_bytes.get("one process" if alone else "node")


def to_csv(report: Report) -> str:
    """Return the tables' numbers as CSV, one line for a method."""
    rows = []
    for summary in report.summaries:
        method, known, cost, peaks = summary.method, summary.accuracy, summary.cost, summary.peak_bytes
        up, down, seen, epochs = summary.up, summary.down, sees(method, report), summary.epochs_to_target
        rows.append({
            "method": method.name, "kind": method.kind, "trials": summary.trials, "accuracy_mean": known.mean,
            "accuracy_low": known.low, "accuracy_high": known.high, "epochs_to_target": epochs.mean if epochs else "",
            "trials_at_target": summary.reached, "train_s": summary.train_s.median, "wall_s": summary.wall_s.median,
            "up_bytes_node": up.get("node", ""), "down_bytes_node": down.get("node", ""),
            "up_bytes_all": up.get("all", ""), "down_bytes_all": down.get("all", ""),
            "node_flop_per_image": cost.node_flops, "server_flop_per_image": cost.server_flops,
            "node_images_per_epoch": cost.node_images, "node_peak_bytes": _node_peak(summary) or "",
            "server_peak_bytes": peaks.get("server", ""), "gpu_peak_bytes": peaks.get("GPU", ""),
            "node_weights": cost.node_weights, "weights": cost.weights, "node_sees": seen[0], "server_sees": seen[1],
        })  # fmt: skip
    return _csv(rows[0], (row.values() for row in rows))


def curves_csv(report: Report) -> str:
    """Return all evaluations as CSV."""
    names = ("epoch", "accuracy", "test_loss", "train_s", "bytes_up", "bytes_down")
    return _csv(
        ("method", "seed", "engine", *names),
        (
            [trial.method, trial.seed, trial.engine, *(getattr(point, name) for name in names)]
            for trial in report.measurements
            for point in trial.points
        ),
    )


def absent_csv(report: Report) -> str:
    """Return the accuracy of every trial without some Uppers as CSV."""
    return _csv(
        ("method", "seed", "absent", "accuracy_mean", "accuracy_low", "accuracy_high", "choices", "possible"),
        (
            [trial.method, trial.seed, point.absent, known.mean, known.low, known.high, point.tried, point.possible]
            for trial in report.measurements
            for point in trial.absent
            for known in [point.accuracy]
        ),
    )


def _csv(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([head, *rows])
    return file.getvalue()


def _epochs(summary: Summary) -> str:
    if summary.epochs_to_target is None:
        return "not reached"
    missing = "" if summary.reached == summary.trials else f", {summary.reached} of {summary.trials} trials"
    return _mean(summary.epochs_to_target, 1) + missing


def _mean(values: Mean, factor: float) -> str:
    mean, low, high = (f"{factor * value:.1f}" for value in (values.mean, values.low, values.high))
    return mean if low == high else f"{mean} ({low} to {high})"


def _megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:,.0f}" if count >= 1e7 else f"{count / 1e6:.2f}"


def _gigaflops(flops: float) -> str:
    return "-" if flops == 0 else f"{flops / 1e9:,.0f}"
