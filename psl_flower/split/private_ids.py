"""Ids that parties match without showing them: digests under a key that the server does not have.

An id's digest is the first 16 bytes of HMAC-SHA-256(key, "id" 00 id), the id in UTF-8 after Unicode's NFKC, case
folding and the removal of white space at both ends. Whoever has no key can neither read an id from a digest nor test
a guess; anyone with the key can test guesses. docs/own-models.md says what the server learns.
"""

from __future__ import annotations

import hmac
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psl_flower.errors import AlignmentError, ConfigError

DIGEST_BYTES = 16
MIN_KEY_BYTES = 16
# Names the rules by which ids are normalised: parties with other rules are detected like those with another key.
_RULES = b"psl-flower ids 1: NFKC, casefold, strip"
_PSEUDONYM = re.compile(r"psl1-([0-9a-f]{16})-([0-9a-f]{32})")
_FEW = 3


@dataclass(frozen=True, slots=True)
class Digests:
    """The digests of ids, in their order."""

    #: 16 hexadecimal digits that follow from the key and from how ids are made one form; equal where these are.
    check: str
    values: NDArray[np.bytes_]  #: (N,) of `DIGEST_BYTES` each, dtype S16; no two are equal.


def digests(ids: Sequence[Any], id_key: bytes, whose: str) -> Digests:
    """Return the digests of ids.

    Parameters
    ----------
    ids : sequence of str
        One per row; no two may be equal in the form in which they are compared.
    id_key : bytes
        The parties' shared key, 16 bytes or more, random.
    whose : str
        Who holds them, for errors, which name rows and never an id.

    Raises
    ------
    ConfigError
        If the key is no key.
    AlignmentError
        If an id is no text, empty, or occurs twice.
    """
    if not isinstance(id_key, bytes):
        raise ConfigError(f"{whose}: id_key: expected bytes, got {type(id_key).__name__}")
    if len(id_key) < MIN_KEY_BYTES:
        raise ConfigError(
            f"{whose}: id_key: expected {MIN_KEY_BYTES} random bytes or more, got {len(id_key)}; make one with "
            "secrets.token_bytes(32)"
        )
    texts = _texts(ids, whose)
    values = np.array([hmac.digest(id_key, b"id\0" + text, "sha256")[:DIGEST_BYTES] for text in texts], "S16")
    first: dict[bytes, int] = {}
    for row, text in enumerate(texts):
        if first.setdefault(text, row) != row:
            raise AlignmentError(
                f"{whose}: the ids of rows {first[text]} and {row} are the same once case, white space at the ends and "
                "forms of characters are evened out; each sample needs a unique id"
            )
    return Digests(hmac.digest(id_key, _RULES, "sha256")[:8].hex(), values)


def pseudonyms(ids: Sequence[str], id_key: bytes) -> list[str]:
    """Return texts that stand for ids where the server must name samples, but must not see their ids.

    The owner of the labels makes them and gives them to the server, which takes them as `ids`
    (`psl_flower.split.Training`) and matches the parties' ids with them.

    Parameters
    ----------
    ids : sequence of str
        The samples' own ids, in the order of the labels.
    id_key : bytes
        The key that the parties share (`psl_flower.split.PartySide`).

    Raises
    ------
    ConfigError, AlignmentError
        As for a party: no key, or ids that are no text, empty, or occur twice.
    """
    found = digests(ids, id_key, "pseudonyms")
    return [f"psl1-{found.check}-{value.ljust(DIGEST_BYTES, bytes(1)).hex()}" for value in found.values.tolist()]


def of_pseudonyms(ids: Sequence[Any] | None, whose: str) -> Digests | None:
    """Return the digests in pseudonyms; None if ids are none, or not pseudonyms.

    Raises
    ------
    AlignmentError
        If some are and others are not, they are of several keys, or one occurs twice.
    """
    given = () if ids is None else ids
    matches = [_PSEUDONYM.fullmatch(each) if isinstance(each, str) else None for each in given]
    found = [match for match in matches if match is not None]
    if not found:
        return None
    if len(found) < len(matches):
        raise AlignmentError(
            f"{whose}: {len(matches) - len(found)} of {len(matches)} ids are no pseudonyms; give one kind"
        )
    checks = {match[1] for match in found}
    if len(checks) > 1:
        raise AlignmentError(f"{whose}: pseudonyms of {len(checks)} keys; make all with one key")
    values = np.array([bytes.fromhex(match[2]) for match in found], "S16")
    if twice := len(values) - len(np.unique(values)):
        raise AlignmentError(f"{whose}: {twice} ids occur more than once; each sample needs a unique id")
    return Digests(checks.pop(), values)


def _texts(ids: Sequence[Any], whose: str) -> list[bytes]:
    """Return ids in the form in which they are compared."""
    wrong = [row for row, each in enumerate(ids) if not isinstance(each, str)]
    if wrong:
        kind = type(list(ids)[wrong[0]]).__name__
        raise AlignmentError(
            f"{whose}: the {_rows(wrong)} no text but {kind}; write ids as text, in the same way at all parties"
        )
    texts = [unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", each).casefold()).strip() for each in ids]
    if empty := [row for row, text in enumerate(texts) if not text]:
        raise AlignmentError(f"{whose}: the {_rows(empty)} empty; each sample needs an id")
    try:
        return [text.encode() for text in texts]
    except UnicodeEncodeError:
        raise AlignmentError(f"{whose}: an id is no valid Unicode; read ids with the encoding of their file") from None


def _rows(rows: Sequence[int]) -> str:
    if len(rows) == 1:
        return f"id of row {rows[0]} is"
    more = f" and {len(rows) - _FEW} more" if len(rows) > _FEW else ""
    return f"ids of rows {', '.join(map(str, rows[:_FEW]))}{more} are"
