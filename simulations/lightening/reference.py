"""The reference: a separate run in the workspace, trained through Flower or, with the same weights, as one graph."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

from psl_flower.config import RunConfig
from psl_flower.engine.batches import batch_order
from psl_flower.engine.one_process import OneProcessTrainer
from psl_flower.errors import RunError
from psl_flower.inference.trained_model import save_trained_model
from psl_flower.launch.running import local_paths
from psl_flower.runs.folder import RunFolder, Status, open_run
from psl_flower.stores.prepare import prepare_stores
from psl_flower.stores.store_set import StoreSet
from psl_flower.system.devices import choose_device
from simulations import settings as common
from simulations.compare.federated import patch_split
from simulations.progress import Progress


def trained(config: RunConfig, engine: str, workspace: Path, progress: Progress) -> RunFolder:
    """Return a trained run of these settings, from the workspace if it has one; an interrupted training continues.

    `engine` is one of `simulations.lightening.results.ENGINES`.

    Raises
    ------
    PslError
        If the dataset cannot be used, or the training fails.
    """
    config = config.replace(**local_paths(config.to_mapping()))
    told = json.dumps([engine, common.without(config, ["workspace", "run-name"])], sort_keys=True)
    name = f"reference-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
    config = config.replace(workspace=str(workspace), run_name=name)
    with contextlib.suppress(RunError):
        found = open_run(workspace, name)
        if (status := found.read_status()) is not None and status.state == "completed":
            return found
    stores = prepare_stores(config, progress.ingesting)
    steps = batch_order(config, stores.description).steps_per_epoch
    progress.trial("reference")
    if engine == "flwr":
        patch_split(config, steps, lambda step: progress.step("training", step, steps * config.training.rounds))
    else:
        _as_one_graph(config, stores, RunFolder(workspace / "runs" / name), progress)
    return open_run(workspace, name)


def _as_one_graph(config: RunConfig, stores: StoreSet, run: RunFolder, progress: Progress) -> None:
    run.path.mkdir(parents=True, exist_ok=True)
    run.write_config(config)
    run.write_description(stores.description)
    run.write_account(stores.account)
    with stores.opened() as opened:
        one_process = OneProcessTrainer(
            config, stores.description, stores.labels, opened, choose_device(config.machine.device)
        )
        one_process.train_resumably(run.path / "one-graph.pt", "training", progress.step, advice="choose a lower lr")
    save_trained_model(run.model, one_process.net.state_dict())
    run.write_status(Status(state="completed", step=one_process.step, total_steps=one_process.total_steps))
