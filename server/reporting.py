"""Reports a run's progress: lines in the log, status.json, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec
from rich.filesize import decimal

from psl_flower.engine.classification_scores import Scores, scores
from psl_flower.engine.rounds import Predictions, RoundReport
from psl_flower.engine.steps import StepReport
from psl_flower.errors import PredictionStopped, PslError, RunError, TrainingStopped
from psl_flower.flower.placement import Placement
from psl_flower.kinds import HowToContinue
from psl_flower.runs.folder import RunFolder, Status, this_process
from psl_flower.runs.tracking import Tracking
from psl_flower.text import counted, duration, printable
from psl_flower.wire.messages import ADAPTATION
from server.event_files import EventFiles
from server.round_metrics import measured
from server.run_log import set_up_log
from server.scores import NAMES, draw, recorded
from server.superlink import superlink_lost

log = logging.getLogger("psl_flower")

_STATUS_EVERY_S = 0.5
# Steps of a process after which the training time is estimated; the first is slower than the others.
_TIMED = 5


class Reporter:
    """Follows one run.

    Parameters
    ----------
    run : RunFolder
        Where status, metrics and event files go.
    run_id : str
        Flower's id of the run.
    every_s : float
        Seconds between lines in the log; 0 for lines at the end of rounds only.
    again : callable
        How it is continued.

    Attributes
    ----------
    tracking : Tracking
        Sends the run to its experiment tracker; at first to none.
    """

    def __init__(
        self, run: RunFolder, *, run_id: str, every_s: float, again: HowToContinue = lambda folder, simulated: ""
    ) -> None:
        self._run, self._every_s, self._again = run, every_s, again
        self._place = _identity(run.path)
        self._simulated = True
        set_up_log(run.path)
        self._steps_per_round = 1
        self._status = Status(state="preparing", run_id=run_id, process=this_process())
        self._writer: EventFiles | None = None
        self.tracking = Tracking()
        self._about = self._what = self._hosts = ""
        self._scores: Scores | None = None
        self._class_names: tuple[str, ...] = ()
        self._bytes = (0, 0)
        self._logged = self._written = 0.0
        self._recent: list[StepReport] = []
        self._seconds: list[float] = []
        self._evaluation_s = 0.0
        self._began = time.monotonic()

    @property
    def again(self) -> str:
        """How the run is continued; empty if it cannot be."""
        return self._again(self._run, self._simulated)

    def say(self, state: str, message: str) -> None:
        """Enter a state, with one line for the user."""
        log.info("%s", message)
        self._set(state=state, message=printable(message))

    def ingesting(self, stage: str, done: int, total: int) -> None:
        """Report progress of making the stores."""
        now = time.monotonic()
        if now - self._logged >= max(1.0, self._every_s) or done == total:
            self._logged = now
            self.say("preparing", f"making the patch stores: {done} of {counted(total, f'{stage} image')}")

    def plan(
        self,
        *,
        rounds: int,
        total_steps: int,
        steps_per_round: int,
        done: int,
        what: str = "",
        class_names: Sequence[str] = (),
    ) -> None:
        """Record a training's length and the steps already done; `what` names it, if there are several."""
        self._class_names = tuple(class_names)
        self._steps_per_round, self._what, self._bytes = steps_per_round, what, (0, 0)
        if self._writer is not None:
            self._writer.close()
        self._writer = EventFiles(self._run.tensorboard / what.replace(" ", "-").replace(",", ""))
        self._recent.clear()
        self._seconds.clear()
        self._set(rounds=rounds, total_steps=total_steps, step=done, images=0, total_images=0)
        if done:
            log.info("%scontinuing after step %d of %d", self._prefix, done, total_steps)

    def placed(self, placement: Placement, about: str, state: str = "training") -> None:
        """Report the nodes that take part, and enter `state`."""
        uppers = sum(len(hosted) for hosted in placement.hosts.values())
        adaptation = " and the Adaptation Net" if placement.adaptation is not None else ""
        kind = "simulated node" if placement.simulated else "node"
        verb = "hosts" if len(placement.parties) == 1 else "host"
        self._simulated = placement.simulated
        if about != self._about:
            self._about = about
            log.info("%s", about)
        if placement.note:
            log.warning("%s", placement.note)
        hosts = "; ".join(f"{placement.names[node]}: {_parties(m)}" for node, m in placement.parties.items())
        if not placement.simulated and hosts != self._hosts:
            self._hosts = hosts
            log.info("%s", hosts)
        absent = ", ".join(map(str, placement.absent))
        self._began = time.monotonic()
        self.say(
            state,
            f"{counted(len(placement.parties), kind)} {verb} {counted(uppers, 'Upper')}{adaptation}, "
            f"{placement.transport} transport" + (f"; zeros stand for Upper {absent}" if absent else ""),
        )

    def step(self, report: StepReport) -> None:
        """Record a training step, after `plan`."""
        assert self._writer is not None
        self._require_folder()
        self._recent.append(report)
        self._seconds.append(report.seconds)
        if len(self._seconds) == _TIMED and report.step < self._status.total_steps:
            self._say_time_left(self._status.total_steps - report.step)
        scalars = {
            "loss": report.loss.full,
            "upper_s": report.upper_s,
            "lower_s": report.lower_s,
            "wire_s": report.wire_s,
        }
        for name, value in scalars.items():
            self._writer.add(f"train/{name}", value, report.step)
        # In memory at once: a stop or an error may come before the next writing, and its status names the last step.
        self._change(step=report.step, round=self._round_of(report.step))
        now = time.monotonic()
        ends_round = report.step % self._steps_per_round == 0 or report.step == self._status.total_steps
        says = self._every_s > 0 and (ends_round or now - self._logged >= self._every_s)
        if says or ends_round or now - self._written >= _STATUS_EVERY_S:
            self._written = now
            self._set(**self._training(report))
        if says:
            self._logged = now
            log.info("%s", self._line())
        if says or ends_round:
            self._recent.clear()

    def _say_time_left(self, steps: int) -> None:
        step_s = fmean(self._seconds[1:])
        log.info(
            "%sabout %s of training left: %s of %.2g s, and evaluations",
            self._prefix, duration(steps * step_s), counted(steps, "step"), step_s,
        )  # fmt: skip

    def round(self, number: int, report: RoundReport, up: Mapping[int, int], down: Mapping[int, int]) -> None:
        """Report the end of a round: one line, one object in metrics.jsonl, one point in TensorBoard.

        If the steps ran in an earlier process, their metrics are null.
        """
        predictions, validation = report.predictions, report.validation
        if not report.steps and predictions is None and validation is None:
            return
        assert self._writer is not None
        self._require_folder()

        bytes_up, bytes_down = sum(up.values()) - self._bytes[0], sum(down.values()) - self._bytes[1]
        self._bytes = (sum(up.values()), sum(down.values()))
        self._evaluation_s = max(self._evaluation_s, report.seconds - report.train_s)
        self._scores, validated = (scores(given) if given else None for given in (predictions, validation))
        metrics = measured(
            report, self._round_of(report.step), up, down, (bytes_up, bytes_down), self._what
        ) | recorded(self._scores)
        if validation and validated:
            metrics |= {"valid_accuracy": validation.accuracy, "valid_loss": validation.loss}
            metrics |= recorded(validated, "valid_")
        # In this order: a round that has metrics is not evaluated again.
        if predictions:
            self._run.write_predictions(predictions)
        self._run.append_metrics(metrics)
        self._draw_round(metrics, report, self._scores or validated)
        self.tracking.metrics(metrics["step"], metrics)
        self._set(accuracy=predictions.accuracy if predictions else self._status.accuracy, round=metrics["round"])
        self._say_round(metrics, report, bytes_up, bytes_down)

    def _draw_round(self, metrics: Mapping[str, Any], report: RoundReport, shown: Scores | None) -> None:
        """Write a round to TensorBoard; `shown` are the scores of its evaluation, if there was one."""
        assert self._writer is not None
        for name in (
            "loss", "lower_loss", "upper_loss", "accuracy", *NAMES, "images_per_s", "bytes_up", "bytes_down",
            "valid_loss", "valid_accuracy", *(f"valid_{name}" for name in NAMES),
        ):  # fmt: skip
            value = metrics.get(name)
            if isinstance(value, int | float):
                self._writer.add(f"round/{name}", value, report.step)
        if shown:
            draw(self._writer, shown, report.step, self._class_names)
        for name in ("upper_s", "lower_s", "wire_s") if report.steps else ():
            self._writer.add(f"time/{name}", metrics[name], report.step)
        self._writer.flush()

    def _say_round(self, metrics: Mapping[str, Any], report: RoundReport, bytes_up: int, bytes_down: int) -> None:
        accuracy = f", test accuracy {report.predictions.accuracy:.2%}" if report.predictions else ""
        if validation := report.validation:
            accuracy = f", validation accuracy {validation.accuracy:.2%}, loss {validation.loss:.4f}"
        absent = f" without Upper {', '.join(map(str, report.absent))}" if report.absent else ""
        trained = accuracy.removeprefix(", ")
        if report.steps:
            trained = f"loss {metrics['loss']:.4f}{accuracy}, {metrics['images_per_s']:.0f} images/s"
        log.info(
            "%sround %d/%d done%s: %s, %s up, %s down",
            self._prefix, metrics["round"], self._status.rounds, absent, trained,
            decimal(bytes_up), decimal(bytes_down),
        )  # fmt: skip

    def tested(self, step: int, predictions: Predictions, absent: Sequence[int] = ()) -> None:
        """Report the run through the test split with the weights of a step that were kept, as `round` does."""
        assert self._writer is not None
        report = RoundReport(step=step, predictions=predictions, absent=tuple(absent))
        self._scores = scores(predictions)
        metrics = measured(report, self._round_of(step), {}, {}, what=self._what) | recorded(self._scores)
        self._run.write_predictions(predictions)
        self._run.append_metrics(metrics)
        for name in ("accuracy", *NAMES):
            if metrics[name] is not None:
                self._writer.add(f"test/{name}", metrics[name], step)
        draw(self._writer, self._scores, step, self._class_names)
        told = {name: metrics[name] for name in ("accuracy", "test_loss", *NAMES)}
        self.tracking.metrics(step, told)
        self._set(accuracy=predictions.accuracy)
        log.info("test accuracy of the weights kept, of step %d: %.2f%%", step, 100 * predictions.accuracy)

    def averaged(self, metrics: Mapping[str, Any], predictions: Predictions) -> None:
        """Report the end of a round of federated averaging, after `plan`; `metrics` is its object in metrics.jsonl."""
        assert self._writer is not None
        self._run.write_predictions(predictions)
        self._run.append_metrics(metrics)
        for name in ("loss", "accuracy", "images_per_s", "bytes_up", "bytes_down"):
            self._writer.add(f"round/{name}", metrics[name], metrics["round"])
        self._writer.flush()
        number, rounds = metrics["round"], self._status.rounds
        eta_s = (rounds - number) * (time.monotonic() - self._began) / number
        progress = {name: metrics[name] for name in ("round", "step", "loss", "accuracy", "images_per_s")}
        self._set(state="training", message="", eta_s=eta_s, **progress)
        log.info(
            "round %d/%d done: loss %.4f, test accuracy %.2f%%, %.0f images/s, %s up, %s down, %s left",
            number, rounds, metrics["loss"], 100 * predictions.accuracy, metrics["images_per_s"],
            decimal(metrics["bytes_up"]), decimal(metrics["bytes_down"]), duration(eta_s),
        )  # fmt: skip

    def predicted(self, done: int, total: int) -> None:
        """Report progress of a prediction."""
        now = time.monotonic()
        rate = done / max(1e-9, now - self._began)
        if now - self._written >= _STATUS_EVERY_S or done == total:
            self._written = now
            self._set(images=done, total_images=total, images_per_s=rate, eta_s=(total - done) / rate)
        if self._every_s > 0 and (now - self._logged >= self._every_s or done == total):
            self._logged = now
            log.info("%d of %d images, %.0f images/s, %s left", done, total, rate, duration((total - done) / rate))

    def note_accuracy(self, accuracy: float) -> None:
        """Record the accuracy of a prediction."""
        self._set(accuracy=accuracy)

    def end(self, state: str, message: str) -> None:
        """Record and log the end of the run."""
        writer, self._writer = self._writer, None
        try:
            with contextlib.ExitStack() as last:
                # In this order, so that a reader of the log can check that its last line is the status's message.
                left = 0.0 if state == "completed" else None
                last.callback(self._set, state=state, message=printable(message), eta_s=left)
                if writer is not None:
                    writer.close()
        finally:
            numbers = {"step": self._status.step, "accuracy": self._status.accuracy, "loss": self._status.loss}
            self.tracking.end(state, numbers | recorded(self._scores))
            (log.error if state == "failed" else log.info)("%s", message)

    def fail(self, error: BaseException) -> None:
        """Report why the run ended early, and what to do; the reason is logged even if the disk refuses the status."""
        try:
            self._fail(superlink_lost(error) or error)
        except (OSError, RunError) as unwritten:
            log.error("%s", unwritten)

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, SystemExit | KeyboardInterrupt):  # Flower's handler of signals ends the process so
            error = RunError("a signal, or Flower, has ended the server's process")
        if not isinstance(error, PslError):
            self.end("failed", f"error: {type(error).__name__}: {error}; the traceback follows in Flower's log")
            return
        stopped = isinstance(error, TrainingStopped | PredictionStopped)
        again = f"; continue with: {self.again}" if self.again else ""
        self.end("stopped" if stopped else "failed", f"{'' if stopped else 'error: '}{error}{again}")

    def final_accuracy(self) -> str:
        """Return the last test accuracy for a sentence, or nothing."""
        accuracy = self._status.accuracy
        return f", test accuracy {accuracy:.2%}" if accuracy is not None else ""

    def chance_note(self) -> str:
        """Return a note on a last test result that is no better than chance; empty if it is better."""
        return self._scores.note(self._class_names) if self._scores else ""

    def _training(self, report: StepReport) -> dict[str, object]:
        seconds = sum(step.seconds for step in self._recent)
        rate = sum(step.num_samples for step in self._recent) / max(1e-9, seconds)
        status = self._status
        left = status.total_steps - report.step
        step_s = fmean([step.seconds for step in self._recent])
        rounds_left = status.rounds - self._round_of(report.step) + 1
        return {
            "state": "training",
            "message": self._what,
            "round": self._round_of(report.step),
            "step": report.step,
            "loss": fmean([step.loss.full for step in self._recent]),
            "images_per_s": rate,
            "eta_s": left * step_s + rounds_left * self._evaluation_s,
        }

    def _line(self) -> str:
        status = self._status
        accuracy = f", test accuracy {status.accuracy:.2%}" if status.accuracy is not None else ""
        return (
            f"{self._prefix}round {status.round}/{status.rounds}, step {status.step}/{status.total_steps}, "
            f"loss {status.loss or 0:.4f}{accuracy}, {status.images_per_s or 0:.0f} images/s, "
            f"{duration(status.eta_s or 0)} left"
        )

    @property
    def _prefix(self) -> str:
        return f"{self._what}: " if self._what else ""

    def _round_of(self, step: int) -> int:
        return -(-step // self._steps_per_round)

    def _set(self, **changes: object) -> None:
        self._require_folder()
        self._change(**changes)
        self._run.write_status(self._status)

    def _require_folder(self) -> None:
        """Raise RunError if the run's folder is gone, since later results would be lost."""
        if _identity(self._run.path) != self._place:
            raise RunError(
                f"{self._run.path}: the folder of this run was deleted, moved or replaced while it was running; "
                "start a new run, or put the folder back and resume the run"
            )

    def _change(self, **changes: object) -> None:
        self._status = msgspec.structs.replace(self._status, **changes)


def _parties(hosted: Sequence[int]) -> str:
    """Return the Uppers that a node hosts, as text."""
    uppers = [str(m) for m in hosted if m != ADAPTATION]
    return f"Upper {', '.join(uppers)}" if uppers else "the Adaptation Net"


def _identity(folder: Path) -> tuple[int, int] | None:
    """Return a folder's identity on disk; None if it is not there."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
