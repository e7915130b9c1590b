"""Differences in accuracy to the whole image, paired by seed, and what they show."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from scipy import stats

from simulations.compare.results import MERGED, WHOLE

if TYPE_CHECKING:
    from simulations.compare.report import Report

# What other methods are compared with.
_REFERENCES = (WHOLE, MERGED)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A method's accuracy minus the reference's, in points."""

    method: str  #: Its name.
    mean: float  #: Over the seeds that both were trained with.
    #: 95 % interval of the mean by Student's t with one degree of freedom fewer than there are seeds. It takes the
    #: differences as normally distributed.
    low: float
    high: float

    @property
    def spread(self) -> float:
        """Width of the interval; 0 if the seeds agree by chance, which shows nothing."""
        return self.high - self.low

    def __str__(self) -> str:
        return f"{self.mean:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


def references(report: Report) -> list[str]:
    """Return the names of the methods that others are compared with, the upper line first."""
    names = {summary.method.kind: summary.method.name for summary in report.summaries}
    return [names[kind] for kind in _REFERENCES if kind in names]


def differences(report: Report, reference: str) -> list[Difference]:
    """Return the differences to a reference of all methods that share two or more seeds with it, in order."""
    base = {trial.seed: trial.accuracy for trial in report.trials_of(reference)}
    found = []
    for summary in report.summaries:
        trials = [trial for trial in report.trials_of(summary.method.name) if trial.seed in base]
        if summary.method.name == reference or len(trials) < 2:
            continue
        points = [100 * (trial.accuracy - base[trial.seed]) for trial in trials]
        mean = fmean(points)
        reach = float(stats.t.ppf(0.975, len(points) - 1) * stats.sem(points))
        found.append(Difference(method=summary.method.name, mean=mean, low=mean - reach, high=mean + reach))
    return found


def conclusion(report: Report) -> str:
    """Return in words which methods are shown to differ from the upper line; empty if nothing can be compared.

    Every method is judged; none is picked by its accuracy.
    """
    names = references(report)
    if not names or len(report.summaries) < 2:
        return ""
    found = differences(report, names[0])
    if not found:
        return f"Trained with one seed: another seed may change a difference to {names[0]}, so none is concluded."
    shown = {
        "above it": [d.method for d in found if d.low > 0 and d.spread],
        "below it": [d.method for d in found if d.high < 0 and d.spread],
        "not shown to differ": [d.method for d in found if d.low <= 0 <= d.high or not d.spread],
    }
    said = "; ".join(f"{where}: {', '.join(methods)}" for where, methods in shown.items() if methods)
    return f"Compared with {names[0]}, by the 95 % intervals of the paired differences: {said}."
