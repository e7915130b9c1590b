"""A run that predicts instead of training: with a trained run's model where it lies, on patches where they lie.

Every node loads the Upper weights that it kept at the run's last checkpoint, the Lower those of the run's folder.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import torch
from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from psl_flower.config import RunConfig
from psl_flower.engine.build import encode_settings, make_lower_engine, make_task, optimizer, smashed_shapes
from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.engine.exchange import WireFormat
from psl_flower.engine.lower import LowerEngine
from psl_flower.engine.rounds import Predictions, RoundDriver, RoundReport, Task
from psl_flower.errors import PredictionStopped
from psl_flower.inference.onnx_files import OnnxModule
from psl_flower.lightening.folder import LightModel, light_model
from psl_flower.lightening.on_node import check_runtime
from psl_flower.patches.description import StoreSetDescription
from psl_flower.runs import predictions
from psl_flower.runs.folder import RunFolder
from psl_flower.stores.store_set import StoreSet
from psl_flower.system.devices import choose_device
from psl_flower.text import duration
from psl_flower.wire.node_messages import NodeTask
from server.reporting import Reporter
from strategies import PatchSplit
from strategies.link import TransportOptions
from strategies.nodes import Placement


def predict(
    grid: Grid,
    config: RunConfig,
    run: RunFolder,
    folder: RunFolder,
    stores: StoreSet,
    task: NodeTask,
    options: TransportOptions,
    reporter: Reporter,
) -> None:
    """Predict what the settings ask for; what comes out goes to `folder`, see `psl_flower.runs.predictions`.

    Parameters
    ----------
    grid : Grid
        Flower's.
    config : RunConfig
        The trained run's, with what is asked.
    run, folder : RunFolder
        The trained run, and where predictions go.
    stores : StoreSet
        The run's dataset, as it is now.
    task : NodeTask
        The trained run's.
    options : TransportOptions
        How the parties reach each other.
    reporter : Reporter
        Tells the user.

    Raises
    ------
    OtherDataset
        If the nodes' weights belong to other stores.
    PredictionStopped
        If the user asked to stop.
    PslError
        If a node is missing, keeps no weights of this run, or fails.
    """
    description = stores.description
    predictions.check(config, run, description)
    samples_N, splits = predictions.samples_asked(config, description)
    options = dataclasses.replace(options, without=config.run.uppers_left_out())
    step = max(run.checkpoints.steps())
    if config.run.predict_light:
        light = light_model(run, description.num_uppers)
        part = shipped_part(config, description, task, light, Checkpoints(folder.path / "checkpoints"))
    else:
        part = _own_part(config, run, description, task, step)
    began = time.monotonic()
    reporter.say("starting", "starting the nodes")
    about = _about(run, config, step, len(samples_N))
    predicted, placement = run_through(
        grid,
        part,
        dataclasses.replace(make_task(config, description, stores.labels), test=samples_N),
        options,
        on_placed=lambda placement: reporter.placed(placement, about, "predicting"),
        on_evaluated=_unless_stopped(folder, reporter.predicted),
    )
    absent = [predictions.Absent(upper=m, positions=description.positions_of(m)) for m in placement.absent]
    result = predictions.Result.of(run, step, config, predicted, absent)
    folder.write_predictions(predicted, splits)
    predictions.save_result(folder, result)
    reporter.note_accuracy(result.accuracy)
    reporter.end("completed", f"{_summary(result, predicted)} in {duration(time.monotonic() - began)}: {folder.path}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What predicts.

    Attributes
    ----------
    lower : LowerEngine
        The Lower, at the step of the Uppers' states.
    shapes : dict
        (K, h, w, C) of each Upper's smashed data.
    checkpoints : Checkpoints
        The Lower's.
    task : NodeTask
        For the nodes.
    wire : WireFormat
        Codecs and dtype.
    """

    lower: LowerEngine
    shapes: dict[int, tuple[int, int, int, int]]
    checkpoints: Checkpoints
    task: NodeTask
    wire: WireFormat


