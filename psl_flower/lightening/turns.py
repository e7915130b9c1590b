"""Measures the speeds of several models in turns, so that varying load does not affect their ranking."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from psl_flower.lightening.folder import LighteningFolder
from psl_flower.lightening.judging import Speed, together

_TURNS = 3


def needs_turns(folder: LighteningFolder) -> bool:
    """Return True if there are several models and their speeds were not all measured in turns."""
    return len(folder.at_hand()) > 1 and not folder.are_compared()


def measure_in_turns(folder: LighteningFolder, speed: Callable[[Path], Speed]) -> None:
    """Measure the speeds of all existing models anew, several times each, and log them.

    Every turn begins with another model, so that a machine that becomes slower favours none. `speed` returns that of
    the artefacts in a folder.
    """
    names = list(folder.at_hand())
    found: dict[str, list[Speed]] = {name: [] for name in names}
    for turn in range(_TURNS):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(speed(folder.place(name)))
    folder.note_speeds({name: together(speeds) for name, speeds in found.items()})
