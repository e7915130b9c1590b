"""Paths as people write them."""

from __future__ import annotations

from pathlib import Path

from psl_flower.errors import ConfigError


def expanded(text: str | Path, what: str) -> Path:
    """Return the path that a text names, with `~` and `~user` replaced.

    Parameters
    ----------
    text : str or Path
        The path.
    what : str
        The setting or option that it comes from, for the error.

    Raises
    ------
    ConfigError
        If there is no such user, or no home folder is known.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{what}: {text}: {error}") from None
