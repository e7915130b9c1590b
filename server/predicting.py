"""A run that predicts with a trained run's model; weights and patches stay on their nodes.

Every node loads the Upper weights that it kept at the run's last checkpoint, the Lower those of the run's folder.
"""

from __future__ import annotations

import dataclasses
import time
from functools import partial

import torch

from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.engine.rounds import Predictions
from psl_flower.errors import PredictionStopped
from psl_flower.inference.onnx_files import OnnxModule
from psl_flower.kinds import Kind, Predict
from psl_flower.lightening.folder import LightModel, light_model
from psl_flower.lightening.on_node import check_runtime
from psl_flower.runs.predictions import Absent, Result, save_result, write_table
from psl_flower.text import counted, duration
from server.run import Parties, ServerRun


def predict(run: ServerRun[Predict]) -> None:
    """Predict the images asked for; the results go to the run's folder, see `psl_flower.runs.predictions`.

    Raises
    ------
    PredictionStopped
        If the user asked to stop.
    PslError
        If a node is missing, keeps no weights of this run, or fails.
    """
    kind, description, reporter = run.kind, run.stores.description, run.reporter
    samples_N, splits = kind.samples(description)
    step = max(run.source.checkpoints.steps())
    if kind.predict_light:
        light = light_model(run.source, description.num_uppers)
        parties = light_parties(run, light, Checkpoints(run.folder.path / "checkpoints"))
    else:
        parties = _own_parties(run, step)
    began = time.monotonic()
    reporter.say("starting", "starting the nodes")
    weights = "its light Uppers" if kind.predict_light else "its weights"
    about = (
        f"predicting {counted(len(samples_N), 'image')} with run {run.source.name} after {counted(step, 'step')}, "
        f"{weights} and patches where they are"
    )
    predicted, absent = run.predictions(
        parties,
        dataclasses.replace(run.blueprint.task(run.stores.labels), test=samples_N),
        on_placed=lambda placement: reporter.placed(placement, about, "predicting"),
        on_evaluated=partial(_predicted, run),
        without=kind.without,
    )
    result = Result(
        run=run.source.name,
        step=step,
        split=kind.split,
        images=len(predicted.sample),
        accuracy=predicted.accuracy,
        loss=predicted.loss,
        absent=tuple(Absent(upper=m, positions=description.positions_of(m)) for m in absent),
        light=kind.predict_light,
    )
    run.folder.write_predictions(predicted, splits)
    write_table(run.folder, description)
    save_result(run.folder, result)
    reporter.note_accuracy(result.accuracy)
    took = duration(time.monotonic() - began)
    reporter.end("completed", f"{_summary(result, predicted)} in {took}: {run.folder.path}")


def _predicted(run: ServerRun[Predict], done: int, total: int) -> None:
    """Report how many images are predicted; raises PredictionStopped if the user has asked to stop before the last."""
    run.reporter.predicted(done, total)
    if done < total and run.folder.stop_requested():
        raise PredictionStopped(
            f"stopped after {done} of {counted(total, 'image')}, as asked; no predictions were written"
        )


def light_parties(run: ServerRun[Kind], light: LightModel, checkpoints: Checkpoints) -> Parties:
    """Return light Uppers, in place on the nodes, and a light Lower, which onnxruntime runs.

    `checkpoints` are for a state without weights, from which a recovery continues. Raises ExportError or RunError if
    the Lower's file cannot be run, ConfigError if onnxruntime is not installed.
    """
    check_runtime()
    model, description = OnnxModule(light.lower, torch.get_num_threads()), run.stores.description
    C, h, w = model.input_shape[-3:]
    own = run.blueprint
    exact = dataclasses.replace(own, config=own.config.replace(autocast=False))
    return Parties(
        lower=exact.lower_engine(torch.device("cpu"), model),
        shapes={m: (len(description.positions_of(m)), h, w, C) for m in range(description.num_uppers)},
        checkpoints=checkpoints,
        node_task=run.node_task(dataclasses.replace(own, override=light.uppers), light.part),
    )


def _own_parties(run: ServerRun[Predict], step: int) -> Parties:
    """Return the Uppers and the Lower of the run's own network, as after this step."""
    lower = run.blueprint.lower_engine(run.device)
    lower.go_to(step, run.source.checkpoints)
    lower.reported = lower.reported[:0]  # those steps were reported by the run that trained
    return run.parties(lower)


def _summary(result: Result, predictions: Predictions) -> str:
    without = "".join(
        f", without Upper {part.upper} (position {', '.join(map(str, part.positions))})" for part in result.absent
    )
    what = counted(result.images, f"{result.split} image".lstrip())
    wrong = int((predictions.label != predictions.predicted).sum())
    return f"predicted {what}{without}: accuracy {result.accuracy:.2%}, {wrong} wrong, loss {result.loss:.4f}"
