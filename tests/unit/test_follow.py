"""What `psl train` shows of a run: lines where there is no terminal, a bar on one."""

import io
import logging

import pytest

from psl_flower.cli.follow import Follower
from psl_flower.runs.folder import RunFolder, Status, create_run
from server.reporting import Reporter


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return create_run(tmp_path, "tiny", "digits")


@pytest.fixture
def log(run):
    """Return what appends to the run's log, as its Reporter does."""

    def say(words: str) -> None:
        with (run.path / "log.txt").open("a") as file:
            file.write(f"2026-11-22 10:28:28,707 INFO {words}\n")

    return say


def test_only_what_is_new_is_shown(run, log):
    shown = io.StringIO()
    log("stopped after step 7")
    with Follower(shown) as follower:
        follower.skip_log(run)
        log("continuing after step 7 of 12")
        follower.follow(Status(state="training"), run)
        log("Grün")
        follower.follow(Status(state="training"), run)
    assert shown.getvalue().splitlines() == ["continuing after step 7 of 12", "Grün"]


def test_the_last_words_are_left_to_the_command(run):
    shown = io.StringIO()
    reporter = Reporter(run, run_id="1", every_s=0)
    with Follower(shown) as follower:
        reporter.say("training", "4 nodes")
        reporter.end("completed", "run tiny completed")
        for handler in logging.getLogger("psl_flower").handlers:
            handler.close()
        follower.follow(Status(state="training"), run)  # it ended after that was read
        follower.follow(run.read_status(), run)
    assert shown.getvalue().splitlines() == ["4 nodes"]


def test_a_notice_stays_until_the_end(run):
    shown = Terminal()
    with Follower(shown) as follower:
        follower.notice("stopping after this step; Ctrl-C again ends the run at once")
        before = len(shown.getvalue())
        follower.follow(Status(state="training", round=1, rounds=3, step=2, total_steps=9), run)
    assert "Ctrl-C again" in shown.getvalue()[:before]
    assert "stopping after this step" in shown.getvalue()[before:]
    assert "round 1/3" not in shown.getvalue()


def test_the_bar_leaves_the_last_words_to_the_command(run):
    shown = Terminal()
    with Follower(shown) as follower:
        follower.follow(Status(state="completed", message="run tiny completed", step=9, total_steps=9), run)
    assert "ending Flower: step 9/9" in shown.getvalue()
    assert "run tiny completed" not in shown.getvalue()
