"""What `psl train` shows of a run: lines where there is no terminal, a bar on one."""

import io
import logging
import re

import pytest
from msgspec import structs

from psl_flower.cli import follow
from psl_flower.cli.closing import closing_lines, next_commands
from psl_flower.cli.follow import Follower
from psl_flower.cli.main import main
from psl_flower.runs.folder import RunFolder, Status, create_run
from server.reporting import Reporter


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def plain(text: str) -> str:
    """Return what a terminal shows, each state of the bar as a line."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n")


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


def test_on_a_terminal_a_line_for_each_round_stays(run, log, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    shown = Terminal()
    with Follower(shown) as follower:
        log("4 simulated nodes host 4 Uppers, stream transport")
        log("round 1/3, step 12/69, loss 2.5000, 82 images/s, 0:42 left")
        log("round 1/3 done: loss 2.5000, test accuracy 15.62%, 54 images/s, 18.4 MB up, 16.3 MB down")
        training = Status(state="training", round=2, rounds=3, step=30, total_steps=69, loss=2.5, accuracy=0.15)
        follower.follow(structs.replace(training, images_per_s=82.0, eta_s=42.0), run)
        follower._bars.refresh()
    text = plain(shown.getvalue())
    assert "round 1/3: loss 2.5000, accuracy 15.62%, 54 images/s, 18.4 MB up, 16.3 MB down\n" in text
    assert "4 simulated nodes host 4 Uppers, stream transport\n" in text
    assert "step 12/69" not in text
    assert "round 2/3: step 30/69, 0:42 left, loss 2.500, 82 images/s" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_a_full_line_leaves_out_the_least_important(run, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    shown = Terminal()
    with Follower(shown) as follower:
        training = Status(state="training", round=112, rounds=200, step=9384, total_steps=156400, loss=2.5)
        follower.follow(structs.replace(training, images_per_s=1282.0, eta_s=42000.0), run)
        follower._bars.refresh()
    text = plain(shown.getvalue())
    assert "round 112/200: step 9384/156400, 11:40:00 left" in text
    assert "images/s" not in text and all(len(line) <= 80 for line in text.splitlines())


def test_the_table_at_the_end_names_result_time_places_and_what_is_next(run):
    status = Status(state="completed", accuracy=0.9778, step=69, total_steps=69, rounds=3)
    lines = list(closing_lines(run, status, 83.0))
    assert lines[0] == "accuracy  97.78% on the test split"
    assert lines[1] == "time      1:23 for 3 rounds, 69 steps"
    assert f"folder    {run.path}" in lines
    assert [line.split()[:3] for line in lines[-3:]] == [
        ["next", "psl", "predict"],
        ["psl", "train", "resume=tiny"],
        ["tensorboard", "--logdir", str(run.tensorboard)],
    ]
    run.model.mkdir()
    (run.model / "model.safetensors").touch()
    assert next_commands(run)[0] == "psl evaluate tiny"
    assert any(line == "model     model in that folder" for line in closing_lines(run, status, 83.0))
    # Each of them is a command of this program, with arguments that it takes.
    for command in next_commands(run):
        assert main([*command.split()[1:], "--help"]) == 0


def test_a_long_wait_is_told_with_its_seconds(monkeypatch, run):
    shown, clock = io.StringIO(), [100.0]
    monkeypatch.setattr(follow.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(follow.os, "getloadavg", lambda: (30.0, 0.0, 0.0))
    monkeypatch.setattr(follow, "usable_cores", lambda: 2)
    with Follower(shown) as follower:
        follower.begin("starting Flower")
        for _ in range(25):
            clock[0] += 1
            follower.waiting("starting Flower", "its SuperLink" if clock[0] < 115 else "the simulation's process")
        follower.note("found 4 patch stores")
        for _ in range(12):
            clock[0] += 1
            follower.follow(Status(state="starting"), run)
        for _ in range(12):
            clock[0] += 1
            follower.follow(Status(state="completed"), run)
    assert shown.getvalue().splitlines() == [
        "starting Flower",
        "starting Flower: waiting for its SuperLink, 10 s; this machine is busy, 30 processes want its 2 cores",
        "starting Flower: waiting for the simulation's process, 20 s",
        "found 4 patch stores",
        "starting the nodes, 9 s",
        "ending Flower, 7 s",
    ]


def test_a_terminal_names_what_is_waited_for(run):
    shown = Terminal()
    with Follower(shown) as follower:
        follower.begin("starting Flower")
        follower.waiting("starting Flower", "its SuperLink")
        follower._bars.refresh()
    assert "starting Flower: waiting for its SuperLink" in plain(shown.getvalue())
