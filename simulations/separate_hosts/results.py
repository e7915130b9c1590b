"""The benchmark's records, one per trial, their summary by delay, and the report."""

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
from simulations.options import number, several
from simulations.reports import Cells, Row, Spread, Values
from simulations.tables import spread, trained


@dataclass(frozen=True, kw_only=True)
class Options(fields.Settings):
    """How to measure."""

    delays_ms: tuple[float, ...] = several(
        (0.0, 10.0, 50.0, 100.0), "one-way delays of every node's link, in ms", number
    )
    steps: int = setting(4, "timed training steps of a trial", least=1)
    warmup: int = setting(1, "steps before them, not timed, at least 1", least=1)
    repetitions: int = setting(1, "trials of each delay, taking turns", least=1)
    threads: int = setting(usable_cores(), "threads of the one process and the Lower; all cores", least=1)

    @property
    def total_steps(self) -> int:
        """Steps of one trial."""
        return self.warmup + self.steps


@dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """What is trained, and how it is timed."""

    config: Values  #: Settings of the runs by their kebab-case keys, without those that the benchmark decides.
    #: Threads of a node, and their number.
    upper_threads: int
    nodes: int
    netem: bool  #: Whether the kernel's netem made the delay; else the stand-in `slow_link`.
    #: TCP's, such as "cubic" or "bbr": how fast a stream gets going again after the computing between two exchanges.
    congestion_control: str


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One trial: a run of the deployment between two of the one process."""

    repetition: int  #: Number of the repetition, from 1.
    delay_ms: float  #: One-way delay of every node's link.
    round_trip_s: float  #: Measured from a node to the server and back, just before the run.
    batch_size: int  #: Images of a step.
    #: Seconds of every timed step: of the run, and of the one process before and after it.
    step_s: tuple[float, ...]
    before_s: tuple[float, ...]
    after_s: tuple[float, ...]
    #: Seconds of a step of the run by part: "upper" (the slowest), "lower", and "wire", all the rest, which is moving
    #: bytes and waiting for them. Medians over the timed steps.
    parts_s: dict[str, float]
    #: Bytes of the frames of all training steps, headers included.
    bytes_up: int
    bytes_down: int
    steps: int  #: All training steps of the run.

    @property
    def images_per_s(self) -> float:
        """Median over the timed steps of the run."""
        return self.batch_size / statistics.median(self.step_s)

    @property
    def one_process(self) -> float:
        """Images per second of the one process: mean of before and after."""
        return statistics.mean(self.batch_size / statistics.median(steps) for steps in (self.before_s, self.after_s))


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The summary of a delay's trials; each number a `Spread` over the repetitions."""

    #: Delay and round trip as in `Measurement`.
    delay_ms: float
    round_trip_s: Spread
    images_per_s: Spread
    one_process: Spread
    ratio: Spread  #: Images per second over those of the one process.
    #: Median of the timed steps; and the part of a step that is not computing.
    step_s: Spread
    wire_s: Spread
    #: Increase of `wire_s` over the undelayed trial of the same repetition; None without such a trial.
    added_s: Spread | None
    #: The same in all repetitions.
    bytes_up_per_image: float
    bytes_down_per_image: float


class Report(kept.Report, frozen=True, kw_only=True):
    """A result file: every trial, in the order in which they ran, and a summary by delay."""

    benchmark: str = "separate-hosts"
    version: int = 1
    settings: Settings
    measurements: tuple[Measurement, ...]
    summaries: tuple[Summary, ...]

    @property
    def title(self) -> str:
        """One line: what was trained, between which hosts, and where."""
        return (
            f"{self.settings.nodes} nodes and the server in network namespaces with TLS and node authentication; "
            f"{trained(self.settings.config)}; {self.place}"
        )

    @property
    def tables(self) -> tuple[Cells, ...]:
        """Throughput by delay, and what passes the network."""
        rates: list[Row] = [
            (
                f"{summary.delay_ms:g}",
                spread(summary.images_per_s, ".1f"),
                spread(summary.one_process, ".1f"),
                spread(summary.ratio, ".2f"),
                spread(summary.step_s, ".2f"),
            )
            for summary in self.summaries
        ]
        traffic: list[Row] = [
            (
                f"{summary.delay_ms:g}",
                spread(summary.round_trip_s, lambda seconds: f"{1e3 * seconds:.1f}"),
                spread(summary.wire_s, ".2f"),
                "-" if summary.delay_ms == 0 else spread(summary.added_s, ".2f"),
                f"{summary.bytes_up_per_image / 1000:.1f}",
                f"{summary.bytes_down_per_image / 1000:.1f}",
            )
            for summary in self.summaries
        ]
        heads = (
            "delay, ms", "round trip measured, ms", "network in a step, s", "added by the delay, s", "up, kB/image",
            "down, kB/image",
        )  # fmt: skip
        return (
            (("delay, ms", "images/s", "one process, images/s", "ratio to one process", "step, s"), rates),
            (heads, traffic),
        )

    @property
    def notes(self) -> str:
        """How to read the tables."""
        settings = self.settings
        how = (
            "by netem"
            if settings.netem
            else "by a program between its interface and the switch, since netem is not available"
        )
        return (
            f"Median (lowest to highest) of {counted(settings.repetitions, 'repetition')} of "
            f"{settings.steps} timed steps after {settings.warmup} of warm-up. Delay is one-way delay on each node's "
            f"link, made {how}; without delay the link is a plain bridge. Patch stores are sealed, each on its node; "
            f"streams are TLS 1.3 over TCP with {settings.congestion_control}, MTU 1500. The one process is the same "
            "training alone on the machine, its rate the mean of a run right before and one right after; SuperLink and "
            "SuperNodes stay up meanwhile, idle. All hosts share the machine's cores: threads of the one process "
            f"{settings.threads}, of the Lower {settings.threads}, of each node {settings.upper_threads}. The "
            "network's part of a step is the time in which neither the slowest Upper nor the Lower computes: median "
            f"over the timed steps. {self.load}"
        )


def summarise(delays_ms: Sequence[float], measurements: Sequence[Measurement]) -> tuple[Summary, ...]:
    """Summarise the trials by delay, in the order given."""
    undelayed = {trial.repetition: trial.parts_s["wire"] for trial in measurements if trial.delay_ms == 0}
    return tuple(
        _summary([trial for trial in measurements if trial.delay_ms == delay_ms], undelayed) for delay_ms in delays_ms
    )


def _summary(trials: list[Measurement], undelayed: dict[int, float]) -> Summary:
    images = sum(trial.steps * trial.batch_size for trial in trials)
    added = [trial.parts_s["wire"] - undelayed[trial.repetition] for trial in trials if trial.repetition in undelayed]
    return Summary(
        delay_ms=trials[0].delay_ms,
        round_trip_s=Spread.of(trial.round_trip_s for trial in trials),
        images_per_s=Spread.of(trial.images_per_s for trial in trials),
        one_process=Spread.of(trial.one_process for trial in trials),
        ratio=Spread.of(trial.images_per_s / trial.one_process for trial in trials),
        step_s=Spread.of(statistics.median(trial.step_s) for trial in trials),
        wire_s=Spread.of(trial.parts_s["wire"] for trial in trials),
        added_s=Spread.of(added) if added else None,
        bytes_up_per_image=sum(trial.bytes_up for trial in trials) / images,
        bytes_down_per_image=sum(trial.bytes_down for trial in trials) / images,
    )
