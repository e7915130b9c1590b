"""A round's object in metrics.jsonl, without the scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

from psl_flower.engine.rounds import RoundReport
from psl_flower.engine.steps import StepReport
from psl_flower.wire.messages import ADAPTATION


def measured(
    report: RoundReport,
    number: int,
    up: Mapping[int, int],
    down: Mapping[int, int],
    in_round: tuple[int, int] = (0, 0),
    what: str = "",
) -> dict[str, Any]:
    """Return a round's object in metrics.jsonl; values that were not measured are None.

    The round's number is from 1. `up` and `down` are the bytes of the run so far from and to each party, `in_round`
    those of this round alone, up and down. `what` names the training if the run has several; else it is empty.
    """
    steps, predictions, (bytes_up, bytes_down) = report.steps, report.predictions, in_round

    def mean(of: Callable[[StepReport], float]) -> float | None:
        return fmean([of(step) for step in steps]) if steps else None

    images = sum(step.num_samples for step in steps)
    return {
        **({"training": what} if what else {}),
        "round": number,
        "step": report.step,
        "loss": mean(lambda step: step.loss.full),
        "lower_loss": mean(lambda step: step.loss.lower),
        "upper_loss": mean(lambda step: step.loss.uppers),
        "train_accuracy": sum(step.loss.correct for step in steps) / images if steps else None,
        "accuracy": predictions.accuracy if predictions else None,
        "absent_uppers": list(report.absent),
        "test_loss": predictions.loss if predictions else None,
        "images_per_s": images / report.train_s if steps else None,
        "bytes_up": bytes_up,
        "bytes_down": bytes_down,
        "bytes_up_per_image": bytes_up / images if images else None,
        "bytes_down_per_image": bytes_down / images if images else None,
        "bytes_up_by_upper": {str(m): total for m, total in up.items() if m != ADAPTATION},
        "bytes_down_by_upper": {str(m): total for m, total in down.items() if m != ADAPTATION},
        "bytes_up_adaptation": up.get(ADAPTATION, 0),
        "bytes_down_adaptation": down.get(ADAPTATION, 0),
        "seconds": report.seconds,
        "train_s": report.train_s,
        "step_s": mean(lambda step: step.seconds),
        "upper_s": mean(lambda step: step.upper_s),
        "lower_s": mean(lambda step: step.lower_s),
        "wire_s": mean(lambda step: step.wire_s),
    }
