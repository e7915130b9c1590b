"""Computes the loss, and metrics by name, from all outputs of an evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from psl_flower.errors import ConfigError, PslError, TrainingError
from psl_flower.split.sent import Outputs

# Called with what a model returns and the batch's targets.
Loss = Callable[[Any, torch.Tensor], torch.Tensor]
Metric = Callable[[Any, torch.Tensor], float]

VALID_LOSS = "valid_loss"
# Keys of a round's record other than the user's metrics.
RESERVED = frozenset({"event", "round", "step", "epoch", "loss", VALID_LOSS, "lr", "seconds", "bytes_up", "bytes_down"})


def checked_metrics(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """Return metrics as they are; raises ConfigError if one has a name that a round's record has already."""
    if taken := RESERVED & set(metrics):
        raise ConfigError(
            f"metrics: {', '.join(sorted(taken))}: a round's record has that name already; choose another"
        )
    return dict(metrics)


def figures(
    loss: Loss, metrics: Mapping[str, Metric], outputs: Outputs, targets: torch.Tensor, step: int
) -> dict[str, float]:
    """Return the loss, as "valid_loss", and the metrics of outputs, by name.

    Raises
    ------
    TrainingError
        If one of them raises; the error names the step.
    """
    found = {VALID_LOSS: _measured("loss", loss, outputs, targets, step)}
    return found | {name: _measured(name, metric, outputs, targets, step) for name, metric in metrics.items()}


def joined(batches: Sequence[Outputs]) -> Outputs:
    """Return the outputs of all batches, one after the other."""
    if isinstance(batches[0], tuple):
        return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    return torch.cat([batch for batch in batches if isinstance(batch, torch.Tensor)])


def _measured(name: str, metric: Any, outputs: Outputs, targets: torch.Tensor, step: int) -> float:
    kept = f" (after step {step}); the checkpoint of that step is kept"
    with torch.no_grad(), told_as(f"the metric {name!r}", kept):
        return float(metric(outputs, targets))


@contextlib.contextmanager
def told_as(what: str, then: str = "") -> Iterator[None]:
    """Turn exceptions of the user's own code into a TrainingError that says where; the cause stays attached.

    `then` ends the message.
    """
    try:
        yield
    except PslError:
        raise
    except Exception as error:
        raise TrainingError(f"{what} raised {type(error).__name__}: {error}{then}") from error
