"""Prints the scores of `psl evaluate`, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from psl_flower.cli.output import percent, print_table, say

if TYPE_CHECKING:
    from psl_flower.engine.classification_scores import Scores

# A wider matrix does not fit a terminal; --json and --csv have it.
_MOST_SHOWN = 12


def scores_json(found: Scores, class_names: Sequence[str]) -> dict[str, Any]:
    """Return scores for a report in JSON; "accuracy" of a class is its recall, null without images."""
    classes = [
        {
            "class": name,
            "images": int(found.images_K[k]),
            "accuracy": float(found.recall_K[k]) if found.images_K[k] else None,
            "precision": float(found.precision_K[k]),
            "f1": float(found.f1_K[k]),
        }
        for k, name in enumerate(class_names)
    ]
    return {
        "balanced_accuracy": found.balanced_accuracy,
        "macro_f1": found.macro_f1,
        "auc": found.auc,
        "majority_accuracy": found.majority,
        "at_chance": found.at_chance,
        "classes": classes,
        "confusion": found.confusion_KK.tolist(),
    }


def print_scores(found: Scores, class_names: Sequence[str]) -> None:
    """Print scores: a line, a table of classes, and the confusion matrix of up to 12 classes."""
    auc = "-" if found.auc is None else f"{found.auc:.4f}"
    if note := found.note(class_names):
        say(f"note: {note}")
    say(f"balanced accuracy {percent(found.balanced_accuracy)}, macro F1 {found.macro_f1:.4f}, AUC {auc}")
    rows = [
        (
            name,
            str(images),
            percent(float(found.recall_K[k]) if images else None),
            percent(float(found.precision_K[k])),
            f"{found.f1_K[k]:.4f}",
        )
        for k, (name, images) in enumerate(zip(class_names, found.images_K, strict=True))
    ]
    print_table([("class", "images", "accuracy", "precision", "F1"), *rows])
    if len(class_names) <= _MOST_SHOWN:
        say("")
        counts = [[name, *map(str, row)] for name, row in zip(class_names, found.confusion_KK, strict=True)]
        print_table([["class \\ predicted", *class_names], *counts])
