"""The ServerApp: starts a run, opens the patch stores, and calls the handler for the run's kind."""

from __future__ import annotations

import logging
import pkgutil
from collections.abc import Callable
from typing import Any

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from psl_flower.errors import OtherDataset
from psl_flower.flower.link import server_identity
from psl_flower.kinds import Kind, Work, kind_of
from psl_flower.runs.claim import claimed
from psl_flower.runs.tracking import check_tracker
from psl_flower.stores.prepare import prepare_stores
from psl_flower.stores.store_set import StoreSet
from psl_flower.system.devices import choose_device
from psl_flower.system.machine import forbid_core_dumps, keep_freed_memory, usable_cores
from psl_flower.text import counted, printable
from server.exposure import exposure
from server.reporting import Reporter
from server.run import ServerRun

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the kind of run that the configuration asks for; see `psl_flower.kinds`."""
    keep_freed_memory()
    forbid_core_dumps()  # the Lower's key opens the labels
    kind = kind_of(context.run_config)
    if (finished := kind.finished()) is not None:
        logging.getLogger("flwr").info("%s", printable(finished.message))
        return
    work = kind.begin()
    every_s = work.config.output.progress_every_s
    with claimed(work.folder):
        if work.folder.read_status() is not None:
            work.folder.forget_stop()  # an earlier attempt's
        reporter = Reporter(work.folder, run_id=str(context.run_id), every_s=every_s, again=kind.how_to_continue)
        try:
            handle: Callable[[ServerRun[Any]], None] = pkgutil.resolve_name(kind.handler)
            handle(_prepared(grid, kind, work, reporter))
        except BaseException as error:
            reporter.fail(error)
            raise
        finally:
            reporter.tracking.close()


def _prepared(grid: Grid, kind: Kind, work: Work, reporter: Reporter) -> ServerRun[Kind]:
    """Return the run with its stores; what this machine cannot do is refused before the nodes start."""
    config = work.config
    reporter.say("preparing", f"run {work.source.name}: files are in {work.folder.path}")
    if warning := exposure(grid, config):
        reporter.say("preparing", f"warning: {warning}")
    torch.set_num_threads(config.machine.lower_threads or usable_cores())
    choose_device(config.machine.device)
    check_tracker(config)
    if config.wire.transport != "flower":
        server_identity(config.wire)
    stores = _stores(work, reporter)
    checked = kind.check(work, stores.description)
    kind.accepted(work)
    for note in (*stores.account_lines, stores.keys_note, stores.grid_reason, stores.note, checked):
        if note:
            reporter.say("preparing", note)
    return ServerRun(
        config=config, source=work.source, folder=work.folder, grid=grid, kind=kind, stores=stores, reporter=reporter
    )


def _stores(work: Work, reporter: Reporter) -> StoreSet:
    """Return the patch stores of the dataset, made first if this is the first run that needs them."""
    began = work.source.read_description() if work.source.has_description else None
    # A resumed run keeps the labels that it began with: others would lead to other weights.
    version = began.labels_version if began is not None else None
    stores = prepare_stores(work.config, reporter.ingesting, labels_version=version)
    if began is not None and began.source != stores.description.source:
        raise OtherDataset(
            f"{work.config.data.dataset}: has changed since run {work.source.name} began; start a new run"
        )
    verb, kind = "made" if stores.created else "found", "sealed" if stores.sealed else "plain"
    count, num_uppers = stores.description.num_samples, stores.description.num_uppers
    reporter.say(
        "preparing",
        f"{verb} {counted(num_uppers, f'{kind} patch store')} of {counted(count, 'image')}: {stores.folder}",
    )
    return stores
