"""Stops a training whose loss is not finite, and names the parties that sent non-finite values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from psl_flower.errors import TrainingError
from psl_flower.wire.messages import party_names


def require_finite(
    loss: float, step: int, data: str, sent: Mapping[int, torch.Tensor] | None = None, names: Sequence[str] = ()
) -> None:
    """Check that a step's loss is finite.

    Parameters
    ----------
    loss : float
        The step's loss.
    step : int
        The step's number.
    data : str
        The kind of data to check, such as "images".
    sent : mapping, optional
        Smashed data of this step by party number, any shape; read only if the loss is not finite.
    names : sequence of str
        The parties' names, if they are no Uppers.

    Raises
    ------
    TrainingError
        If the loss is not finite.
    """
    if math.isfinite(loss):
        return
    raise TrainingError(
        f"step {step}: the loss is {loss}{blame(sent or {}, names)}; the last checkpoint is kept. "
        f"Begin anew with a lower lr, or check the {data}"
    )


def blame(sent: Mapping[int, torch.Tensor], names: Sequence[str] = ()) -> str:
    """Return "; Upper 1 sent values that are not finite" of those that did; empty if none did."""
    senders = [m for m, tensor in sent.items() if not bool(torch.isfinite(tensor).all())]
    return f"; {party_names(senders, names)} sent values that are not finite" if senders else ""
