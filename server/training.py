"""A run that trains with the patch-split strategy, from its last checkpoint if any, and then collects the model."""

from __future__ import annotations

import dataclasses
import logging
import time
from contextlib import suppress

from flwr.app import ArrayRecord

from psl_flower.engine.automatic_settings import planned
from psl_flower.engine.looks import looks_of
from psl_flower.engine.lower import LowerEngine
from psl_flower.engine.pretrained import FILE, load_upper, read_weights
from psl_flower.engine.round_ends import is_unreported, rounds_left
from psl_flower.engine.stopping import Monitor
from psl_flower.engine.task import Task
from psl_flower.errors import ConfigError, NodeLost, PeerLost, PositionMissing, RunError
from psl_flower.flower.placement import Placement
from psl_flower.inference.trained_model import save_trained_model
from psl_flower.kinds import Train
from psl_flower.runs.best_checkpoint import BestCheckpoint, load_best
from psl_flower.runs.folder import PREDICTIONS_FILE
from psl_flower.runs.history import last_accuracy
from psl_flower.runs.housekeeping import keep_newest
from psl_flower.runs.predictions import write_table
from psl_flower.runs.tracking import Tracking
from psl_flower.system.files import write_file
from psl_flower.text import counted, duration, expanded
from psl_flower.wire.questions import PlaceUppers
from server.run import ServerRun
from server.validation import EndedEarly, Validation
from strategies import PatchSplit
from strategies.asked_nodes import AskedNodes

log = logging.getLogger("psl_flower")


def train(run: ServerRun[Train]) -> None:
    """Train to the end, from the last checkpoint if there is one.

    Raises
    ------
    TrainingStopped
        If the user asked to stop; resumed, it continues.
    PslError
        If a setting, a node or the training itself does not allow it to continue.
    """
    blueprint, reporter = run.blueprint, run.reporter
    _describe(run)
    reporter.tracking = _tracking(run)
    task, lower = blueprint.task(run.stores.labels), blueprint.lower_engine(run.device)
    total_steps = task.total_steps
    unfinished = _go_to_checkpoint(run, lower, task)
    done = lower.step
    if (accuracy := last_accuracy(run.source)) is not None:
        reporter.note_accuracy(accuracy)
    reporter.plan(
        rounds=rounds_left(task, 0), total_steps=total_steps, steps_per_round=task.steps_per_round, done=done,
        class_names=run.stores.description.class_names,
    )  # fmt: skip
    looks = looks_of(blueprint, task, run.source.looks, run.source.identity)
    if run.config.network.upper_weights and done < total_steps and (looks is None or not looks.complete):
        _place_weights(run)
    parties = run.parties(lower, averaging=blueprint.averaging(), looks=looks)
    monitor = Monitor.of(run.config.training)
    validation = None if monitor is None else Validation(run, monitor, parties, task)
    strategy = run.strategy(
        parties,
        task,
        evaluate_every=run.config.training.evaluate_every,
        unfinished=unfinished,
        on_placed=lambda placement: _placed(run, placement),
        on_round=validation.on_round if validation else None,
    )
    began = time.monotonic()
    reporter.say("starting", "starting the nodes")
    try:
        num_rounds = rounds_left(task, done) + unfinished
        best = None
        with suppress(EndedEarly):
            if validation is not None:
                validation.follow(strategy)
                num_rounds = 0 if validation.over else num_rounds
            strategy.start(run.grid, initial_arrays=ArrayRecord(lower.lower.state_dict()), num_rounds=num_rounds)
        if validation is not None:
            best = validation.finish()
        model = _collected(run, strategy, lower)
    finally:
        strategy.close()
    _complete(run, time.monotonic() - began, best, model)


def _describe(run: ServerRun[Train]) -> None:
    """Write the run's description, account and settings; with numbers for those that the images decide."""
    run.source.write_description(run.stores.description)
    run.source.write_account(run.stores.account)
    # So that they are known without the dataset, and for another run.
    given = run.source.read_config()
    if (settled := planned(given, run.stores.description)) is not given:
        run.source.write_config(settled)


def _tracking(run: ServerRun[Train]) -> Tracking:
    """Return the sender to the experiment tracker, with numbers for the settings that the images decide."""
    output = run.config.output
    noted = run.source.read_config().replace(
        tracker=output.tracker, tracker_uri=output.tracker_uri, workspace=str(run.config.workspace_path())
    )
    return Tracking(noted, run.source)


def _complete(run: ServerRun[Train], seconds: float, best: BestCheckpoint | None, model: str) -> None:
    """Report the end of a run that has trained."""
    if (run.source.path / PREDICTIONS_FILE).exists():
        write_table(run.source, run.stores.description)
    note = run.reporter.chance_note()
    if note:
        log.warning("the test result is %s", note)
    keep_newest(run.source, run.config.output.keep_checkpoints)
    run.reporter.end(
        "completed",
        f"run {run.source.name} completed in {duration(seconds)}{_kept(best)}"
        f"{run.reporter.final_accuracy()}{', no better than chance' if note else ''}; {model}; "
        f"metrics in {run.source.path / 'metrics.jsonl'}",
    )


