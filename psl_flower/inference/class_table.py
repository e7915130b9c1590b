"""Scores by class as a file: a CSV table with the confusion matrix in it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from psl_flower.engine.classification_scores import Scores
from psl_flower.errors import RunError
from psl_flower.system.files import write_file
from psl_flower.text import cell


def write_class_table(found: Scores, class_names: Sequence[str], path: Path) -> None:
    """Write a line for every class: images, precision, recall, F1, and how many of its images got which class.

    Raises
    ------
    RunError
        If the disk refuses.
    """
    text = StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["class", "images", "precision", "recall", "f1", *(f"predicted {name}" for name in class_names)])
    for k, name in enumerate(class_names):
        rates = (found.precision_K[k], found.recall_K[k], found.f1_K[k])
        rows.writerow([cell(name), found.images_K[k], *map(float, rates), *found.confusion_KK[k]])
    write_file(path, text.getvalue().encode(), RunError, parents=True)
