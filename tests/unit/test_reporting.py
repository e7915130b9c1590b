import contextlib
import dataclasses
import logging
import socket
import ssl
import threading

import httpx
import numpy as np
import pytest

from psl_flower.engine.rounds import Predictions, RoundReport
from psl_flower.engine.steps import StepLoss, StepReport
from psl_flower.errors import RunError, TrainingStopped
from psl_flower.kinds import Lighten, Predict, Restore, Train
from psl_flower.runs.folder import create_run
from psl_flower.system.files import DISK
from server.reporting import Reporter
from tests.authority import DAY, NOW, Authority


def _report(step: int) -> StepReport:
    loss = StepLoss(full=1.0 / step, lower=1.0 / step, uppers=0.0, correct=1)
    return StepReport(
        step=step, epoch=0, loss=loss, num_samples=4, seconds=0.01, upper_s=0.004, lower_s=0.004, wire_s=0.002
    )


@pytest.mark.parametrize("every_s", [0, 0.001, 60])
def test_a_status_names_the_last_step_however_soon_the_end_comes(tmp_path, every_s):
    run = create_run(tmp_path, "tiny", "digits")
    reporter = Reporter(run, run_id="1", every_s=every_s)
    reporter.plan(rounds=2, total_steps=10, steps_per_round=5, done=0)
    for step in range(1, 8):
        reporter.step(_report(step))
    reporter.fail(TrainingStopped("stopped after step 7, as asked"))
    status = run.read_status()
    assert status is not None and (status.state, status.step, status.round) == ("stopped", 7, 2)


def test_how_long_the_training_takes_is_said_after_some_steps(tmp_path):
    run = create_run(tmp_path, "tiny", "digits")
    reporter = Reporter(run, run_id="1", every_s=0)
    reporter.plan(rounds=2, total_steps=405, steps_per_round=200, done=0)
    for step in range(1, 8):
        seconds = 9.0 if step == 1 else 1.5  # the first is slower
        reporter.step(dataclasses.replace(_report(step), seconds=seconds))
    reporter.end("stopped", "told to")  # or its event file is written on when its folder is gone
    said = [line for line in (run.path / "log.txt").read_text().splitlines() if "of training left" in line]
    assert len(said) == 1
    assert said[0].endswith("about 10:00 of training left: 400 steps of 1.5 s, and evaluations")


def _told(run, error):
    Reporter(run, run_id="1", every_s=0).fail(error)
    return run.read_status().message


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (Train(), "; continue with: psl train resume=tiny"),
        (Lighten(lighten="a", lighten_with="max-drop=0.1 min-speed=1"), "; continue with: the same command"),
        (Predict(predict="a"), ""),
        (Restore(restore="a"), ""),
    ],
)
def test_an_error_says_how_to_go_on_if_that_can_be(tmp_path, kind, told):
    run = create_run(tmp_path, "tiny", "digits")
    run.checkpoints.save(1, {})
    Reporter(run, run_id="1", every_s=0, again=kind.how_to_continue).fail(RunError("why"))
    assert run.read_status().message == f"error: why{told}"


def test_the_loss_of_the_superlink_is_said_in_one_line(tmp_path):
    """As Flower's own client meets it: with an expired certificate, and where nobody listens."""
    run, authority = create_run(tmp_path, "tiny", "digits"), Authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("server", end=NOW - DAY / 2))
    server = socket.create_server(("127.0.0.1", 0))
    url = f"https://127.0.0.1:{server.getsockname()[1]}"

    def answer():
        connection, _ = server.accept()
        with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True):
            pass

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(httpx.ConnectError) as expired:
        httpx.get(url, verify=ssl.create_default_context(cafile=str(authority.path)))
    thread.join()
    server.close()
    with pytest.raises(httpx.ConnectError) as gone:
        httpx.get(url)
    assert _told(run, expired.value).startswith(
        "error: the SuperLink's certificate is refused: certificate has expired; make a new one"
    )
    assert _told(run, gone.value) == "error: the SuperLink cannot be reached: Connection refused; see its log"
    assert "ValueError: x; the traceback follows" in _told(run, ValueError("x"))
    assert _told(run, SystemExit(1)) == "error: a signal, or Flower, has ended the server's process"
    assert (run.path / "log.txt").read_text().endswith("has ended the server's process\n")


def test_a_full_disk_does_not_hide_why_a_run_ended(tmp_path, monkeypatch, caplog):
    run = create_run(tmp_path, "tiny", "digits")
    reporter = Reporter(run, run_id="1", every_s=0)
    monkeypatch.setattr(logging.getLogger("psl_flower"), "propagate", True)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DISK, "create", full)
    reporter.fail(RunError("the reason"))
    assert "error: the reason" in caplog.text
    assert "status.json: cannot be written: No space left on device" in caplog.text


def test_a_round_whose_predictions_were_not_written_is_evaluated_again(tmp_path, monkeypatch):
    """Whether it was is read from its metrics, so these come last; and the predictions before stay whole."""
    run = create_run(tmp_path, "tiny", "digits")
    reporter = Reporter(run, run_id="1", every_s=0)
    reporter.plan(rounds=2, total_steps=2, steps_per_round=1, done=0)
    one = np.ones(1, np.int64)
    predictions = Predictions(sample=one, label=one, predicted=one, confidence=np.ones(1, np.float32), loss=0.0)

    def done(step):
        reporter.round(
            step,
            RoundReport(step=step, steps=[_report(step)], predictions=predictions, seconds=1.0, train_s=1.0),
            {},
            {},
        )

    done(1)
    before = (run.path / "predictions.npz").read_bytes()

    def killed(path, *_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(DISK, "create", killed)
        done(2)
    assert [metrics["step"] for metrics in run.read_metrics()] == [1]
    assert (run.path / "predictions.npz").read_bytes() == before
