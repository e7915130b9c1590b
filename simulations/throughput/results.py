"""The benchmark's records, one per trial, their summary and the report."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import msgspec

from psl_flower.config import fields
from psl_flower.config.fields import setting
from psl_flower.errors import RunError
from psl_flower.system.machine import usable_cores
from psl_flower.text import counted
from simulations import kept
from simulations.memory import Process, highest
from simulations.options import one_of, several
from simulations.reports import Cells, Row, Spread, Values
from simulations.tables import spread, trained

ONE_PROCESS = "one-process"
FEDERATED = ("stream", "flower")
PARTS = ("upper", "lower", "wire")


@dataclass(frozen=True, kw_only=True)
class Options(fields.Settings):
    """How to measure."""

    steps: int = setting(20, "timed training steps of a trial", least=1)
    turns: int = setting(4, "turns they are spread over, at most one to a step", least=1)
    warmup: int = setting(3, "steps before them, not timed, at least 1", least=1)
    repetitions: int = setting(3, "trials of each transport, each in turns with one process", least=1)
    transports: tuple[str, ...] = several(FEDERATED, "transports to measure", one_of(FEDERATED))
    threads: int = setting(usable_cores(), "threads of the one process and the Lower; all cores", least=1)
    round_at_cut: bool = setting(False, "the one process rounds at the cut as the wire does")

    @property
    def total_steps(self) -> int:
        """Steps of one trial: for each turn one more, which a stop may cut."""
        return self.warmup + self.steps + self.turns


@dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """What is trained, and how it is timed."""

    config: Values  #: Settings of the runs by their kebab-case keys, without those that differ between the trials.
    #: Threads of a simulated node, and their number.
    upper_threads: int
    nodes: int

    @property
    def modes(self) -> tuple[str, ...]:
        """All modes."""
        return (ONE_PROCESS, *self.transports)


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One trial."""

    repetition: int  #: The session, from 1: one trial of a federated mode and one of the one process, which took turns.
    mode: str  #: "one-process", "stream" or "flower".
    images_per_s: float  #: Median over the timed steps: those after the warm-up that are not cut.
    step_s: tuple[float, ...]  #: Seconds of every step, those of the warm-up first.
    cut: tuple[int, ...]  #: Indices of the steps during which the mode's processes were stopped for the other's turn.
    batch_sizes: tuple[int, ...]  #: Images of every step.
    parts_s: dict[str, float]  #: Seconds of a step by part: mean over the timed steps. Empty for one process.
    #: Bytes of the frames of all training steps, headers included.
    bytes_up: int
    bytes_down: int
    processes: tuple[Process, ...]
    #: Seconds by phase, from the command to the first step, in the order in which they follow each other.
    startup_s: dict[str, float]
    loss: float  #: Mean over all steps.

    @property
    def total_startup_s(self) -> float:
        """Seconds from the command to the first step."""
        return sum(self.startup_s.values())


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The summary of a mode's trials; each number is a `Spread` over the repetitions of `Measurement`'s."""

    mode: str
    images_per_s: Spread
    #: Images per second over those of the one process in the same repetition; None for that one itself.
    ratio: Spread | None
    #: The same in all repetitions; None for one process, which sends nothing.
    bytes_up_per_image: float | None
    bytes_down_per_image: float | None
    step_s: Spread  #: Median of the timed steps.
    parts_s: dict[str, Spread]
    startup_s: Spread
    #: Highest memory of all trials, by role.
    peak_bytes: dict[str, int]
    pss_bytes: dict[str, int]


class Report(kept.Report, frozen=True, kw_only=True):
    """A result file: every trial, in the order in which they ran, and a summary by mode."""

    benchmark: str = "throughput"
    version: int = 2
    settings: Settings
    measurements: tuple[Measurement, ...]
    summaries: tuple[Summary, ...]

    @property
    def title(self) -> str:
        """One line: what was trained, and where."""
        config = self.settings.config
        return f"{trained(config)}{', bfloat16 autocast' if config['autocast'] else ''}; {self.place}"

    @property
    def tables(self) -> tuple[Cells, ...]:
        """Throughput, a step's time, memory, start-up."""
        return self._rates(), self._step_times(), self._memory(), self._startup()

    @property
    def notes(self) -> str:
        """How to read the tables."""
        settings = self.settings
        rounding = "rounding at the cut as the wire does" if settings.round_at_cut else "without rounding at the cut"
        return (
            f"Median (lowest to highest) of {counted(settings.repetitions, 'repetition')} of {settings.steps} timed "
            f"steps (at least) after {settings.warmup} of warm-up. In each, the federated run and one process take "
            f"{counted(settings.turns, 'turn')}: while one computes, the other is stopped. Steps that a stop cut are "
            f"not timed; the ratio is that of the two. Threads: one process {settings.threads}, Lower "
            f"{settings.threads}, each of {settings.nodes} nodes {settings.upper_threads}. The one process works "
            f"{rounding}. Parts are means over the timed steps: the slowest Upper, the Lower, the rest (moving bytes, "
            f"waiting). {self.load}"
        )

    def _rates(self) -> Cells:
        return ("mode", "images/s", "ratio to one process", "up, kB/image", "down, kB/image"), [
            (
                summary.mode,
                spread(summary.images_per_s, ".1f"),
                spread(summary.ratio, ".3f"),
                _kilobytes(summary.bytes_up_per_image),
                _kilobytes(summary.bytes_down_per_image),
            )
            for summary in self.summaries
        ]

    def _step_times(self) -> Cells:
        return ("mode", "step, s", *(f"{part}, s" for part in PARTS)), [
            (
                summary.mode,
                spread(summary.step_s, ".3f"),
                *(spread(summary.parts_s.get(part), ".3f") for part in PARTS),
            )
            for summary in self.summaries
        ]

    def _memory(self) -> Cells:
        names = {"Upper": "largest Upper process", "Flower": "Flower and Ray, all others together"}
        return ("mode", "process", "peak, MB", "own share, MB"), [
            (
                summary.mode,
                names.get(role, role),
                f"{peak / 1e6:.0f}",
                f"{summary.pss_bytes[role] / 1e6:.0f}" if role in summary.pss_bytes else "-",
            )
            for summary in self.summaries
            for role, peak in summary.peak_bytes.items()
        ]

    def _startup(self) -> Cells:
        """Return start-up times, with the phases as means over the repetitions."""
        rows: list[Row] = []
        for summary in self.summaries:
            trials = [trial.startup_s for trial in self.measurements if trial.mode == summary.mode]
            phases = (f"{name} {sum(trial[name] for trial in trials) / len(trials):.1f}" for name in trials[0])
            rows.append((summary.mode, spread(summary.startup_s, ".1f"), ", ".join(phases)))
        return ("mode", "command to first step, s", "phases, s"), rows


