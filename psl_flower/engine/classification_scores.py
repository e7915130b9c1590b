"""Scores of predictions other than accuracy: by class, balanced over classes, and compared with chance.

Suffixes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from psl_flower.engine.rounds import Predictions

# Standard errors above chance that a network must reach before it counts as having learnt.
_SIGMAS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Scores of predictions, as scikit-learn computes them."""

    accuracy: float  #: Share classified correctly, 0..1.
    #: Mean recall of the classes that have images, 0..1; 1/classes by chance, however unequal classes are.
    balanced_accuracy: float
    macro_f1: float  #: Mean F1 of the classes that have images or are predicted, 0..1.
    #: Mean area under the ROC curve of each class against the rest, 0..1, 0.5 by chance; of the classes of which some
    #: images are and some are not, None if there is no such class or the probabilities are unknown.
    auc: float | None
    confusion_KK: NDArray[np.int64]  #: Images by class (row) and predicted class (column), int64.
    #: Scores by class, 0..1, float64; 0 where they are undefined.
    precision_K: NDArray[np.float64]
    recall_K: NDArray[np.float64]
    f1_K: NDArray[np.float64]

    @property
    def images_K(self) -> NDArray[np.int64]:
        """Images of every class."""
        images_K: NDArray[np.int64] = self.confusion_KK.sum(1)
        return images_K

    @property
    def majority(self) -> float:
        """Accuracy of always answering the most frequent class."""
        return float(self.images_K.max() / self.images_K.sum())

    @property
    def at_chance(self) -> bool:
        """Whether balanced accuracy is at chance, or so near that luck explains it (two standard errors)."""
        images_K = self.images_K[self.images_K > 0]
        chance = 1.0 / len(images_K)
        error = chance * np.sqrt((chance * (1 - chance) / images_K).sum())
        return bool(self.balanced_accuracy <= chance + _SIGMAS * error)

    def note(self, class_names: Sequence[str]) -> str:
        """Return a sentence on a result that is no better than chance, with what to try; empty if it is better."""
        if not self.at_chance:
            return ""
        images_K = self.images_K
        kinds = int((images_K > 0).sum())
        return (
            f"no better than chance: balanced accuracy {self.balanced_accuracy:.1%}, chance 1 in {kinds} "
            f"({1 / kinds:.1%}); always answering {class_names[int(images_K.argmax())]} would be {self.majority:.1%} "
            "accurate; try more rounds, another lr, class-weights=balanced if classes are unequal, flip=true, or more "
            "images"
        )


def scores(predictions: Predictions) -> Scores:
    """Return the scores of predictions of one image or more."""
    label_N, predicted_N, probability_NK = predictions.label, predictions.predicted, predictions.probability
    num_classes = int(max(label_N.max(), predicted_N.max())) + 1 if probability_NK is None else probability_NK.shape[1]
    return scores_of(label_N, predicted_N, num_classes, probability_NK)


def scores_of(
    label_N: NDArray[np.int64],
    predicted_N: NDArray[np.int64],
    num_classes: int,
    probability_NK: NDArray[np.float32] | None = None,
) -> Scores:
    """Return the scores of predicted classes, with their probabilities (N, K) where these are known."""
    from sklearn import metrics  # takes a second, and nodes do without

    classes_K = np.arange(num_classes)
    precision_K, recall_K, f1_K, images_K = metrics.precision_recall_fscore_support(
        label_N, predicted_N, labels=classes_K, zero_division=0.0
    )
    return Scores(
        accuracy=float((label_N == predicted_N).mean()),
        balanced_accuracy=float(recall_K[images_K > 0].mean()),
        macro_f1=float(metrics.f1_score(label_N, predicted_N, average="macro", zero_division=0.0)),
        auc=None if probability_NK is None else _auc(label_N, probability_NK),
        confusion_KK=metrics.confusion_matrix(label_N, predicted_N, labels=classes_K),
        precision_K=precision_K,
        recall_K=recall_K,
        f1_K=f1_K,
    )


def _auc(label_N: NDArray[np.int64], probability_NK: NDArray[np.float32]) -> float | None:
    from sklearn.metrics import roc_auc_score

    if not np.isfinite(probability_NK).all():
        return None
    areas = [
        roc_auc_score(label_N == k, probability_N)
        for k, probability_N in enumerate(probability_NK.T)
        if 0 < (label_N == k).sum() < len(label_N)
    ]
    return float(np.mean(areas)) if areas else None
