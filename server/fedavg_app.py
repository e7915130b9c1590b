"""The baseline's ServerApp: averages the clients' whole networks with one of Flower's own strategies.

Network, images and recipe are those of a patch-split run, so that the two can be compared.
"""

from __future__ import annotations

import dataclasses
import time
from contextlib import closing

import tomli_w
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from psl_flower.baselines.fedavg import FedAvgConfig
from psl_flower.baselines.whole_image import whole_image_config
from psl_flower.engine.automatic_settings import planned
from psl_flower.engine.build import Blueprint
from psl_flower.engine.one_process import OneProcessTrainer
from psl_flower.errors import NodeError, RunError
from psl_flower.inference.trained_model import save_trained_model
from psl_flower.runs.folder import RunFolder, create_run
from psl_flower.stores.prepare import prepare_stores
from psl_flower.stores.store_set import StoreSet
from psl_flower.system.devices import choose_device
from psl_flower.system.files import write_file
from psl_flower.system.machine import keep_freed_memory, usable_cores
from psl_flower.text import counted, duration
from server.reporting import Reporter
from strategies.fedavg import StrictAveraging, averaging

_POLL_S = 0.2

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train as the run's configuration says."""
    keep_freed_memory()
    fed = FedAvgConfig.from_mapping(context.run_config)
    run = create_run(fed.config.workspace_path(), fed.config.run.run_name, fed.config.data.dataset)
    reporter = Reporter(run, run_id=str(context.run_id), every_s=fed.config.output.progress_every_s)
    try:
        _run(grid, fed, run, reporter)
    except BaseException as error:
        reporter.fail(error)
        raise


def _run(grid: Grid, fed: FedAvgConfig, run: RunFolder, reporter: Reporter) -> None:
    reporter.say("preparing", f"run {run.name}: settings and metrics are in {run.path}")
    config = whole_image_config(fed.config)
    torch.set_num_threads(config.machine.lower_threads or usable_cores())
    stores = prepare_stores(config, reporter.ingesting)
    config = planned(config, stores.description)
    fed = dataclasses.replace(fed, config=config)
    run.write_config(config)
    write_file(run.path / "fedavg.toml", tomli_w.dumps(fed.own_mapping()).encode(), RunError)
    run.write_description(stores.description)
    run.write_account(stores.account)
    for line in stores.account_lines:
        reporter.say("preparing", line)
    began = time.monotonic()
    clients = _clients(grid, fed)
    reporter.plan(rounds=config.training.rounds, total_steps=0, steps_per_round=1, done=0)
    with closing(stores.open(0)) as store:
        evaluated = OneProcessTrainer(
            config, stores.description, stores.labels, [store], choose_device(config.machine.device)
        )
        strategy = averaging(
            fed.strategy,
            clients=clients,
            proximal_mu=fed.proximal_mu,
            server_lr=fed.server_lr,
            statistics=[name for name, _ in evaluated.net.named_buffers()],
        )
        reporter.say("training", f"{clients} clients, {fed.strategy} over {fed.partition} parts of {_about(stores)}")
        rounds = _Rounds(fed, strategy, evaluated, reporter)
        result = strategy.start(
            grid,
            initial_arrays=ArrayRecord({name: value.cpu() for name, value in evaluated.net.state_dict().items()}),
            num_rounds=config.training.rounds,
            timeout=fed.round_timeout_s,
            train_config=ConfigRecord({"settings": Blueprint(config, stores.description).encode()}),
            evaluate_fn=rounds.evaluate,
        )
    model = save_trained_model(run.model, result.arrays.to_torch_state_dict())
    reporter.end(
        "completed",
        f"run {run.name} completed in {duration(time.monotonic() - began)}{reporter.final_accuracy()}; "
        f"the model is in {model}; metrics in {run.path / 'metrics.jsonl'}",
    )


class _Rounds:
    """Evaluates the averaged network on the test images of a patch-split run, and records every round."""

    def __init__(
        self, fed: FedAvgConfig, strategy: StrictAveraging, evaluated: OneProcessTrainer, reporter: Reporter
    ) -> None:
        self._fed, self._strategy, self._evaluated, self._reporter = fed, strategy, evaluated, reporter
        self._steps = 0
        self._bytes = (0, 0)
        self._began = time.monotonic()

    def evaluate(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Evaluate after a round; the initial weights are skipped."""
        traffic, now = self._strategy.traffic, time.monotonic()
        if server_round == 0:
            self._began = now
            return None
        self._evaluated.net.load_state_dict(arrays.to_torch_state_dict())
        predictions = self._evaluated.evaluate()
        self._steps += traffic.steps
        total = (sum(traffic.up.values()), sum(traffic.down.values()))
        self._reporter.averaged(
            {
                "round": server_round,
                "step": self._steps,
                "epochs": server_round * self._fed.local_epochs,
                "loss": traffic.loss,
                "accuracy": predictions.accuracy,
                "test_loss": predictions.loss,
                "images_per_s": traffic.samples / traffic.train_s,
                "bytes_up": total[0] - self._bytes[0],
                "bytes_down": total[1] - self._bytes[1],
                "bytes_up_by_client": _by_client(traffic.up),
                "bytes_down_by_client": _by_client(traffic.down),
                "seconds": time.monotonic() - self._began,
                "train_s": traffic.train_s,
            },
            predictions,
        )
        self._bytes, self._began = total, time.monotonic()
        return MetricRecord({"accuracy": predictions.accuracy, "loss": predictions.loss})


def _by_client(by_node: dict[int, int]) -> dict[str, int]:
    """Return numbers keyed by node id keyed by client instead: 0, 1, ... in the order of node ids."""
    return {str(client): by_node[node] for client, node in enumerate(sorted(by_node))}


def _clients(grid: Grid, fed: FedAvgConfig) -> int:
    """Wait for the clients and return how many there are.

    Raises
    ------
    NodeError
        If there are fewer than asked for, or none, after node-timeout-s.
    """
    deadline = time.monotonic() + fed.config.wire.node_timeout_s
    while True:
        there = len(list(grid.get_node_ids()))
        if there >= max(1, fed.clients):
            return fed.clients or there
        if time.monotonic() > deadline:
            raise NodeError(
                f"expected {fed.clients or 'any'} clients, found {there} after {fed.config.wire.node_timeout_s:g} s"
            )
        time.sleep(_POLL_S)


def _about(stores: StoreSet) -> str:
    description = stores.description
    return f"{counted(len(description.samples_of('train')), 'training image')} of {description.dataset}"
