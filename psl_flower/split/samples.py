"""The samples of a training on its server, and the check that the parties hold the same ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from psl_flower.errors import AlignmentError, ConfigError
from psl_flower.split.matching import alignment_of, missing_of, reference_of, rows_by_id, rows_by_number
from psl_flower.split.private_ids import Digests, of_pseudonyms
from psl_flower.split.roster import Roster
from psl_flower.split.side import Rows, targets_of
from psl_flower.wire.node_messages import Claim
from psl_flower.wire.plan import MAX_SAMPLES, unpack_mask


class Samples:
    """The server's samples: those that it has labels of, or those that a party has labels of.

    `labels` are the targets of all samples, or the name of the party that has them; `train` and `valid` are rows, or a
    mask.

    Attributes
    ----------
    targets : torch.Tensor or None
        None if a party has the labels.
    holder : str
        That party; empty if the server has them.
    num : int or None
        Number of samples; None if the server has neither labels nor ids nor masks, and only the parties do.
    order : Rows
        The order of the samples that all parties share.
    train, valid : ndarray
        Samples, int64, numbered in that order.
    digests : Digests or None
        Digests of the samples' private ids, if `ids` are pseudonyms.
    missing : dict
        By party, a mask (N,) of the samples that it lacks; of parties that lack some, once they have said so. A party
        of several holders lacks what none of them has.
    rows : dict
        By holder, the row (N,) that it has of each sample, -1 for none; of those that name theirs, or share a party.
    alignment : str
        A fingerprint of who has which samples, if some name theirs.

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
        whose = "the server's ids" if self.holder else "the server's labels"
        self.digests = of_pseudonyms(ids, whose)
        if self.digests is not None and len(self.digests.values) != self.num:
            raise AlignmentError(
                f"{whose}: {self.num} samples, but {len(self.digests.values)} ids; give one id per sample"
            )
        self.order = Rows(self.num or 0, None if self.digests is not None else ids, whose)
        self.missing: dict[int, NDArray[np.bool_]] = {}
        self.rows: dict[int, NDArray[np.int64]] = {}
        self.alignment = ""
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

    def take(self, claims: Mapping[int, Claim], roster: Roster) -> None:
        """Check that the parties hold these samples, and note which they lack, and which row is which sample.

        Claims are by number of the party.

        Raises
        ------
        AlignmentError
            Naming the party.
        """
        reference = reference_of(self.digests, claims, roster)
        if reference is not None and self.order.fingerprint:
            raise AlignmentError(
                "the parties give private ids, but the server's are no pseudonyms; give it ids=pseudonyms(ids, "
                "id_key), or none where a party has the labels"
            )
        whole = {m: claim for m, claim in claims.items() if not claim.names_samples}
        held = self._held(whole, reference, roster)
        if (largest := int(max(self.train.max(initial=-1), self.valid.max(initial=-1)))) >= held:
            raise AlignmentError(f"train or valid names sample {largest}, but the parties hold {held}, counted from 0")
        self._check_ids(whole, roster)
        named = {m: claim for m, claim in claims.items() if claim.names_samples}
        rows = {
            m: rows_by_number(claim, held, roster.called(m))
            if reference is None
            else rows_by_id(claim, reference, roster.called(m))
            for m, claim in named.items()
        }
        self._check_labels(rows, roster)
        lacking = {m: _mask(claim, roster.called(m)) for m, claim in whole.items() if claim.missing}
        rows, missing = missing_of(rows, lacking, roster, held)
        self.alignment = alignment_of(reference, rows)
        self.rows.clear()
        self.rows.update(rows)
        self.missing.clear()
        self.missing.update(missing)

    def coverage(self, roster: Roster) -> str:
        """Return a line with the number of samples of each party that names its own."""
        return ", ".join(
            f"{roster.called(m)} has {np.count_nonzero(rows_N >= 0)} of {len(rows_N)} samples"
            for m, rows_N in self.rows.items()
        )

    def _held(self, whole: Mapping[int, Claim], reference: Digests | None, roster: Roster) -> int:
        """Return the number of samples, once all parties that hold every sample agree on it."""
        if reference is not None:
            if self.num is not None and self.num != len(reference.values):
                raise AlignmentError(f"{len(reference.values)} samples have ids, but the server knows {self.num}")
            return len(reference.values)
        if not whole:
            assert self.num is not None  # labels are here, or their holder has them all
            return self.num
        first = next(iter(whole))
        for m, claim in whole.items():
            self._check_number(roster.called(m), claim.num_samples, roster.called(first), whole[first].num_samples)
        return whole[first].num_samples

    def _check_ids(self, whole: Mapping[int, Claim], roster: Roster) -> None:
        for m, claim in whole.items():
            if claim.dataset != self.order.fingerprint:
                which = "no ids" if not claim.dataset else "other ids"
                own = "gives none" if not self.order.fingerprint else "gives its own"
                raise AlignmentError(
                    f"{roster.called(m)} gives {which} for its samples, the server {own} (ids=...); give the same set "
                    "of ids at all parties and the server, or none anywhere"
                )

    def _check_labels(self, rows: Mapping[int, NDArray[np.int64]], roster: Roster) -> None:
        """Check that a party that has the labels has those of all samples that are asked for."""
        for m, rows_N in rows.items():
            unlabelled = int(np.count_nonzero(rows_N[np.concatenate([self.train, self.valid])] < 0))
            if roster.has_labels(m) and unlabelled:
                raise AlignmentError(f"{roster.called(m)} has no label of {unlabelled} samples of train and valid")

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
