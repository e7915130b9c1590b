"""Parses and formats text for people: paths, KEY=VALUE pairs, times."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from psl_flower.errors import ConfigError

# Called, while something takes long, with what it is, how much is done, and of how much.
OnProgress = Callable[[str, int, int], None]

_SHOWN = 40
# First characters of a spreadsheet's formula, which may run programs; numbers may begin with them as well.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def expanded(text: str | Path, what: str) -> Path:
    """Return the path that a text names, with `~` and `~user` replaced.

    `what` is the setting or option that it comes from, for the error.

    Raises
    ------
    ConfigError
        If there is no such user, or no home folder is known.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{what}: {text}: {error}") from None


def read_pairs(words: Iterable[str], form: str = "KEY=VALUE") -> dict[str, str]:
    """Return the values, as they are written, by their keys.

    Each word is one pair; `form` is what a pair looks like, for the error.

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


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?", X being the known word most like one that is not known; empty if none is like it."""
    similar = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {similar[0]}?" if similar else ""


def did_you_mean_folder(name: str) -> str:
    """Return "; did you mean X?", X being the folder whose path is most like one that is not there; else empty."""
    missing = Path(name)
    while missing != missing.parent and not missing.parent.is_dir():
        missing = missing.parent
    try:
        known = [entry.name for entry in os.scandir(missing.parent) if entry.is_dir()]
    except OSError:
        return ""
    similar = difflib.get_close_matches(missing.name, known, n=1)
    if not similar:
        return ""
    found = missing.with_name(similar[0])
    whole = found / Path(name).relative_to(missing)
    return f"; did you mean {printable(whole if whole.is_dir() else found)}?"


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is one: "1 image", "0 classes", "3 entries"."""
    if count == 1:
        return f"1 {noun}"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{count} {noun[:-1]}ies"
    return f"{count} {noun}{'es' if noun.endswith('s') else 's'}"


def duration(seconds: float) -> str:
    """Return a time as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def printable(text: object, limit: int | None = None) -> str:
    """Return a text as one line that any log, terminal or file takes: what cannot be printed is escaped.

    Names of files and texts of peers may hold line ends, escape sequences, and bytes that are not UTF-8. Of a text
    longer than `limit` characters only the first are taken.
    """
    clean = str(text)[:limit]
    if clean.isprintable():
        return clean
    clean = clean.encode("utf-8", errors="backslashreplace").decode()
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in clean)[:limit]


class OneLine(logging.Filter):
    """Makes each message of a log one printable line; a traceback that goes with it stays as it is."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Replace the record's message; let it pass."""
        record.msg, record.args = printable(record.getMessage()), None
        return True


def cell(text: str) -> str:
    """Return a text for a CSV file: one that a spreadsheet would take for a formula has an apostrophe before it.

    Names of classes and files come from the makers of the data.
    """
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def from_cell(text: str) -> str:
    """Return the original text of a cell that `cell` made."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def slug(name: str, limit: int) -> str:
    """Return a name for files: of letters and digits, at most `limit` characters, with "-" for what is between them."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:limit]


def dims(shape: Iterable[int], joint: str = "x") -> str:
    """Return dimensions as "16x24", or with another joint."""
    return joint.join(map(str, shape))


def cut(text: str, limit: int) -> str:
    """Return a text as valid Unicode of at most `limit` characters, with dots where more is left out."""
    fitting = text if len(text) <= limit else text[: limit - 3] + "..."
    return fitting.encode("utf-8", "replace").decode()  # a lone surrogate, as in an undecodable file name
