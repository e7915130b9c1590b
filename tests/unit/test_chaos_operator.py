"""The operator of a disturbed run: when it is resumed. The federation is one that only notes what is submitted."""

import subprocess
import sys

import pytest

from psl_flower.config import RunConfig
from psl_flower.errors import RunError
from psl_flower.runs.folder import RunFolder, Status, this_process
from simulations.chaos import operated
from simulations.chaos.operated import OperatedRun


class Federation:
    """Takes submissions, each a process that ends at once or lives on, and has as many ServerApps as it is given."""

    def __init__(self, path):
        self._path, self.submitted, self.apps, self.lives = path, [], 0, True
        self.server, self.hosts_away = "server", set()

    def away(self, host):
        return host in self.hosts_away

    def run(self, name):
        return RunFolder(self._path / name)

    def submit(self, *settings):
        self.submitted.append(settings)
        process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
        if not self.lives:
            process.kill()
            process.wait()
        return process

    def server_apps(self):
        return self.apps

    def superlink_runs(self):
        return True


@pytest.fixture
def federation(tmp_path):
    made = Federation(tmp_path)
    (tmp_path / "storm").mkdir()
    return made


@pytest.fixture
def run(federation):
    made = OperatedRun(federation, "storm", ("rounds=2",), 9444)
    made.folder.write_config(RunConfig())
    yield made
    made.close()


def test_it_is_submitted_with_its_settings_and_resumed_without(federation, run):
    run.tend()
    assert federation.submitted == [("run-name=storm", "rounds=2", "exchange-port=9444")]
    run.folder.write_status(Status(state="failed", message="error: no room", run_id="1"))
    run.tend()
    assert federation.submitted[1:] == [("resume=storm", "exchange-port=9444")]
    assert (run.resumed, run.errors) == (1, ["error: no room"])
    # What the first attempt wrote is not taken for the second's.
    run.tend()
    assert len(federation.submitted) == 2 and not run.begun
    run.folder.write_status(Status(state="training", step=3, run_id="2", process=this_process()))
    run.tend()
    assert (run.begun, run.step, run.complete, len(federation.submitted)) == (True, 3, False, 2)
    run.folder.write_status(Status(state="completed", run_id="2"))
    run.tend()
    assert run.complete and len(federation.submitted) == 2


def test_a_server_app_that_was_killed_left_no_error(federation, run):
    gone = subprocess.Popen(["true"])
    gone.wait()
    host = this_process().partition(":")[0]
    run.folder.write_status(Status(state="training", step=3, run_id="1", process=f"{host}:{gone.pid}"))
    run.tend()
    assert (run.resumed, run.errors, len(federation.submitted)) == (1, [], 2)


def test_a_submission_that_was_lost_is_repeated_unless_its_server_app_is_there(federation, tmp_path, monkeypatch):
    monkeypatch.setattr(operated, "_PAUSE_S", 0.0)
    federation.lives, federation.apps = False, 1
    run = OperatedRun(federation, "storm", ("rounds=2",), 9444)
    run.tend()
    assert len(federation.submitted) == 1
    run.tend(others=1)
    # It had no folder with settings yet, so there is nothing to resume.
    assert federation.submitted[1:] == [("run-name=storm", "rounds=2", "exchange-port=9444")]
    run.close()


def test_a_server_app_that_says_nothing_is_an_error(federation, run, monkeypatch):
    federation.apps = 1
    monkeypatch.setattr(operated, "_LONGEST_START_S", 0.0)
    with pytest.raises(RunError, match="run storm has not begun within 0 s after `flwr run`"):
        run.tend()


def test_nobody_resumes_it_on_a_host_that_is_away(federation, run):
    run.tend()
    run.folder.write_status(Status(state="failed", message="error: lost the SuperLink", run_id="1"))
    federation.hosts_away.add("server")
    run.tend()
    assert run.resumed == 0
    federation.hosts_away.clear()
    run.tend()
    assert run.resumed == 1