def run_through(
    grid: Grid,
    part: Part,
    task: Task,
    options: TransportOptions,
    *,
    on_placed: Callable[[Placement], None] = lambda placement: None,
    on_evaluated: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Predictions, Placement]:
    """Return the predictions of the task's test samples, and who took part.

    Raises
    ------
    PslError
        If a node is missing, keeps no such weights, or fails.
    """
    lower = part.lower
    driver = RoundDriver(lower, task, part.shapes, part.checkpoints, on_evaluated=on_evaluated)
    reports: list[RoundReport] = []
    strategy = PatchSplit(
        driver,
        part.task,
        wire=part.wire,
        # A round of no step, at the end of which the test split is run through: that of this prediction.
        steps_per_round=1,
        total_steps=lower.step,
        options=options,
        on_placed=on_placed,
        on_round=lambda number, report, up, down: reports.append(report),
    )
    try:
        strategy.start(grid, initial_arrays=ArrayRecord(lower.lower.state_dict()), num_rounds=1)
    finally:
        strategy.close()
    predictions = reports[-1].predictions
    assert predictions is not None
    return predictions, strategy.placement


def shipped_part(
    config: RunConfig, description: StoreSetDescription, task: NodeTask, light: LightModel, checkpoints: Checkpoints
) -> Part:
    """Return the part of light Uppers, in place on the nodes, and a light Lower, which onnxruntime runs.

    Parameters
    ----------
    config, description : RunConfig, StoreSetDescription
        The run's.
    task : NodeTask
        The run's.
    light : LightModel
        The files.
    checkpoints : Checkpoints
        For a state without weights, from which a recovery goes on.

    Raises
    ------
    LighteningError, RunError
        If the Lower's file cannot be run.
    ConfigError
        If onnxruntime is not installed.
    """
    check_runtime()
    model = OnnxModule(light.lower, torch.get_num_threads())
    C, h, w = model.input_shape[-3:]
    settings = encode_settings(config, description, light.shipped)
    engine = LowerEngine(
        model, None, description.assignment, alpha=0.0, make_optimizer=lambda parameters: optimizer(config, parameters)
    )
    return Part(
        lower=engine,
        shapes={m: (len(description.positions_of(m)), h, w, C) for m in range(description.num_uppers)},
        checkpoints=checkpoints,
        task=msgspec.structs.replace(task, settings=settings, part=light.part),
        wire=WireFormat(activations=config.wire.wire_activations, gradients=config.wire.wire_gradients),
    )


def _own_part(config: RunConfig, run: RunFolder, description: StoreSetDescription, task: NodeTask, step: int) -> Part:
    # The Adaptation Net has no part in predictions, and nothing is averaged.
    own = config.replace(alpha=0.0, adaptation_server=False, average_every=0)
    lower = make_lower_engine(own, description, choose_device(config.machine.device))
    lower.go_to(step, run.checkpoints)
    return Part(
        lower=lower,
        shapes=smashed_shapes(config, description),
        checkpoints=run.checkpoints,
        task=msgspec.structs.replace(task, settings=encode_settings(own, description)),
        wire=WireFormat(
            activations=config.wire.wire_activations, gradients=config.wire.wire_gradients, dtype=lower.dtype
        ),
    )


def _unless_stopped(folder: RunFolder, note: Callable[[int, int], None]) -> Callable[[int, int], None]:
    def on_evaluated(done: int, total: int) -> None:
        note(done, total)
        if done < total and folder.stop_requested():
            raise PredictionStopped(f"stopped after {done} of {total} images, as asked; no predictions were written")

    return on_evaluated


def _about(run: RunFolder, config: RunConfig, step: int, images: int) -> str:
    light = "its light Uppers" if config.run.predict_light else "its weights"
    return f"predicting {images} images with run {run.name} after {step} steps, {light} and patches where they are"


def _summary(result: predictions.Result, predictions: Predictions) -> str:
    without = "".join(
        f", without Upper {part.upper} (position {', '.join(map(str, part.positions))})" for part in result.absent
    )
    what = f"{result.images} {result.split} images" if result.split else f"{result.images} images"
    wrong = int((predictions.label != predictions.predicted).sum())
    return f"predicted {what}{without}: accuracy {result.accuracy:.2%}, {wrong} wrong, loss {result.loss:.4f}"
