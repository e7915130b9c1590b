"""Accuracy of a trained network by the number of absent Uppers, as table and picture.

Shape suffixes: B batch, P patches, C channels, h and w of a patch's smashed data.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from io import BytesIO, StringIO
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from psl_flower.errors import RunError
from psl_flower.inference.evaluation import LabelledImages
from psl_flower.inference.trained_model import TrainedModel
from psl_flower.seeds import evenly_spaced
from psl_flower.system.files import write_file
from psl_flower.system.machine import require_packages
from psl_flower.text import OnProgress

# Numbers of absent Uppers that are tried, spread over all that are possible, and choices of Uppers for each number.
MAX_COUNTS = 12
MAX_CHOICES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class AbsencePoint:
    """Accuracy with a number of Uppers absent."""

    absent: int  #: Uppers that are absent.
    #: Mean, least and most over the choices of Uppers, 0..1.
    accuracy: float
    lowest: float
    highest: float
    tried: int  #: Choices of Uppers that were tried: all, or `MAX_CHOICES` drawn at random, the same ones every time.
    possible: int  #: All possible choices.


def absence_curve(
    trained: TrainedModel, images: LabelledImages, progress: OnProgress | None = None
) -> list[AbsencePoint]:
    """Return the accuracy with all Uppers, without one, and so on to one that is left.

    Zeros stand for the smashed data of absent Uppers, as in a run that continues without them (`on-missing-node`). The
    test images are used up; `progress` is called as ("evaluate", images done, images in all).

    Raises
    ------
    CorruptImage, DataError, StoreError
        If an image or a store cannot be read.
    """
    chosen = _choices(len(trained.net.uppers))
    right = {absent: 0 for of_count in chosen.values() for absent in of_count}
    done = 0
    for images_BCHW, labels_B in images.batches:
        y_B = torch.from_numpy(labels_B)
        smashed_BPChw = trained.smash(images_BCHW)
        for absent in right:
            predicted_B = trained.join(smashed_BPChw, absent).argmax(1)
            right[absent] += int((predicted_B == y_B).sum())
        done += len(labels_B)
        if progress:
            progress("evaluate", done, images.num_images)
    points = []
    for count, of_count in chosen.items():
        accuracies = [right[absent] / done for absent in of_count]
        points.append(
            AbsencePoint(
                absent=count,
                accuracy=sum(accuracies) / len(accuracies),
                lowest=min(accuracies),
                highest=max(accuracies),
                tried=len(accuracies),
                possible=math.comb(len(trained.net.uppers), count),
            )
        )
    return points


def write_csv(points: Sequence[AbsencePoint], path: Path) -> None:
    """Write the points, one a line, under the names of their fields; raises RunError if the disk refuses."""
    text = StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([field.name for field in fields(AbsencePoint)])
    rows.writerows(astuple(point) for point in points)
    write_file(path, text.getvalue().encode(), RunError, parents=True)


def write_png(points: Sequence[AbsencePoint], path: Path, title: str) -> None:
    """Draw accuracy over absent Uppers: the mean as a line, from the least to the most as a band.

    Raises
    ------
    ConfigError
        If matplotlib is not installed.
    RunError
        If the disk refuses.
    """
    require_packages("a picture", "plots", "matplotlib")
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(5.2, 3.6), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    counts = [point.absent for point in points]
    lowest, highest = [100 * point.lowest for point in points], [100 * point.highest for point in points]
    axes.fill_between(counts, lowest, highest, color="#0072b2", alpha=0.2, linewidth=0)
    axes.plot(counts, [100 * point.accuracy for point in points], color="#0072b2", marker="o", markersize=4)
    axes.set(title=title, xlabel="absent Uppers", ylabel="test accuracy, %", ylim=(0, 100))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="#dddddd")
    encoded = BytesIO()
    figure.savefig(encoded, format="png")
    write_file(path, encoded.getvalue(), RunError, parents=True)


def _choices(num_uppers: int) -> dict[int, list[tuple[int, ...]]]:
    """Return, for each number of absent Uppers that is tried, which ones are absent."""
    spread = evenly_spaced(num_uppers, MAX_COUNTS)
    chosen: dict[int, list[tuple[int, ...]]] = {}
    for count in spread.tolist():
        if math.comb(num_uppers, count) <= MAX_CHOICES:
            chosen[count] = list(combinations(range(num_uppers), count))
            continue
        generator, drawn = np.random.default_rng(count), dict[tuple[int, ...], None]()
        while len(drawn) < MAX_CHOICES:
            drawn[tuple(sorted(generator.permutation(num_uppers)[:count].tolist()))] = None
        chosen[count] = list(drawn)
    return chosen
