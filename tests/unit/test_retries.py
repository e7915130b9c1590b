"""`psl train --retries`: which failed attempts are made again; and a SuperLink that goes before it has the run."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import typer

from psl_flower.cli import train
from psl_flower.errors import RunError
from psl_flower.kinds import Kind, Lighten, Predict, Restore, Resume, Train, kind_of
from psl_flower.launch.running import Watch, _run_config, local_paths
from psl_flower.runs.folder import RunFolder, Status, create_run
from psl_flower.sealed import manifest as manifests
from psl_flower.stores.sealed_set import is_sealed_dataset


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    made = create_run(tmp_path, "tiny", "digits")
    (made.path / "checkpoints").mkdir()
    (made.path / "checkpoints" / "step-00000002.pt").touch()
    return made


@pytest.fixture
def attempts(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return the outcomes of attempts to come: an error to be raised, or a last status; and what is given to each."""
    outcomes: list[object] = []

    class Attempt:
        watch = None
        signalled = 0

        def __init__(self, given: dict[str, object], kind: Kind) -> None:
            self.folder = run
            self.given = given

        def run(self, app: Path, nodes: int) -> tuple[Status, str]:
            outcome = outcomes.pop(0)
            if isinstance(outcome, float):  # by which the clock leaps meanwhile
                leap, before, outcome = outcome, time.time, outcomes.pop(0)
                monkeypatch.setattr(time, "time", lambda: before() + leap)
            if isinstance(outcome, Exception):
                raise outcome
            assert isinstance(outcome, Status)
            return outcome, f"finished:{outcome.state}"

    monkeypatch.setattr(train, "_Attempt", Attempt)
    return outcomes


def end(retries: int) -> str:
    return train.run_to_end({}, Train(), retries=retries).status.state


