"""Findings of a check."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """One line of the report."""

    level: Literal["ok", "warning", "failed"]  #: "failed": a run would not work; "warning": it may.
    what: str  #: The thing checked, in a word or two.
    found: str  #: State of the thing.
    do: str = ""  #: Remedy; empty if there is nothing to do.


def ok(what: str, found: str) -> Finding:
    """Return a finding that is as it should be."""
    return Finding("ok", what, found)


def warning(what: str, found: str, do: str) -> Finding:
    """Return a finding that may trouble a run."""
    return Finding("warning", what, found, do)


def failed(what: str, found: str, do: str) -> Finding:
    """Return a finding that a run would fail on."""
    return Finding("failed", what, found, do)
