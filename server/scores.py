"""Scores of an evaluation as a run records them: in metrics.jsonl and in TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from psl_flower.engine.classification_scores import Scores
from psl_flower.text import printable
from server.event_files import EventFiles

# With more classes a table of them in every round would outgrow all else that is recorded.
MOST_CLASSES = 100
NAMES = ("balanced_accuracy", "macro_f1", "auc")


def recorded(found: Scores | None, prefix: str = "") -> dict[str, Any]:
    """Return scores as keys of a round's object in metrics.jsonl; null without scores.

    The confusion matrix and the scores by class are left out from 101 classes on.
    """
    keys: dict[str, Any] = {f"{prefix}{name}": getattr(found, name) if found else None for name in NAMES}
    if found is None or len(found.images_K) > MOST_CLASSES:
        return keys
    by_class = {
        "images": found.images_K, "precision": found.precision_K, "recall": found.recall_K, "f1": found.f1_K,
    }  # fmt: skip
    return keys | {
        f"{prefix}classes": {name: values.tolist() for name, values in by_class.items()},
        f"{prefix}confusion": found.confusion_KK.tolist(),
    }


def draw(writer: EventFiles, found: Scores, step: int, class_names: Sequence[str]) -> None:
    """Show scores of a round in TensorBoard, up to 100 classes with their table and the confusion matrix as a picture.

    The picture has a row for each class, a column for each predicted class; black is none of the class, white all.
    """
    if len(found.images_K) > MOST_CLASSES:
        return
    shares_KK = found.confusion_KK / np.maximum(1, found.images_K)[:, None]
    pixels = max(1, 256 // len(shares_KK))
    writer.add_image("round/confusion", np.kron(shares_KK, np.ones((pixels, pixels)))[None], step)
    writer.add_text("round/classes", _table(found, class_names), step)


def _table(found: Scores, class_names: Sequence[str]) -> str:
    rows = ["| class | images | precision | recall | F1 |", "|---|---|---|---|---|"]
    for k, images in enumerate(found.images_K):
        name = printable(class_names[k]).replace("|", "\\|") if k < len(class_names) else str(k)
        rows.append(
            f"| {name} | {images} | {found.precision_K[k]:.4f} | {found.recall_K[k]:.4f} | {found.f1_K[k]:.4f} |"
        )
    return "\n".join(rows)
