"""What the benchmark measures and writes: one record per trial, and what they amount to by delay."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

from simulations import reports
from simulations.reports import Spread, Values

VERSION = 1


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How to measure.

    Attributes
    ----------
    delays_ms : tuple of float
        One-way delays of every node's link, in milliseconds.
    steps, warmup : int
        Training steps that are timed, and those before them that are not.
    repetitions : int
        How often every delay is tried; the delays take turns.
    threads : int
        Threads of the one process and of the Lower.
    """

    delays_ms: tuple[float, ...]
    steps: int
    warmup: int
    repetitions: int
    threads: int

    @property
    def total_steps(self) -> int:
        """Steps of one trial."""
        return self.warmup + self.steps


class Settings(Options, frozen=True, kw_only=True):
    """What is trained, and how it is timed.

    Attributes
    ----------
    config : dict
        Settings of the runs by their kebab-case keys, without those that the benchmark decides.
    upper_threads, nodes : int
        Threads of a node, and their number.
    netem : bool
        Whether the kernel's netem made the delay; else the stand-in `slow_link`.
    congestion_control : str
        TCP's, such as "cubic" or "bbr": how fast a stream gets going again after the computing between two exchanges.
    """

    config: Values
    upper_threads: int
    nodes: int
    netem: bool
    congestion_control: str


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One trial: a run of the deployment between two of the one process.

    Attributes
    ----------
    repetition : int
        From 1.
    delay_ms : float
        Of every node's link, one way.
    round_trip_s : float
        Measured from a node to the server and back, just before the run.
    batch_size : int
        Images of a step.
    step_s, before_s, after_s : tuple of float
        Seconds of every timed step: of the run, and of the one process before and after it.
    parts_s : dict
        Seconds of a step of the run by part: "upper" (the slowest), "lower", and "wire", all the rest, which is moving
        bytes and waiting for them. Medians over the timed steps.
    bytes_up, bytes_down : int
        Of the frames of all training steps, headers included.
    steps : int
        All training steps of the run.
    """

    repetition: int
    delay_ms: float
    round_trip_s: float
    batch_size: int
    step_s: tuple[float, ...]
    before_s: tuple[float, ...]
    after_s: tuple[float, ...]
    parts_s: dict[str, float]
    bytes_up: int
    bytes_down: int
    steps: int

    @property
    def images_per_s(self) -> float:
        """Median over the timed steps of the run."""
        return self.batch_size / statistics.median(self.step_s)

    @property
    def one_process(self) -> float:
        """Images per second of the one process: mean of before and after."""
        return statistics.mean(self.batch_size / statistics.median(steps) for steps in (self.before_s, self.after_s))


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What the trials of a delay amount to; each number a `Spread` over the repetitions.

    Attributes
    ----------
    delay_ms, round_trip_s, images_per_s, one_process : float, Spread, Spread, Spread
        As in `Measurement`.
    ratio : Spread
        Images per second over those of the one process.
    step_s, wire_s : Spread
        Median of the timed steps; and the part of a step that is not computing.
    added_s : Spread or None
        What `wire_s` has more than without delay in the same repetition; None where that was not tried.
    bytes_up_per_image, bytes_down_per_image : float
        The same in all repetitions.
    """

    delay_ms: float
    round_trip_s: Spread
    images_per_s: Spread
    one_process: Spread
    ratio: Spread
    step_s: Spread
    wire_s: Spread
    added_s: Spread | None
    bytes_up_per_image: float
    bytes_down_per_image: float


class Report(reports.Report, frozen=True, kw_only=True):
    """A result file.

    Attributes
    ----------
    settings : Settings
        What was measured.
    measurements : tuple of Measurement
        Every trial, in the order in which they ran.
    summaries : tuple of Summary
        What they amount to, by delay.
    """

    benchmark: str = "separate-hosts"
    version: int = VERSION
    settings: Settings
    measurements: tuple[Measurement, ...]
    summaries: tuple[Summary, ...]


def summarise(delays_ms: Sequence[float], measurements: Sequence[Measurement]) -> tuple[Summary, ...]:
    """Return what the trials amount to, by delay, in the order given."""
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
