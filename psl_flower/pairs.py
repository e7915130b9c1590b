"""KEY=VALUE as people write it, on a command line or within a setting."""

from __future__ import annotations

from collections.abc import Iterable

from psl_flower.errors import ConfigError

_SHOWN = 40


def read_pairs(words: Iterable[str], form: str = "KEY=VALUE") -> dict[str, str]:
    """Return the values, as they are written, by their keys.

    Parameters
    ----------
    words : iterable of str
        One pair each.
    form : str
        What a pair looks like, for the error.

    Raises
    ------
    ConfigError
        If a word is no pair, or a key comes twice.
    """
    found: dict[str, str] = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key:
            # Cut: a long word may be a key that was pasted in the wrong place.
            raise ConfigError(f"expected {form}, got {word[:_SHOWN]!r}")
        if key in found:
            raise ConfigError(f"{key} is given twice")
        found[key] = value
    return found
