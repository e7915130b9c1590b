"""Which samples a training has, as its server knows them, and whether the parties hold the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from psl_flower.errors import AlignmentError, ConfigError
from psl_flower.split.side import Rows, targets_of
from psl_flower.wire.node_messages import Claim
from psl_flower.wire.plan import MAX_SAMPLES, unpack_mask


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
    missing : dict
        By party, a mask (N,) of the samples that it lacks; of parties that lack some, once they have said so.

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
        self.missing: dict[int, NDArray[np.bool_]] = {}
        self.train, self.valid = self.at(train, "train"), self.at(valid, "valid")
        if shared := len(set(self.train.tolist()) & set(self.valid.tolist())):
            raise ConfigError(f"valid: {shared} of its samples are in train, too; metrics would be too good")

    def targets_of(self, samples_B: NDArray[np.int64]) -> torch.Tensor:
        """Return the targets of samples, in their order; the server must have them."""
        assert self.targets is not None
        return self.targets[torch.from_numpy(self.order.rows(samples_B).copy())]

    def require(self, samples_B: NDArray[np.int64], *, dropped: bool) -> None:
        """Raise AlignmentError if a model that was trained without samples that a party lacks is asked about such."""
        lacking = sum(int(np.count_nonzero(mask_N[samples_B])) for mask_N in self.missing.values())
        if dropped and lacking:
            raise AlignmentError(
                f"samples: parties lack {lacking} of those asked for, and such samples were dropped in training; ask "
                "for others, or train with missing='zeros'"
            )

    def take(self, claims: Mapping[int, Claim], called: Callable[[int], str]) -> None:
        """Check that all parties hold these samples, and note which they lack.

        Parameters
        ----------
        claims : mapping
            By party.
        called : callable
            Returns what to call a party in errors.

        Raises
        ------
        AlignmentError
            Naming the party.
        """
        held = next(iter(claims.values())).num_samples
        for m, claim in claims.items():
            self._check_number(called(m), claim.num_samples, called(next(iter(claims))), held)
        if (largest := int(max(self.train.max(initial=-1), self.valid.max(initial=-1)))) >= held:
            raise AlignmentError(f"train or valid names sample {largest}, but the parties hold {held}, counted from 0")
        self.missing.clear()
        for m, claim in claims.items():
            if claim.dataset != self.order.fingerprint:
                which = "no ids" if not claim.dataset else "other ids"
                own = "gives none" if not self.order.fingerprint else "gives its own"
                raise AlignmentError(
                    f"{called(m)} gives {which} for its samples, the server {own} (ids=...); give the same set of ids "
                    "at all parties and the server, or none anywhere"
                )
            if claim.missing:
                self.missing[m] = _mask(claim, called(m))

    def drop_missing(self) -> None:
        """Leave the samples that a party lacks out of `train` and `valid`."""
        for missing_N in self.missing.values():
            self.train = self.train[~missing_N[self.train]]
            self.valid = self.valid[~missing_N[self.valid]]

    def _check_number(self, who: str, number: int, first: str, held: int) -> None:
        if self.targets is not None and number != self.num:
            raise AlignmentError(
                f"{who} holds {number} samples, but there are {self.num} labels; every party needs all samples, and "
                "the server the label of each"
            )
        if self.num is not None and number != self.num:
            raise AlignmentError(f"{who} holds {number} samples, but the server's ids or masks are of {self.num}")
        if number != held:
            raise AlignmentError(f"{first} holds {held} samples, {who} {number}; all must hold the same")

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


def _mask(claim: Claim, who: str) -> NDArray[np.bool_]:
    try:
        return unpack_mask(claim.missing, claim.num_samples)
    except ValueError as error:
        raise AlignmentError(f"{who}: the samples that it lacks: {error}") from None
