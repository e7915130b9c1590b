"""The display of progress: a bar on a terminal, lines elsewhere where they are wanted, and nothing otherwise."""

import io
import sys

import pytest

from psl_flower.cli import output
from psl_flower.cli import progress as module
from psl_flower.cli.progress import Progress
from simulations.progress import Progress as Trials


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """Return what sets the time in seconds."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, 100.0 + seconds)


def test_lines_come_now_and_then_with_rate_and_time_left(clock):
    shown = io.StringIO()
    with Progress(shown, every_s=5.0) as progress:
        # Three steps were done before, as in a training that is resumed.
        for second, done in enumerate(range(3, 15)):
            clock(second)
            progress.steps("training", done, 103)
        clock(20.0)
        progress.steps("training", 4, 103)  # another pass of the same name
        progress.say("best: degree [3]")
    assert shown.getvalue().splitlines() == [
        "training: 8 of 103, 1.0/s, 1:35 left",
        "training: 13 of 103, 1.0/s, 1:30 left",
        "training: 4 of 103",
        "best: degree [3]",
    ]


@pytest.mark.parametrize("by", ["say", "progress"])
def test_on_a_terminal_lines_are_wrapped_between_words(by, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    shown, line = Terminal(), "some words that are together wider than it, files are in /a/path/to/a/folder"
    if by == "say":
        monkeypatch.setattr(sys, "stdout", shown)
        output.say(line)
        monkeypatch.undo()
    else:
        with Progress(shown, enabled=False) as progress:
            progress.say(line)
    assert [row.rstrip() for row in shown.getvalue().splitlines()] == [
        "some words that are together wider than", "it, files are in /a/path/to/a/folder",
    ]  # fmt: skip


def test_without_a_terminal_nothing_is_shown_unless_asked_for(clock):
    shown = io.StringIO()
    for progress in (Progress(shown), Progress(shown, every_s=0.0, enabled=False)):
        with progress:
            progress.begin("starting")
            progress.ingesting("train", 1, 2)
    assert shown.getvalue() == ""


def test_a_bar_on_a_terminal_is_gone_at_the_end_and_leaves_standard_output_alone(capsys, monkeypatch):
    shown = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with Progress(shown) as progress:
        progress.ingesting("train", 1, 4)
        progress.ingesting("train", 3, 4)
        progress._bars.refresh()
        during = shown.getvalue()
        progress.begin("exporting [b]")
        print("a result", file=sys.stdout)
    assert "making the patch stores: train images" in during
    assert "75%" in during and "3 of 4, " in during
    assert "exporting [b]" in shown.getvalue()
    assert shown.getvalue().endswith("\x1b[2K")
    assert capsys.readouterr().out == "a result\n"


def test_a_trial_shows_its_parties_side_by_side(clock, capsys):
    with Trials() as progress:
        progress.trial("repetition 1 of 3, stream")
        progress.step("one process", 4, 20)
        clock(11.0)
        progress.step("stream", 2, 20, 75.0)
        progress.result("ratio 0.9")
    assert capsys.readouterr().err.splitlines() == [
        "repetition 1 of 3, stream: starting",
        "repetition 1 of 3, stream: one process step 4 of 20, stream step 2 of 20, about 1:15 left in all",
        "repetition 1 of 3, stream: ratio 0.9",
    ]