def test_what_fails_is_tried_again_be_it_the_run_or_flower(
    attempts: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    attempts += [RunError("no SuperLink"), Status(state="failed", message="error: gone"), Status(state="completed")]
    assert end(2) == "completed"
    assert capsys.readouterr().err.splitlines() == [
        "error: no SuperLink; restarting from the last checkpoint, 1 retry left",
        "error: gone; restarting from the last checkpoint, 0 retries left",
    ]


def test_not_more_often_than_was_asked_for(attempts: list[object]) -> None:
    attempts += [RunError("no SuperLink"), RunError("no SuperLink either")]
    with pytest.raises(RunError, match="either"):
        end(1)


def test_not_without_a_checkpoint(attempts: list[object], run: RunFolder) -> None:
    (run.path / "checkpoints" / "step-00000002.pt").unlink()
    attempts += [RunError("no SuperLink"), Status(state="completed")]
    with pytest.raises(RunError, match="no SuperLink"):
        end(1)


def test_not_what_was_stopped(attempts: list[object]) -> None:
    attempts += [Status(state="stopped"), Status(state="completed")]
    assert end(1) == "stopped"


@pytest.mark.parametrize("state", ["stopped", "failed"])
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_exits_as_its_signal_says(
    number: int,
    expected: int,
    state: str,
    attempts: list[object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also if its processes had the signal themselves, as at a shutdown, and went before they could end properly."""
    monkeypatch.setattr(train._Attempt, "signalled", number)
    attempts += [Status(state=state, message="error: gone")]
    with pytest.raises(typer.Exit) as raised:
        train.completed({}, Train(), 0)
    assert raised.value.exit_code == expected
    assert "gone" in capsys.readouterr().err


def test_a_run_that_the_file_stop_ended_exits_with_1(attempts: list[object]) -> None:
    attempts += [Status(state="stopped", message="stopped")]
    with pytest.raises(typer.Exit) as raised:
        train.completed({}, Train(), 0)
    assert raised.value.exit_code == 1


@pytest.mark.parametrize("as_json", [False, True])
def test_what_a_signal_has_ended_is_not_restarted(
    as_json: bool, attempts: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train._Attempt, "signalled", signal.SIGTERM)
    attempts += [Status(state="failed", message="error: gone"), Status(state="completed")]
    ending = train.run_to_end({}, Train(), retries=2)
    assert ending.status.state == "failed" and len(attempts) == 1
    with pytest.raises(typer.Exit) as raised:
        train._report(ending, as_json)
    assert raised.value.exit_code == 143
    said = capsys.readouterr()
    assert said.err == "error: gone\n"
    assert ('"state": "failed"' in said.out) == as_json


def test_a_signal_after_the_work_is_done_changes_nothing(
    attempts: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train._Attempt, "signalled", signal.SIGTERM)
    attempts += [Status(state="completed", message="done")]
    assert train.completed({}, Train(), 0).name == "tiny"


def test_a_failure_names_flowers_log_where_there_is_one(attempts: list[object], run: RunFolder) -> None:
    """A full disk takes none."""
    for expected in ("gone", f"gone (Flower's log: {run.path / 'flower.log'})"):
        attempts += [Status(state="failed", message="error: gone")]
        with pytest.raises(RunError) as raised:
            train.completed({}, Train(), 0)
        assert str(raised.value) == expected
        (run.path / "flower.log").touch()


def test_what_flower_gives_up_when_the_clock_leaps_goes_on_unasked(
    attempts: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    """As it does where a machine has slept; each time once, however it ends."""
    failed = Status(state="failed", message="error: No heartbeat received from the task")
    attempts += [3600.0, failed, 18_000.0, RunError("no SuperLink"), 60.0, failed, failed]
    assert end(0) == "failed" and attempts == []
    said = capsys.readouterr().err.splitlines()
    assert [line.partition("; ")[0] for line in said] == [failed.message, "error: no SuperLink", failed.message]
    for line, leap in zip(said, ("1:00:00", "5:00:00", "1:00"), strict=True):
        assert line.endswith(
            f"; the clock leapt ahead by {leap}, as when a machine sleeps, and Flower then gives its runs up; "
            "restarting from the last checkpoint"
        )


def test_no_leap_no_restart_unasked(attempts: list[object]) -> None:
    """A clock that is set back, or by seconds, ends no run of Flower's."""
    for leap in (5.0, -3600.0):
        attempts += [leap, Status(state="failed", message="why")]
        assert end(0) == "failed" and attempts == []


@pytest.mark.parametrize("spelled", ["pictures", "./pictures", "pictures/", "{}/other/../pictures"])
def test_a_retry_gives_settings_that_the_run_can_go_on_with(
    spelled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a folder is called by the user, the run notes where it is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "pictures").mkdir()
    given, kind = train.read_settings(
        [f"dataset={spelled.format(tmp_path)}", f"workspace={tmp_path}", "run-name=it", "lr=0.1"]
    )
    # What the ServerApp is told, and writes down.
    told = kind_of(_run_config(given, kind, kind.find().folder))
    made = told.begin()
    again = kind_of(kind.settings_to_continue(given, made.folder))
    assert isinstance(again, Resume) and again.resume == "it"
    assert again.find().config == told.config.replace(run_name="")


def test_the_embedded_dataset_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / manifests.FILE).touch()
    assert local_paths({"dataset": "digits"}) == {}
    assert local_paths({"dataset": "./digits"}) == {"dataset": str(tmp_path / "digits")}
    assert not is_sealed_dataset("digits")
    assert is_sealed_dataset("./digits")


def test_a_prediction_that_fails_is_nothing_to_continue(run: RunFolder) -> None:
    """It too has checkpoints: those of the light Uppers that were shipped for it."""
    lightening = Lighten(lighten="tiny", lighten_with="max-drop=0.1 min-speed=1")
    ways = {
        Predict(predict="tiny"): "",
        Restore(restore="asked.psl"): "",
        Train(): "; continue with: psl train resume=tiny",
        Resume(resume="tiny"): "; continue with: psl train resume=tiny",
        lightening: "; continue with: the same command",
    }
    for kind, told in ways.items():
        assert Watch(SuperLink(up=False), run, kind.how_to_continue).note_end("failed", "why").message == f"why{told}"
        (run.path / "status.json").unlink()


class SuperLink:
    """One that has not begun to simulate; it may be gone."""

    def __init__(self, *, up: bool) -> None:
        self._up, self.stopped = up, False

    def is_up(self) -> bool:
        return self._up

    def is_running(self) -> bool:
        return False

    def last_words(self) -> str:
        return "it said nothing"

    def stop(self) -> None:
        self.stopped = True


def test_a_superlink_that_goes_before_it_has_the_run_is_not_waited_for(run: RunFolder) -> None:
    assert Watch(SuperLink(up=True), run).poll() == (None, False)
    gone = SuperLink(up=False)
    status, over = Watch(gone, run).poll()
    assert over and status is not None
    assert gone.stopped, "what it had started could write another status"
    assert status.state == "failed" and "the run's process ended: it said nothing" in status.message


def test_the_status_of_this_attempt_is_known_though_the_clock_was_set_back(run: RunFolder) -> None:
    """And that of an attempt before is not taken for it, wherever the clock stands."""
    run.write_status(Status(state="failed", message="the attempt before"))
    watch = Watch(SuperLink(up=True), run)
    assert watch.poll() == (None, False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: 1e9)  # hours, or years, before
        run.write_status(Status(state="completed", message="this one"))
    status, over = watch.poll()
    assert over and status is not None and (status.message, status.updated) == ("this one", 1e9)