def _kilobytes(num_bytes: float | None) -> str:
    return "-" if num_bytes is None else f"{num_bytes / 1000:.1f}"


def timed(num_steps: int, warmup: int, cut: Collection[int]) -> list[int]:
    """Return the indices of the steps that count: after the warm-up, and not cut; raises RunError if there is none."""
    whole = [index for index in range(warmup, num_steps) if index not in cut]
    if not whole:
        raise RunError("no timed step was left whole by the turns; ask for more --steps, or fewer --turns")
    return whole


def rate(step_s: Sequence[float], batch_sizes: Sequence[int], warmup: int, cut: Collection[int]) -> float:
    """Return images per second: the median over the timed steps; raises RunError as `timed`."""
    return statistics.median(batch_sizes[i] / max(step_s[i], 1e-9) for i in timed(len(step_s), warmup, cut))


def summarise(settings: Settings, measurements: Sequence[Measurement]) -> tuple[Summary, ...]:
    """Summarise the trials by mode; modes without a trial are left out."""
    alone = {m.repetition: m.images_per_s for m in measurements if m.mode == ONE_PROCESS}
    by_mode = {mode: [m for m in measurements if m.mode == mode] for mode in settings.modes}
    return tuple(_summary(settings, mode, trials, alone) for mode, trials in by_mode.items() if trials)


def _summary(settings: Settings, mode: str, trials: list[Measurement], alone: dict[int, float]) -> Summary:
    ratios = [trial.images_per_s / alone[trial.repetition] for trial in trials if trial.repetition in alone]
    federated = mode != ONE_PROCESS
    images = sum(sum(trial.batch_sizes) for trial in trials)
    return Summary(
        mode=mode,
        images_per_s=Spread.of(trial.images_per_s for trial in trials),
        ratio=Spread.of(ratios) if federated and ratios else None,
        bytes_up_per_image=sum(trial.bytes_up for trial in trials) / images if federated else None,
        bytes_down_per_image=sum(trial.bytes_down for trial in trials) / images if federated else None,
        step_s=Spread.of(_step_s(trial, settings.warmup) for trial in trials),
        parts_s={part: Spread.of(trial.parts_s[part] for trial in trials) for part in trials[0].parts_s},
        startup_s=Spread.of(trial.total_startup_s for trial in trials),
        peak_bytes=highest((process.role, process.peak_bytes) for trial in trials for process in trial.processes),
        pss_bytes=highest((process.role, process.pss_bytes) for trial in trials for process in trial.processes),
    )


def _step_s(trial: Measurement, warmup: int) -> float:
    return statistics.median(trial.step_s[index] for index in timed(len(trial.step_s), warmup, trial.cut))