def _go_to_checkpoint(run: ServerRun[Train], lower: LowerEngine, task: Task) -> bool:
    """Go to the committed checkpoint, if any; return True if it ends a round not yet reported."""
    folder = run.source
    steps, best = folder.checkpoints.steps(), load_best(folder)
    if best is not None:
        lower.go_to(best.step, folder.checkpoints)
        return False
    if steps:
        lower.go_to(steps[-1], folder.checkpoints)
    folder.drop_metrics_after(lower.step)
    return is_unreported(task, lower.step, folder.read_metrics())


def _place_weights(run: ServerRun[Train]) -> None:
    """Put the file of weights that the Uppers begin with in place on all nodes, from the copy in the run's folder.

    Raises
    ------
    PslError
        If the file has changed or is of another network, or a node does not take it.
    """
    network, copy = run.config.network, run.source.path / FILE
    given = copy if copy.exists() else expanded(network.upper_weights, "upper-weights")
    content = read_weights(given, network.upper_weights_hash)
    for m in range(run.stores.description.num_uppers):
        load_upper(content, m, run.blueprint.upper(m), str(given))
    if given != copy:
        write_file(copy, content, RunError)
    run.reporter.say(
        "starting", f"the Uppers begin with {network.upper_weights_hash}; putting it in place on the nodes"
    )
    # To all nodes, even where a run may start without some: a node that joins later would have no weights.
    wire = dataclasses.replace(run.config.wire, on_missing_node="wait")
    nodes = AskedNodes(run.grid, run.node_task(), run.stores.description.assignment, wire)
    parts = dict.fromkeys(range(run.stores.description.num_uppers), content)
    nodes.ask(lambda task: PlaceUppers(task=task), parts)


def _collected(run: ServerRun[Train], strategy: PatchSplit, lower: LowerEngine) -> str:
    """Collect the model if it is wanted and possible; return the outcome as text."""
    if not run.config.output.collect_model:
        return f"no model collected; try: psl evaluate {run.source.name}"
    run.reporter.say("collecting", "collecting the Upper models from the nodes")
    try:
        uppers = strategy.collect(run.grid)
    except (PeerLost, NodeLost, PositionMissing) as error:
        # Once all looks are kept, a node may go for good.
        if run.config.wire.on_missing_node != "continue" and not run.config.training.looks:
            raise
        return f"no model collected: {error}; once all nodes are back: {run.reporter.again}"
    state = {f"uppers.{m}.{name}": value for m, weights in uppers.items() for name, value in weights.items()}
    state |= {f"lower.{name}": value.cpu() for name, value in lower.lower.state_dict().items()}
    save_trained_model(run.source.model, state)
    return f"model in {run.source.model}; try: psl evaluate {run.source.name}"


def _kept(best: BestCheckpoint | None) -> str:
    if best is None:
        return ""
    ended = f", training ended early, after step {best.trained}" if best.stopped_early else ""
    value = "" if best.value is None else f" (validation {best.monitor} {best.value:.4f})"
    return f"{ended}; weights of step {best.step} kept{value}"


def _placed(run: ServerRun[Train], placement: Placement) -> None:
    """Report the nodes that take part; raises ConfigError if one real node holds all patches without permission."""
    allowed = placement.simulated or run.config.patches.allow_whole_images
    if len(placement.hosts) == 1 and not allowed and not placement.absent:
        (name,) = (placement.names[node] for node in placement.hosts)
        raise ConfigError(
            f"{name} holds the patches of all positions, so it could put whole images together: give its stores to "
            "several nodes, or allow it with allow-whole-images=true"
        )
    grid = run.stores.description.grid()
    for node, uppers in placement.hosts.items():
        positions = [p for m in uppers for p in run.stores.description.positions_of(m)]
        if grid.margin and not allowed and grid.shown(positions).all():
            raise ConfigError(
                f"{placement.names[node]} holds patches that show all of an image with margin={grid.margin}: give its "
                "stores to several nodes, choose a smaller margin, or allow it with allow-whole-images=true"
            )
    run.reporter.placed(placement, _about(run))


def _about(run: ServerRun[Train]) -> str:
    description, network = run.stores.description, run.config.network
    grid = description.grid()
    train, test = len(description.samples_of("train")), len(description.samples_of("test"))
    (height, width), (h, w) = description.image_size, grid.patch_size
    margin = f" with a margin of {counted(grid.margin, 'pixel')}" if grid.margin else ""
    return (
        f"{description.dataset}: {train} training and {counted(test, 'test image')} of {height}x{width}, "
        f"{counted(description.num_classes, 'class')}; {grid.rows}x{grid.cols} patches of {h}x{w}{margin}, "
        f"{network.name} cut after {network.cut}"
    )
