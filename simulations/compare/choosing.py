"""Finds the best settings of patch-split learning for each grid, on the validation images; no test image is read."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

from psl_flower.errors import RunError
from simulations.compare.results import PATCHES, Summary
from simulations.reports import Values

if TYPE_CHECKING:
    from simulations.compare.report import Report


def best_by_grid(report: Report) -> dict[str, Summary]:
    """Return the method with the highest mean accuracy for each grid, named as `--grids` names it.

    Of equals, the first: the plainest settings come first in a study.

    Raises
    ------
    RunError
        If the study was judged on test images, compared nothing patch-split, or methods were not trained with the same
        seeds.
    """
    if report.settings.judge != "valid":
        raise RunError("the study was judged on test images, which no setting may be chosen by; use --judge valid")
    by_grid: dict[str, list[Summary]] = {}
    for summary in report.summaries:
        if summary.method.kind == PATCHES:
            by_grid.setdefault(_grid_of(summary.method.config), []).append(summary)
    if not by_grid:
        raise RunError("the study compared no settings of patch-split learning; use --methods patch-split")
    for grid, found in by_grid.items():
        seeds = [frozenset(trial.seed for trial in report.trials_of(summary.method.name)) for summary in found]
        if len(set(seeds)) > 1:
            raise RunError(f"{grid}: not all methods were trained with the same seeds; rerun the study to its end")
    return {grid: max(found, key=lambda summary: summary.accuracy.mean) for grid, found in by_grid.items()}


def chosen_in_words(report: Report) -> str:
    """Return a sentence for each grid: what was best on the validation images, and by how much it leads."""
    parts = []
    for grid, best in best_by_grid(report).items():
        plain = next(s for s in report.summaries if s.method.kind == PATCHES and _grid_of(s.method.config) == grid)
        if best is plain:
            parts.append(f"{best.method.name}: nothing that was tried was better.")
            continue
        pairs = zip(report.trials_of(best.method.name), report.trials_of(plain.method.name), strict=True)
        ahead = [100 * (a.accuracy - b.accuracy) for a, b in pairs]
        spread = f" ({min(ahead):+.1f} to {max(ahead):+.1f} by seed)" if len(ahead) > 1 else ", one seed"
        parts.append(f"{plain.method.name}: {best.method.name} was best, {fmean(ahead):+.1f} points{spread}.")
    return " ".join(parts)


def _grid_of(config: Values) -> str:
    patch, stride = str(config["patch-size"]), str(config["stride"])
    return patch if patch == stride else f"{patch}/{stride}"
