"""A party's side of a training: its model, its data and its optimiser."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from psl_flower.engine.optimizers import Optimizer
from psl_flower.engine.upper_averaging import weight_count
from psl_flower.errors import AlignmentError, ConfigError, DataError
from psl_flower.split.private_ids import digests
from psl_flower.wire.node_messages import Claim
from psl_flower.wire.plan import pack_mask

# What makes an optimiser from parameters, or an optimiser.
GivenOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer] | torch.optim.Optimizer
_NO_OPTIMIZER = (
    "optimizer: expected a class such as torch.optim.Adam, a function of the parameters that returns an optimiser, or "
    "an optimiser"
)
# What a model is called with: a tensor, or several.
Inputs = torch.Tensor | tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True)
class PartySide:
    """What one party brings to a training.

    Attributes
    ----------
    net : nn.Module
        Called with the inputs of B samples; returns (B, *shape), float32, of the shape that the training names.
    data : Any
        A tensor or array with a row per sample, or anything else of a length that gives the inputs of samples when it
        is indexed with their numbers (an int64 array): a tensor, an array, or a tuple of these, which the net takes as
        several arguments. Dtypes stay as they are.
    optimizer : callable or Optimizer
        Makes the optimiser from the net's parameters, such as `torch.optim.Adam`, or is one, over parameter groups.
        The training sets the learning rate; groups keep theirs in proportion to the optimiser's default.
    ids : sequence, optional
        The samples' own ids, one per row, in any order; then all parties and the server must give them. Rows are
        matched by id: the set must be the same for all, unless there is an `id_key`.
    id_key : bytes, optional
        A key that all parties share and the server does not have, 16 random bytes or more. Rows are then matched by
        digests of the ids, texts in any order; samples that the party lacks are missing, records of no sample unused.
    samples : sequence of int, optional
        Which of the training's samples each row is, if the party has only some of them, and no ids.
    present : mask, optional
        One bool per row: false if the party has nothing of the sample. Such a row is not read and passes through no
        net: zeros go up in its place, or the training leaves the sample out (`Training`, `missing`).
    averaged : bool
        Whether its weights may go to the server, to be averaged with those of the party's other holders (`Training`,
        `average_every`).
    local_loss : callable, optional
        Called with the net's output and its inputs in training; what it returns, a scalar, is added to the loss for
        this party alone.
    device : str
        Where the net computes.
    """

    net: nn.Module
    data: Any
    optimizer: GivenOptimizer
    ids: Sequence[Any] | None = None
    id_key: bytes | None = field(default=None, repr=False)
    samples: Any = None
    present: Any = None
    averaged: bool = False
    local_loss: Callable[[torch.Tensor, Inputs], torch.Tensor] | None = None
    device: str = "cpu"


class Rows:
    """The order of samples that all parties share: that of their ids, or the rows as they are.

    A party that names its samples, by number or by private id, numbers its rows in the order of these instead, and the
    server asks for rows. So the order of its records does not matter. Errors say whose ids they are.

    Attributes
    ----------
    fingerprint : str
        Of the ids or numbers, empty without.
    named : dict
        What `Claim` says of each row, if the party names its samples.

    Raises
    ------
    AlignmentError
        If an id occurs twice, or there is not one for each row.
    """

    def __init__(self, num_rows: int, ids: Sequence[Any] | None, whose: str) -> None:
        self.num_rows, self.fingerprint, self._whose = num_rows, "", whose
        self._row_of: NDArray[np.int64] | None = None
        self.named: dict[str, bytes] = {}
        if ids is None:
            return
        texts = np.array([str(each) for each in ids])
        if len(texts) != num_rows:
            raise AlignmentError(f"{whose}: {num_rows} samples, but {len(texts)} ids; give one id per sample")
        order = np.argsort(texts, kind="stable")
        twice = texts[order][1:][texts[order][1:] == texts[order][:-1]]
        if len(twice):
            raise AlignmentError(f"{whose}: {len(twice)} ids occur more than once; each sample needs a unique id")
        digest = hashlib.blake2b(digest_size=32)
        for text in texts[order]:
            digest.update(len(text.encode()).to_bytes(8, "little") + text.encode())
        self.fingerprint = digest.hexdigest()
        self._row_of = order.astype(np.int64)

    @classmethod
    def numbered(cls, num_rows: int, samples: Any, whose: str) -> Rows:
        """Return the rows of a party that names its samples by number.

        Raises
        ------
        AlignmentError
            If there is not one number from 0 for each row, or one occurs twice.
        """
        numbers = np.asarray(samples)
        if numbers.shape != (num_rows,) or (num_rows and numbers.dtype.kind not in "iu"):
            raise AlignmentError(
                f"{whose}: samples: expected the number of a sample for each of {num_rows} rows, got {numbers.dtype} "
                f"{numbers.shape}"
            )
        numbers = numbers.astype("<i8")
        if twice := num_rows - len(np.unique(numbers)):
            raise AlignmentError(f"{whose}: samples: {twice} occur more than once; each row needs its own sample")
        if num_rows and numbers.min() < 0:
            raise AlignmentError(f"{whose}: samples: expected numbers from 0, got {numbers.min()}")
        rows = cls(num_rows, None, whose)
        return rows._ordered(np.argsort(numbers), "samples", numbers, "samples")

    @classmethod
    def private(cls, num_rows: int, ids: Sequence[Any], id_key: bytes, whose: str, *, own_order: bool = False) -> Rows:
        """Return the rows of a party that names its samples by private ids (`psl_flower.split.private_ids`).

        With `own_order` they stay in the order of its records.

        Raises
        ------
        ConfigError, AlignmentError
            As `psl_flower.split.private_ids.digests`; AlignmentError if there is not one id for each row, too.
        """
        if len(ids) != num_rows:
            raise AlignmentError(f"{whose}: {num_rows} samples, but {len(ids)} ids; give one id per sample")
        found = digests(ids, id_key, whose)
        order = np.arange(num_rows) if own_order else np.argsort(found.values)
        return cls(num_rows, None, whose)._ordered(order, "ids", found.values, f"ids {found.check}")

    def _ordered(self, order: NDArray[np.int64], what: str, values: NDArray[Any], kind: str) -> Rows:
        if not self.num_rows:
            raise AlignmentError(f"{self._whose}: it has no rows; leave out a party that holds nothing")
        self._row_of = order.astype(np.int64)
        self.named = {what: values[order].tobytes()}
        self.fingerprint = f"{kind} {hashlib.blake2b(self.named[what], digest_size=16).hexdigest()}"
        return self

    def rows(self, samples_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of samples, numbered in the order that all share; raises DataError if one is out of range."""
        if len(samples_B) and not 0 <= samples_B.min() <= samples_B.max() < self.num_rows:
            raise DataError(f"{self._whose}: asked for a sample outside its {self.num_rows}")
        return samples_B if self._row_of is None else self._row_of[samples_B]

    def samples(self, rows_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the samples of rows: the inverse of `rows`."""
        if self._row_of is None:
            return rows_B
        sample_of = np.empty_like(self._row_of)
        sample_of[self._row_of] = np.arange(self.num_rows)
        return sample_of[rows_B]


class Reader:
    """Reads the inputs of samples from a party's data.

    Raises
    ------
    DataError
        If the data have no length.
    AlignmentError
        As `Rows`.
    """

    def __init__(self, side: PartySide, whose: str) -> None:
        self._data, self._whose = side.data, whose
        self._device = torch.device(side.device)
        try:
            num_rows = len(side.data)
        except TypeError:
            raise DataError(f"{whose}: its data have no length; give a tensor, or an object with __len__") from None
        self.order = _order_of(side, num_rows, whose)
        self._shares = weight_count(side.net) if side.averaged else 0
        self._present = None if side.present is None else np.asarray(side.present)
        if self._present is not None and (self._present.dtype != np.bool_ or self._present.shape != (num_rows,)):
            raise DataError(
                f"{whose}: present: expected one bool for each of {num_rows} rows, got {self._present.dtype} "
                f"{self._present.shape}"
            )

    def present(self, samples_B: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Return a mask (B,) of the samples that the party has; None if it has all of these."""
        if self._present is None:
            return None
        present_B: NDArray[np.bool_] = self._present[self.order.rows(samples_B)]
        return None if present_B.all() else present_B

    def claim(self, m: int) -> Claim:
        """Return the party's side, as party m."""
        missing_N = None if self._present is None else ~self._present[self.order.rows(np.arange(self.order.num_rows))]
        return claim_of(m, self.order, missing_N, self._shares)

    def read(self, samples_B: NDArray[np.int64]) -> Inputs:
        """Return the inputs of samples (B,) as a tensor or several, on the device.

        Raises
        ------
        DataError
            If a sample is out of range, or the data return fewer.
        """
        rows_B = self.order.rows(samples_B)
        found = self._data[torch.from_numpy(rows_B.copy()) if isinstance(self._data, torch.Tensor) else rows_B]
        inputs = tuple(self._tensor(part, len(rows_B)) for part in (found if isinstance(found, tuple) else (found,)))
        return inputs if isinstance(found, tuple) else inputs[0]

    def _tensor(self, part: object, num_samples: int) -> torch.Tensor:
        tensor = part if isinstance(part, torch.Tensor) else torch.as_tensor(np.asarray(part))
        if tensor.dim() == 0 or len(tensor) != num_samples:
            raise DataError(
                f"{self._whose}: {num_samples} samples were asked for, its data gave a tensor of shape "
                f"{tuple(tensor.shape)}; the first dimension is that of samples"
            )
        return tensor.to(self._device)


def _order_of(side: PartySide, num_rows: int, whose: str) -> Rows:
    """Return the order of a party's rows, however it names its samples."""
    if side.samples is None and side.id_key is None:
        return Rows(num_rows, side.ids, whose)
    if side.samples is not None and (side.ids is not None or side.id_key is not None):
        raise ConfigError(f"{whose}: samples and ids both say which sample a row is; give one of them")
    if side.present is not None:
        raise ConfigError(f"{whose}: present: rows that name their samples are all there; leave the others out")
    if side.id_key is None:
        return Rows.numbered(num_rows, side.samples, whose)
    if side.ids is None:
        raise ConfigError(f"{whose}: id_key: give the ids, too, which it is the key for")
    return Rows.private(num_rows, side.ids, side.id_key, whose)


def claim_of(m: int, order: Rows, missing_N: NDArray[np.bool_] | None = None, shares: int = 0) -> Claim:
    """Return the claim of party m to samples, without those that it lacks."""
    missing = b"" if missing_N is None or not missing_N.any() else pack_mask(missing_N)
    return Claim(
        upper=m, positions=(m,), num_samples=order.num_rows, dataset=order.fingerprint, missing=missing,
        samples=order.named.get("samples", b""), ids=order.named.get("ids", b""), shares=shares,
    )  # fmt: skip


def optimizer_of(net: nn.Module, given: GivenOptimizer, whose: str) -> Optimizer | None:
    """Return the optimiser of a net's parameters, which keeps the proportions of its groups; None without parameters.

    Raises
    ------
    ConfigError
        If it is none, has other parameters than the net's, or no learning rate.
    """
    if not isinstance(given, torch.optim.Optimizer) and not callable(given):
        raise ConfigError(f"{whose}: {_NO_OPTIMIZER}, got {given!r}")
    parameters = list(net.parameters())
    if not parameters:
        return None
    optimizer = given if isinstance(given, torch.optim.Optimizer) else given(parameters)
    if not hasattr(optimizer, "param_groups"):
        raise ConfigError(f"{whose}: {_NO_OPTIMIZER}; the function given returned {type(optimizer).__name__}")
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not held <= {id(parameter) for parameter in parameters}:
        raise ConfigError(f"{whose}: its optimiser has parameters that are not of its model")
    default = getattr(optimizer, "defaults", {}).get("lr")
    for group in optimizer.param_groups:
        if "lr" not in group:
            raise ConfigError(f"{whose}: its optimiser {type(optimizer).__name__} has no learning rate to set")
        if default:
            group["lr_scale"] = float(group["lr"]) / float(default)
    return optimizer


def targets_of(labels: Any, whose: str) -> torch.Tensor:
    """Return labels as a tensor with one row per sample.

    Raises
    ------
    ConfigError
        If they are a single number, or nothing that a tensor can be made of.
    """
    try:
        targets = labels if isinstance(labels, torch.Tensor) else torch.as_tensor(np.asarray(labels))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{whose}: labels: expected a tensor or an array of numbers: {error}") from error
    if targets.dim() == 0:
        raise ConfigError(f"{whose}: labels: expected one row per sample, got a single number")
    return targets
