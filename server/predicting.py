"""A run that predicts instead of training: with a trained run's model where it lies, on patches where they lie.

Every node loads the Upper weights that it kept at the run's last checkpoint, the Lower those of the run's folder.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable

from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from psl_flower import predicting
from psl_flower.config import RunConfig
from psl_flower.data.store_set import StoreSet
from psl_flower.devices import choose_device
from psl_flower.engine.build import make_lower_engine, make_task, smashed_shapes
from psl_flower.engine.exchange import WireFormat
from psl_flower.engine.rounds import Predictions, RoundDriver, RoundReport
from psl_flower.errors import PredictionStopped
from psl_flower.node_task import NodeTask
from psl_flower.runs import RunFolder
from server.reporting import Reporter, duration
from strategies import PatchSplit
from strategies.link import TransportOptions


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
    """Predict what the settings ask for; what comes out goes to `folder`, see `psl_flower.predicting`.

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
    manifest = stores.manifest
    predicting.check(config, run, manifest)
    samples_N, splits = predicting.samples_asked(config, manifest)
    options = dataclasses.replace(options, without=config.uppers_left_out())
    # The Adaptation Net has no part in predictions.
    own = config.replace(alpha=0.0, adaptation_server=False)
    lower = make_lower_engine(own, manifest, choose_device(config.device))
    lower.go_to(max(run.checkpoints.steps()), run.checkpoints)
    driver = RoundDriver(
        lower,
        dataclasses.replace(make_task(config, manifest, stores.labels), test=samples_N),
        smashed_shapes(config, manifest),
        run.checkpoints,
        on_evaluated=_unless_stopped(folder, reporter.predicted),
    )
    reports: list[RoundReport] = []
    strategy = PatchSplit(
        driver,
        task,
        wire=WireFormat(activations=config.wire_activations, gradients=config.wire_gradients, dtype=lower.dtype),
        # A round of no step, at the end of which the test split is run through: that of this prediction.
        steps_per_round=1,
        total_steps=lower.step,
        options=options,
        on_placed=lambda placement: reporter.placed(placement, _about(run, lower.step, len(samples_N)), "predicting"),
        on_round=lambda number, report, up, down: reports.append(report),
    )
    began = time.monotonic()
    reporter.say("starting", "starting the nodes")
    try:
        strategy.start(grid, initial_arrays=ArrayRecord(lower.lower.state_dict()), num_rounds=1, timeout=math.inf)
    finally:
        strategy.close()
    predictions = reports[-1].predictions
    assert predictions is not None
    absent = [predicting.Absent(upper=m, positions=manifest.positions_of(m)) for m in strategy.placement.absent]
    result = predicting.Result.of(run, lower.step, config, predictions, absent)
    folder.write_predictions(predictions, splits)
    predicting.save_result(folder, result)
    reporter.note_accuracy(result.accuracy)
    reporter.end("completed", f"{_summary(result, predictions)} in {duration(time.monotonic() - began)}: {folder.path}")


def _unless_stopped(folder: RunFolder, note: Callable[[int, int], None]) -> Callable[[int, int], None]:
    def on_evaluated(done: int, total: int) -> None:
        note(done, total)
        if done < total and folder.stop_requested():
            raise PredictionStopped(f"stopped after {done} of {total} images, as asked; no predictions were written")

    return on_evaluated


def _about(run: RunFolder, step: int, images: int) -> str:
    return f"predicting {images} images with run {run.name} after {step} steps, its weights and patches where they are"


def _summary(result: predicting.Result, predictions: Predictions) -> str:
    without = "".join(
        f", without Upper {part.upper} (position {', '.join(map(str, part.positions))})" for part in result.absent
    )
    what = f"{result.images} {result.split} images" if result.split else f"{result.images} images"
    wrong = int((predictions.label != predictions.predicted).sum())
    return f"predicted {what}{without}: accuracy {result.accuracy:.2%}, {wrong} wrong, loss {result.loss:.4f}"
