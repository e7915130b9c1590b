"""The report in words."""

from __future__ import annotations

from simulations.tables import Cells, Presentation, Row, again, machine, spread
from simulations.throughput.results import PARTS, Report


def present(report: Report) -> Presentation:
    """Return the report in words."""
    return Presentation(
        title=title(report),
        tables=(rates(report), step_times(report), memory(report), startup(report)),
        notes=notes(report),
        command=command(report),
    )


def title(report: Report) -> str:
    """Return one line: what was trained, and where."""
    config = report.settings.config
    return (
        f"{config['dataset']}, {config['backbone']}, batch {config['batch-size']}, "
        f"wire {_wire(report)}{', bfloat16 autocast' if config['autocast'] else ''}; {machine(report)}"
    )


def notes(report: Report) -> str:
    """Return how to read the tables."""
    settings = report.settings
    rounding = "rounding at the cut as the wire does" if settings.round_at_cut else "without rounding at the cut"
    return (
        f"Median (lowest to highest) of {_several(settings.repetitions, 'repetition')} of {settings.steps} timed steps "
        f"(at least) after {settings.warmup} of warm-up. In each, the federated run and one process take "
        f"{_several(settings.turns, 'turn')}: while one computes, the other is stopped. Steps that a stop cut are not "
        f"timed; the ratio is that of the two. Threads: one process {settings.threads}, Lower {settings.threads}, each "
        f"of {settings.nodes} nodes {settings.upper_threads}. The one process works {rounding}. Parts are means over "
        f"the timed steps: the slowest Upper, the Lower, the rest (moving bytes, waiting). Load of the machine before: "
        f"{report.machine['load_before']}."
    )


def rates(report: Report) -> Cells:
    """Return names and cells of the table of throughput."""
    head = ("mode", "images/s", "ratio to one process", "up, kB/image", "down, kB/image")
    return head, [
        (
            summary.mode,
            spread(summary.images_per_s, _one_decimal),
            spread(summary.ratio, _three_decimals),
            _kilobytes(summary.bytes_up_per_image),
            _kilobytes(summary.bytes_down_per_image),
        )
        for summary in report.summaries
    ]


def step_times(report: Report) -> Cells:
    """Return names and cells of the table of a step's time."""
    head = ("mode", "step, s", *(f"{part}, s" for part in PARTS))
    return head, [
        (
            summary.mode,
            spread(summary.step_s, _three_decimals),
            *(spread(summary.parts_s.get(part), _three_decimals) for part in PARTS),
        )
        for summary in report.summaries
    ]


def memory(report: Report) -> Cells:
    """Return names and cells of the table of memory."""
    head = ("mode", "process", "peak, MB", "own share, MB")
    return head, [
        (
            summary.mode,
            _process(role),
            f"{peak / 1e6:.0f}",
            f"{summary.pss_bytes[role] / 1e6:.0f}" if role in summary.pss_bytes else "-",
        )
        for summary in report.summaries
        for role, peak in summary.peak_bytes.items()
    ]


def startup(report: Report) -> Cells:
    """Return names and cells of the table of start-up: the phases as means over the repetitions."""
    rows: list[Row] = []
    for summary in report.summaries:
        trials = [trial for trial in report.measurements if trial.mode == summary.mode]
        phases = [
            f"{name} {sum(trial.startup_s[name] for trial in trials) / len(trials):.1f}" for name in trials[0].startup_s
        ]
        rows.append((summary.mode, spread(summary.startup_s, _one_decimal), ", ".join(phases)))
    return ("mode", "command to first step, s", "phases, s"), rows


def command(report: Report) -> str:
    """Return the command line that measures the same again."""
    settings = report.settings
    options = [
        "--steps", str(settings.steps), "--turns", str(settings.turns), "--warmup", str(settings.warmup),
        "--repetitions", str(settings.repetitions),
        "--transports", ",".join(settings.transports), "--threads", str(settings.threads),
        *["--round-at-cut"] * settings.round_at_cut,
    ]  # fmt: skip
    return again("throughput", options, settings.config)


def _several(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number > 1)}"


def _process(role: str) -> str:
    return {"Upper": "largest Upper process", "Flower": "Flower and Ray, all others together"}.get(role, role)


def _wire(report: Report) -> str:
    codecs = dict.fromkeys((report.settings.config["wire-activations"], report.settings.config["wire-gradients"]))
    return " up, ".join(str(codec) for codec in codecs) + (" down" if len(codecs) > 1 else "")


def _kilobytes(num_bytes: float | None) -> str:
    return "-" if num_bytes is None else f"{num_bytes / 1000:.1f}"


def _one_decimal(value: float) -> str:
    return f"{value:.1f}"


def _three_decimals(value: float) -> str:
    return f"{value:.3f}"
