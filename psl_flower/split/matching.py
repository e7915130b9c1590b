"""Maps each party's rows to samples, by the ids that parties send. Shape suffix N: all samples."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from psl_flower.errors import AlignmentError, ConfigError
from psl_flower.split.holders import party_of, seats_of
from psl_flower.split.private_ids import DIGEST_BYTES, Digests
from psl_flower.split.roster import Roster
from psl_flower.wire.node_messages import Claim
from psl_flower.wire.plan import unpack_samples


def digests_of(claim: Claim, who: str) -> Digests:
    """Return the digests of the ids that a party claims; raises AlignmentError if that is not one for each row."""
    check = claim.dataset.split(" ")[1:2]
    if len(claim.ids) != DIGEST_BYTES * claim.num_samples or not check:
        raise AlignmentError(
            f"{who}: expected a digest for each of {claim.num_samples} rows, got {len(claim.ids)} bytes"
        )
    values = np.frombuffer(claim.ids, "S16")
    if len(np.unique(values)) < len(values):
        raise AlignmentError(f"{who}: digests of ids occur more than once")
    return Digests(check[0], values)


def reference_of(given: Digests | None, claims: Mapping[int, Claim], roster: Roster) -> Digests | None:
    """Return the digests of the samples, in their order: those given to the server, else those of the labels' holder.

    Raises
    ------
    AlignmentError
        If some name their samples by private ids and others do not, or under another key; or if nobody says which
        samples there are.
    """
    private = [m for m, claim in claims.items() if claim.ids]
    if not private and given is None:
        return None
    if others := [m for m, claim in claims.items() if not claim.ids]:
        whose = roster.called(private[0]) if private else "the server"
        raise AlignmentError(
            f"{roster.called(others[0])} gives no private ids (ids=, id_key=), {whose} does; all must, or none"
        )
    holder = next((m for m in claims if roster.has_labels(m)), None)
    if given is None and holder is None:
        raise AlignmentError(
            "the parties give private ids, but the server's labels have no pseudonyms; give it ids=pseudonyms(ids, "
            "id_key), which the owner of the labels makes"
        )
    if given is not None:
        reference, source = given, "the server's ids"
    else:
        assert holder is not None
        reference, source = digests_of(claims[holder], roster.called(holder)), roster.called(holder)
    for m, claim in claims.items():
        if digests_of(claim, roster.called(m)).check != reference.check:
            raise AlignmentError(
                f"{roster.called(m)} has another id_key than {source}, or a version that compares ids by other rules; "
                "give all the same key"
            )
    return reference


def rows_by_number(claim: Claim, num_samples: int, who: str) -> NDArray[np.int64]:
    """Return the row of each sample (N,), -1 for none, of a party that names its samples by number."""
    if len(claim.samples) != 8 * claim.num_samples:
        raise AlignmentError(f"{who}: expected a number for each of {claim.num_samples} rows")
    numbers = unpack_samples(claim.samples)
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < num_samples:
        raise AlignmentError(f"{who} names sample {numbers.max()}, but there are {num_samples}, counted from 0")
    if len(np.unique(numbers)) < len(numbers):
        raise AlignmentError(f"{who}: samples occur more than once")
    rows_N = np.full(num_samples, -1, np.int64)
    rows_N[numbers] = np.arange(len(numbers))
    return rows_N


def rows_by_id(claim: Claim, reference: Digests, who: str) -> NDArray[np.int64]:
    """Return the row of each sample (N,), -1 for none, of a party that names its samples by private id."""
    held = digests_of(claim, who).values
    order = np.argsort(held)
    at = np.searchsorted(held, reference.values, sorter=order).clip(max=len(held) - 1)
    rows_N: NDArray[np.int64] = order[at].astype(np.int64)
    rows_N[held[rows_N] != reference.values] = -1
    if not (rows_N >= 0).any():
        raise AlignmentError(
            f"{who}: none of its {len(held)} ids is that of one of the {len(rows_N)} samples, though the key is the "
            "same; look at how ids are written: 'A-17' is not 'A17', nor '17' '017'"
        )
    return rows_N


def missing_of(
    rows: Mapping[int, NDArray[np.int64]], lacking: Mapping[int, NDArray[np.bool_]], roster: Roster, num_samples: int
) -> tuple[dict[int, NDArray[np.int64]], dict[int, NDArray[np.bool_]]]:
    """Return the rows of holders that share a party or name their samples, and by party the samples that no holder has.

    By number of the holder, `rows` are of those that name their samples, `lacking` the samples (N,) that others lack.

    Raises
    ------
    AlignmentError
        If two holders of a party have the same sample.
    """
    rows, missing = dict(rows), {}
    names = roster.senders
    seats = seats_of(names)
    for seat in dict.fromkeys(seats):
        holders = [m for m, each in enumerate(seats) if each == seat]
        if len(holders) > 1:  # one that has all samples, or all but some, overlaps with the others
            for m in holders:
                lacks_N = lacking.get(m, np.zeros(num_samples, np.bool_))
                rows.setdefault(m, np.where(lacks_N, -1, np.arange(num_samples)))
        _check_apart({names[m]: rows[m] for m in holders if m in rows})
        there = [rows[m] >= 0 if m in rows else ~lacking.get(m, np.zeros(num_samples, np.bool_)) for m in holders]
        if not (any_N := np.logical_or.reduce(there)).all():
            missing[seat] = ~any_N
    return rows, missing


def _check_apart(rows: Mapping[str, NDArray[np.int64]]) -> None:
    holder = {name: rows_N >= 0 for name, rows_N in rows.items()}
    for left, right in itertools.combinations(holder, 2):
        if both := int((holder[left] & holder[right]).sum()):
            raise AlignmentError(
                f"{left!r} and {right!r} both have {both} of the same samples; a sample of {party_of(left)!r} has "
                "one holder, which says so by samples= or by ids= and id_key="
            )


def groups_of(claims: Mapping[int, Claim], roster: Roster) -> list[tuple[tuple[int, ...], int]]:
    """Return the holders that are averaged with each other, and how many numbers each of them shares.

    Raises
    ------
    ConfigError
        If one of them does not share its weights, or shares others than the rest.
    """
    found = []
    for holders in dict.fromkeys(roster.shared.values()):
        counts = {m: claims[m].shares for m in holders}
        for m, count in counts.items():
            if not count:
                raise ConfigError(
                    f"average_every: {roster.called(m)} does not allow it, or has no weights; let it return "
                    "PartySide(averaged=True), which sends its weights to the server, or do not average"
                )
            if count != counts[holders[0]]:
                raise ConfigError(
                    f"average_every: {roster.called(holders[0])} has a model of {counts[holders[0]]} numbers, "
                    f"{roster.called(m)} one of {count}; give the holders of a party the same model"
                )
        found.append((holders, counts[holders[0]]))
    return found


def alignment_of(reference: Digests | None, rows: Mapping[int, NDArray[np.int64]]) -> str:
    """Return a fingerprint of the samples and who has which; empty if no party names samples."""
    if not rows:
        return ""
    digest = hashlib.blake2b(b"" if reference is None else reference.values.tobytes(), digest_size=16)
    for m in sorted(rows):
        digest.update(m.to_bytes(4, "little") + np.packbits(rows[m] >= 0).tobytes())
    return digest.hexdigest()
