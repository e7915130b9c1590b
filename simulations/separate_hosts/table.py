"""The report in words."""

from __future__ import annotations

from simulations.separate_hosts.results import Report
from simulations.tables import Cells, Presentation, again, machine, spread


def present(report: Report) -> Presentation:
    """Return the report in words."""
    return Presentation(
        title=title(report),
        tables=(rates(report), traffic(report)),
        notes=notes(report),
        command=command(report),
    )


def title(report: Report) -> str:
    """Return one line: what was trained, between which hosts, and where."""
    config, nodes = report.settings.config, report.settings.nodes
    codecs = dict.fromkeys((config["wire-activations"], config["wire-gradients"]))
    return (
        f"{nodes} nodes and the server in network namespaces with TLS and node authentication; {config['dataset']}, "
        f"{config['backbone']}, batch {config['batch-size']}, wire {', '.join(map(str, codecs))}; {machine(report)}"
    )


def rates(report: Report) -> Cells:
    """Return names and cells of the table of throughput by delay."""
    head = ("delay, ms", "images/s", "one process, images/s", "ratio to one process", "step, s")
    return head, [
        (
            f"{summary.delay_ms:g}",
            spread(summary.images_per_s, _one_decimal),
            spread(summary.one_process, _one_decimal),
            spread(summary.ratio, _two_decimals),
            spread(summary.step_s, _two_decimals),
        )
        for summary in report.summaries
    ]


def traffic(report: Report) -> Cells:
    """Return names and cells of the table of what passes the network."""
    head = (
        "delay, ms", "round trip measured, ms", "network in a step, s", "added by the delay, s", "up, kB/image",
        "down, kB/image",
    )  # fmt: skip
    return head, [
        (
            f"{summary.delay_ms:g}",
            spread(summary.round_trip_s, _milliseconds),
            spread(summary.wire_s, _two_decimals),
            "-" if summary.delay_ms == 0 else spread(summary.added_s, _two_decimals),
            f"{summary.bytes_up_per_image / 1000:.1f}",
            f"{summary.bytes_down_per_image / 1000:.1f}",
        )
        for summary in report.summaries
    ]


def notes(report: Report) -> str:
    """Return how to read the tables."""
    settings = report.settings
    how = "by netem" if settings.netem else "by a program between its interface and the switch, for want of netem"
    return (
        f"Median (lowest to highest) of {settings.repetitions} repetition{'s' * (settings.repetitions > 1)} of "
        f"{settings.steps} timed steps after {settings.warmup} of warm-up. Delay is one-way delay on each node's link, "
        f"made {how}; without delay the link is a plain bridge. Patch stores are sealed, each on its node; streams are "
        f"TLS 1.3 over TCP with {settings.congestion_control}, MTU 1500. The one process is the same training alone on "
        "the machine, its rate the mean of a run right before and one right after; SuperLink and SuperNodes stay up "
        "meanwhile, idle. All hosts share the machine's cores: threads of the one process "
        f"{settings.threads}, of the Lower {settings.threads}, of each node {settings.upper_threads}. The "
        "network's part of a step is what is neither the slowest Upper's computing nor the Lower's: median over the "
        f"timed steps. Load of the machine before: {report.machine['load_before']}."
    )


def command(report: Report) -> str:
    """Return the command line that measures the same again."""
    settings = report.settings
    options = [
        "--delays", ",".join(f"{delay:g}" for delay in settings.delays_ms), "--steps", str(settings.steps),
        "--warmup", str(settings.warmup), "--repetitions", str(settings.repetitions),
        "--threads", str(settings.threads),
    ]  # fmt: skip
    return again("separate_hosts", options, settings.config)


def _milliseconds(value: float) -> str:
    return f"{1e3 * value:.1f}"


def _one_decimal(value: float) -> str:
    return f"{value:.1f}"


def _two_decimals(value: float) -> str:
    return f"{value:.2f}"
