"""The ServerApp: makes the stores if they are missing, trains with the patch-split strategy, collects the model."""

from __future__ import annotations

import logging
import math
import time

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from psl_flower.config import RunConfig
from psl_flower.engine.build import (
    encode_settings,
    make_averaging,
    make_lower_engine,
    make_task,
    smashed_shapes,
    steps_per_round,
)
from psl_flower.engine.exchange import WireFormat
from psl_flower.engine.lower import LowerEngine
from psl_flower.engine.rounds import RoundDriver
from psl_flower.errors import ConfigError, NodeLost, OtherDataset, PeerLost, PositionMissing, RunError
from psl_flower.inference.trained_model import save_assembled
from psl_flower.lightening import beginning
from psl_flower.runs import predictions
from psl_flower.runs.folder import RunFolder
from psl_flower.runs.resuming import continue_or_create
from psl_flower.stores.prepare import prepare_stores
from psl_flower.stores.store_set import StoreSet
from psl_flower.system.devices import choose_device
from psl_flower.system.machine import forbid_core_dumps, keep_freed_memory, usable_cores
from psl_flower.text import duration
from psl_flower.wire.credentials import endpoint_identity
from psl_flower.wire.node_messages import NodeTask
from psl_flower.wire.tls import Identity, is_loopback, is_wildcard
from server.exposure import exposure
from server.lightening import lighten
from server.predicting import predict
from server.reporting import Reporter
from server.restoring import restore
from strategies import PatchSplit
from strategies.link import TransportOptions

log = logging.getLogger("psl_flower")

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, predict, lighten or restore, as the run's configuration says."""
    keep_freed_memory()
    forbid_core_dumps()  # the Lower's key opens the labels
    given = RunConfig.from_mapping(context.run_config)
    again: str | None = ""
    if given.run.predict:
        config, run, folder = predictions.begin(given)
        again = None
    elif given.run.lighten:
        config, run, light = beginning.begin(given)
        folder, again = RunFolder(light.path), "the same command"
        folder.forget_stop()
    else:
        config, run = continue_or_create(given)
        folder = run
    reporter = Reporter(folder, run_id=str(context.run_id), every_s=config.run.progress_every_s, again=again)
    try:
        _run(grid, config, run, folder, reporter)
    except BaseException as error:
        reporter.fail(error)
        raise


def _run(grid: Grid, config: RunConfig, run: RunFolder, folder: RunFolder, reporter: Reporter) -> None:
    """Do what the settings ask for with a run; what a prediction or a lightening brings goes to `folder`."""
    kept = "predictions are to be" if config.run.predict else "settings, metrics and checkpoints are"
    kept = "what is tried to lighten it is" if config.run.lighten else kept
    reporter.say("preparing", f"run {run.name}: {kept} in {folder.path}")
    if warning := exposure(grid, config):
        reporter.say("preparing", f"warning: {warning}")
    torch.set_num_threads(config.machine.lower_threads or usable_cores())
    device = choose_device(config.machine.device)
    if config.wire.transport != "flower" and not config.run.restore:
        _identity(config)  # what is wrong with certificates is said now, not when the nodes have started
    stores = _stores(config, run, reporter)
    node_task = _node_task(config, run, stores)
    if config.run.predict:
        predict(grid, config, run, folder, stores, node_task, _transport_options(config), reporter)
        return
    if config.run.lighten:
        lighten(grid, config, run, stores, node_task, _transport_options(config), reporter)
        return
    run.write_description(stores.description)
    if config.run.restore:
        restore(grid, config, run, stores, node_task, reporter)
        return
    task = make_task(config, stores.description, stores.labels)
    lower = make_lower_engine(config, stores.description, device)
    per_round, total_steps = steps_per_round(config, task.order), task.schedule.total_steps
    done, unfinished = _resume(run, lower, per_round, total_steps)
    reporter.plan(rounds=config.training.rounds, total_steps=total_steps, steps_per_round=per_round, done=done)
    driver = RoundDriver(
        lower,
        task,
        smashed_shapes(config, stores.description),
        run.checkpoints,
        averaging=make_averaging(config, stores.description),
        checkpoint_every=config.run.checkpoint_every,
        on_step=reporter.step,
        stop_requested=run.stop_requested,
    )
    strategy = PatchSplit(
        driver,
        node_task,
        wire=WireFormat(
            activations=config.wire.wire_activations, gradients=config.wire.wire_gradients, dtype=lower.dtype
        ),
        steps_per_round=per_round,
        total_steps=total_steps,
        options=_transport_options(config),
        evaluate_every=config.training.evaluate_every,
        unfinished=unfinished,
        on_placed=lambda placement: reporter.placed(placement, _about(stores, config)),
        on_round=reporter.round,
    )
    began = time.monotonic()
    reporter.say("starting", "starting the nodes")
    try:
        rounds_done = math.ceil(done / per_round) if done == total_steps else done // per_round
        rounds_left = math.ceil(total_steps / per_round) - rounds_done + unfinished
        arrays = ArrayRecord(lower.lower.state_dict())
        strategy.start(grid, initial_arrays=arrays, num_rounds=rounds_left)
        model = _collected(config, run, strategy, grid, lower, reporter)
    finally:
        strategy.close()
    reporter.end(
        "completed",
        f"run {run.name} completed in {duration(time.monotonic() - began)}{reporter.final_accuracy()}; {model}; "
        f"metrics in {run.path / 'metrics.jsonl'}",
    )


