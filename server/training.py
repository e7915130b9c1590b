"""A run that trains: with the patch-split strategy, from its last checkpoint if it has one; then collects the model."""

from __future__ import annotations

import math
import time

from flwr.app import ArrayRecord

from psl_flower.engine.lower import LowerEngine
from psl_flower.engine.task import Task
from psl_flower.errors import NodeLost, PeerLost, PositionMissing
from psl_flower.inference.trained_model import save_trained_model
from psl_flower.kinds import Train
from psl_flower.runs.history import last_accuracy
from psl_flower.runs.housekeeping import keep_newest
from psl_flower.runs.predictions import write_table
from psl_flower.text import counted, duration
from server.run import Parties, ServerRun
from strategies import PatchSplit


def train(run: ServerRun[Train]) -> None:
    """Train to the end, or on from the last checkpoint.

    Raises
    ------
    TrainingStopped
        If the user asked to stop; resumed, it continues.
    PslError
        If a setting, a node or the training itself does not allow it to continue.
    """
    blueprint, reporter = run.blueprint, run.reporter
    run.source.write_description(run.stores.description)
    run.source.write_account(run.stores.account)
    task, lower = blueprint.task(run.stores.labels), blueprint.lower_engine(run.device)
    per_round, total_steps = task.steps_per_round, task.schedule.total_steps
    unfinished = _go_to_checkpoint(run, lower, task)
    done = lower.step
    if (accuracy := last_accuracy(run.source)) is not None:
        reporter.note_accuracy(accuracy)
    reporter.plan(rounds=run.config.training.rounds, total_steps=total_steps, steps_per_round=per_round, done=done)
    strategy = run.strategy(
        Parties(
            lower=lower,
            shapes=blueprint.smashed_shapes(),
            checkpoints=run.source.checkpoints,
            node_task=run.node_task(),
            averaging=blueprint.averaging(),
        ),
        task,
        evaluate_every=run.config.training.evaluate_every,
        unfinished=unfinished,
        on_placed=lambda placement: reporter.placed(placement, _about(run)),
    )
    began = time.monotonic()
    reporter.say("starting", "starting the nodes")
    try:
        rounds_done = math.ceil(done / per_round) if done == total_steps else done // per_round
        rounds_left = math.ceil(total_steps / per_round) - rounds_done + unfinished
        strategy.start(run.grid, initial_arrays=ArrayRecord(lower.lower.state_dict()), num_rounds=rounds_left)
        model = _collected(run, strategy, lower)
    finally:
        strategy.close()
    if (run.source.path / "predictions.npz").exists():
        write_table(run.source, run.stores.description)
    keep_newest(run.source, run.config.output.keep_checkpoints)
    reporter.end(
        "completed",
        f"run {run.source.name} completed in {duration(time.monotonic() - began)}{reporter.final_accuracy()}; {model}; "
        f"metrics in {run.source.path / 'metrics.jsonl'}",
    )


def _go_to_checkpoint(run: ServerRun[Train], lower: LowerEngine, task: Task) -> bool:
    """Go to the committed checkpoint, if there is one; return True if it ends a round not yet reported."""
    folder, total_steps = run.source, task.schedule.total_steps
    steps = folder.checkpoints.steps()
    if steps:
        lower.go_to(steps[-1], folder.checkpoints)
    folder.drop_metrics_after(lower.step)
    ends_round = lower.step > 0 and (lower.step % task.steps_per_round == 0 or lower.step == total_steps)
    return ends_round and lower.step not in [metrics["step"] for metrics in folder.read_metrics()]


def _collected(run: ServerRun[Train], strategy: PatchSplit, lower: LowerEngine) -> str:
    """Collect the model if it is wanted and possible; return the outcome as text."""
    if not run.config.output.collect_model:
        return f"no model collected; try: psl evaluate {run.source.name}"
    run.reporter.say("collecting", "collecting the Upper models from the nodes")
    try:
        uppers = strategy.collect(run.grid)
    except (PeerLost, NodeLost, PositionMissing) as error:
        if run.config.wire.on_missing_node != "continue":
            raise
        return f"no model collected: {error}; once all nodes are back: {run.reporter.again}"
    state = {f"uppers.{m}.{name}": value for m, weights in uppers.items() for name, value in weights.items()}
    state |= {f"lower.{name}": value.cpu() for name, value in lower.lower.state_dict().items()}
    save_trained_model(run.source.model, state)
    return f"model in {run.source.model}; try: psl evaluate {run.source.name}"


def _about(run: ServerRun[Train]) -> str:
    description, network = run.stores.description, run.config.network
    grid = description.grid()
    train, test = len(description.samples_of("train")), len(description.samples_of("test"))
    (height, width), (h, w) = description.image_size, grid.patch_size
    return (
        f"{description.dataset}: {train} training and {counted(test, 'test image')} of {height}x{width}, "
        f"{counted(description.num_classes, 'class')}; {grid.rows}x{grid.cols} patches of {h}x{w}, "
        f"{network.name} cut after {network.cut}"
    )
