"""History of a run: its last accuracy, and changes of its rounds (extended.jsonl in its folder)."""

from __future__ import annotations

import msgspec

from psl_flower.errors import RunError
from psl_flower.runs.folder import RunFolder
from psl_flower.system.records import append_record, read_records

FILE = "extended.jsonl"


class Extension(msgspec.Struct, frozen=True, kw_only=True):
    """A change of a run's rounds after which its weights are no longer those of a run that began with them."""

    step: int  #: Steps done before it.
    #: The run's rounds in all, before and since.
    before: int
    rounds: int


def note_extension(run: RunFolder, extension: Extension) -> None:
    """Add a change to those of a run; raises RunError if the disk refuses."""
    append_record(run.path / FILE, extension, RunError)


def extensions(run: RunFolder) -> list[Extension]:
    """Return the changes of a run's rounds, oldest first; raises RunError if the file is damaged."""
    return read_records(run.path / FILE, Extension, RunError, "remove the line")


def last_accuracy(run: RunFolder) -> float | None:
    """Return the accuracy of the run's last evaluation, 0..1, if there was one."""
    evaluated = [m["accuracy"] for m in run.read_metrics() if m.get("accuracy") is not None]
    return evaluated[-1] if evaluated else None