def _node_task(config: RunConfig, run: RunFolder, stores: StoreSet) -> NodeTask:
    return NodeTask(
        run=run.identity,
        parties=(),
        settings=encode_settings(config, stores.description),
        activations=config.wire.wire_activations,
        gradients=config.wire.wire_gradients,
        timeout_s=config.wire.step_timeout_s,
        stores=str(stores.folder),
        keys=str(stores.keys or ""),
        owner=stores.owner,
        state=str(run.nodes),
        threads=config.machine.upper_threads,
        epoch=stores.epoch,
    )


def _stores(config: RunConfig, run: RunFolder, reporter: Reporter) -> StoreSet:
    """Return the patch stores of the dataset, made first if this is the first run that needs them."""
    began = run.read_description() if run.has_description else None
    # A resumed run goes on with the labels that it began with, or it would end with other weights.
    version = began.labels_version if began is not None else None
    stores = prepare_stores(config, reporter.ingesting, labels_version=version)
    if began is not None and began.source != stores.description.source:
        raise OtherDataset(f"{config.data.dataset}: has changed since run {run.name} began; start a new run")
    verb, kind = "made" if stores.created else "found", "sealed" if stores.sealed else "plain"
    count, num_uppers = stores.description.num_samples, stores.description.num_uppers
    reporter.say("preparing", f"{verb} {num_uppers} {kind} patch stores of {count} images: {stores.folder}")
    for note in (stores.keys_note, stores.grid_reason, stores.note):
        if note:
            reporter.say("preparing", note)
    return stores


def _resume(run: RunFolder, lower: LowerEngine, per_round: int, total_steps: int) -> tuple[int, bool]:
    """Go to the committed checkpoint, if the run has one.

    Return the steps applied, and whether they end a round that nothing has been told of.
    """
    steps = run.checkpoints.steps()
    if steps:
        lower.go_to(steps[-1], run.checkpoints)
    if lower.step >= total_steps and run.has_model:
        raise RunError(f"run {run.name} is complete: all {total_steps} steps are done; start a new run")
    run.drop_metrics_after(lower.step)
    ends_round = lower.step > 0 and (lower.step % per_round == 0 or lower.step == total_steps)
    return lower.step, ends_round and lower.step not in [metrics["step"] for metrics in run.read_metrics()]


def _collected(
    config: RunConfig, run: RunFolder, strategy: PatchSplit, grid: Grid, lower: LowerEngine, reporter: Reporter
) -> str:
    """Collect the model, if that is asked for and possible; say what became of it."""
    if not config.run.collect_model:
        return "no model collected"
    reporter.say("collecting", "collecting the Upper models from the nodes")
    try:
        uppers = strategy.collect(grid)
    except (PeerLost, NodeLost, PositionMissing) as error:
        if config.wire.on_missing_node != "continue":
            raise
        return f"no model collected: {error}; when all nodes are there again: {reporter.again}"
    state = {f"uppers.{m}.{name}": value for m, weights in uppers.items() for name, value in weights.items()}
    state |= {f"lower.{name}": value.cpu() for name, value in lower.lower.state_dict().items()}
    save_assembled(run.model, state)
    return f"model in {run.model}; try: psl evaluate --run {run.name}"


def _transport_options(config: RunConfig) -> TransportOptions:
    return TransportOptions(
        transport=config.wire.transport,
        host=config.wire.exchange_host,
        port=config.wire.exchange_port,
        advertise=config.wire.exchange_advertise,
        identity=lambda: _identity(config),
        allow_plaintext=config.wire.exchange_plaintext_on_untrusted_network,
        node_timeout_s=config.wire.node_timeout_s,
        step_timeout_s=config.wire.step_timeout_s,
        on_missing_node=config.wire.on_missing_node,
    )


def _identity(config: RunConfig) -> Identity | None:
    """Return what the exchange endpoint proves itself with, as its files are now; None for plaintext.

    Raises
    ------
    ConfigError
        If one of the operator's files cannot be used, or nodes cannot be told where to connect.
    """
    advertised = config.wire.exchange_advertise or config.wire.exchange_host
    if is_wildcard(advertised):
        raise ConfigError(f"exchange-advertise: {advertised} is every address; set the one that nodes connect to")
    files = (config.wire.exchange_cert, config.wire.exchange_key, config.wire.exchange_client_ca)
    near = is_loopback(config.wire.exchange_host) and is_loopback(advertised)
    if config.wire.exchange_plaintext_on_untrusted_network or (near and not any(files)):
        return None
    cert, key, client_ca = files
    return endpoint_identity(advertised, cert=cert, key=key, client_ca=client_ca)


def _about(stores: StoreSet, config: RunConfig) -> str:
    description, grid = stores.description, stores.description.grid()
    train, test = len(description.samples_of("train")), len(description.samples_of("test"))
    (height, width), (h, w) = description.image_size, grid.patch_size
    return (
        f"{description.dataset}: {train} training and {test} test images of {height}x{width}, "
        f"{description.num_classes} classes; {grid.rows}x{grid.cols} patches of {h}x{w}, "
        f"{config.network.backbone} cut after {config.network.cut}"
    )
