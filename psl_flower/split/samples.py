"""Which samples a training has, as its server knows them, and whether the parties hold the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from psl_flower.errors import AlignmentError, ConfigError
from psl_flower.split.side import Rows, targets_of
from psl_flower.wire.plan import MAX_SAMPLES


class Samples:
    """The server's samples: those that it has labels of, or those that a party has labels of.

    Parameters
    ----------
    labels : Any
        The targets of all samples; the name of the party that has them, if it is a text.
    ids : sequence or None
        The samples' ids.
    train, valid : Any
        Rows, or a mask.

    Attributes
    ----------
    targets : torch.Tensor or None
        None where a party has the labels.
    holder : str
        That party; empty where the server has them.
    num : int or None
        Samples; None where the server has neither labels nor ids nor masks, and the parties alone know.
    order : Rows
        The order of the samples that all parties share.
    train, valid : ndarray
        Samples, int64, numbered in that order.

    Raises
    ------
    ConfigError
        If rows are out of range, occur twice, or are both in train and in valid.
    AlignmentError
        As `psl_flower.split.side.Rows`.
    """

    def __init__(self, labels: Any, ids: Sequence[Any] | None, train: Any, valid: Any) -> None:
        self.holder = labels if isinstance(labels, str) else ""
        self.targets = None if self.holder else targets_of(labels, "the server")
        self.num: int | None = None if self.targets is None else len(self.targets)
        if self.targets is None and ids is not None:
            self.num = len(ids)
        masks = [rows for rows in map(np.asarray, (train, valid)) if rows.dtype == np.bool_]
        if self.num is None and masks:
            self.num = len(masks[0])
        self.order = Rows(self.num or 0, ids, "the server's ids" if self.holder else "the server's labels")
        self.train, self.valid = self.at(train, "train"), self.at(valid, "valid")
        if shared := len(set(self.train.tolist()) & set(self.valid.tolist())):
            raise ConfigError(f"valid: {shared} of its samples are in train, too; metrics would be too good")

    def targets_of(self, samples_B: NDArray[np.int64]) -> torch.Tensor:
        """Return the targets of samples, in their order; the server must have them."""
        assert self.targets is not None
        return self.targets[torch.from_numpy(self.order.rows(samples_B).copy())]

    def check_aligned(self, num_samples: Mapping[str, int], fingerprints: Mapping[str, str]) -> None:
        """Check that all parties hold these samples.

        Parameters
        ----------
        num_samples, fingerprints : mapping
            Of each party, by what to call it in errors.

        Raises
        ------
        AlignmentError
            Naming the party.
        """
        first, held = next(iter(num_samples.items()))
        for who, number in num_samples.items():
            if self.targets is not None and number != self.num:
                raise AlignmentError(
                    f"{who} holds {number} samples, but there are {self.num} labels; every party needs all samples, "
                    "and the server the label of each"
                )
            if self.num is not None and number != self.num:
                raise AlignmentError(f"{who} holds {number} samples, but the server's ids or masks are of {self.num}")
            if number != held:
                raise AlignmentError(f"{first} holds {held} samples, {who} {number}; all must hold the same")
        if (largest := int(max(self.train.max(initial=-1), self.valid.max(initial=-1)))) >= held:
            raise AlignmentError(f"train or valid names sample {largest}, but the parties hold {held}, counted from 0")
        for who, fingerprint in fingerprints.items():
            if fingerprint != self.order.fingerprint:
                which = "no ids" if not fingerprint else "other ids"
                own = "gives none" if not self.order.fingerprint else "gives its own"
                raise AlignmentError(
                    f"{who} gives {which} for its samples, the server {own} (ids=...); give the same set of ids at all "
                    "parties and the server, or none anywhere"
                )

    def at(self, given: Any, name: str) -> NDArray[np.int64]:
        """Return the samples of the server's rows, or of a mask over them; `name` is what errors call these.

        Raises
        ------
        ConfigError
            If they are out of range or occur twice, or a party that has the labels cannot be sent so many.
        """
        rows = np.asarray(given)
        if rows.dtype == np.bool_:
            if rows.shape != (self.num,):
                raise ConfigError(f"{name}: expected a mask of {self.num} samples, got shape {rows.shape}")
            rows = np.flatnonzero(rows)
        if rows.ndim != 1 or (len(rows) and rows.dtype.kind not in "iu"):
            raise ConfigError(f"{name}: expected a row of sample numbers or a mask, got {rows.dtype} {rows.shape}")
        rows = rows.astype(np.int64)
        if len(rows) and self.num is not None and not 0 <= rows.min() <= rows.max() < self.num:
            raise ConfigError(
                f"{name}: a sample is outside the {self.num} that {'there are' if self.holder else 'have labels'}"
            )
        if len(rows) and rows.min() < 0:
            raise ConfigError(f"{name}: expected sample numbers from 0, got {rows.min()}")
        if len(np.unique(rows)) < len(rows):
            raise ConfigError(f"{name}: {len(rows) - len(np.unique(rows))} samples occur more than once")
        if self.holder and len(rows) > MAX_SAMPLES and name != "train":
            raise ConfigError(
                f"{name}: a party that has the labels takes at most {MAX_SAMPLES} samples in an evaluation, "
                f"got {len(rows)}"
            )
        return self.order.samples(rows)
