"""The client of federated averaging: trains the whole backbone on its own whole images and sends the weights back."""

from __future__ import annotations

import sys
from contextlib import closing
from functools import lru_cache

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from numpy.typing import NDArray

from clients.partitions import divide
from psl_flower.baselines.fedavg import FedAvgConfig
from psl_flower.baselines.whole_image import LocalTraining
from psl_flower.engine.build import Blueprint
from psl_flower.errors import ConfigError, FrameMismatch, PslError
from psl_flower.flower.node_config import simulation_slots
from psl_flower.stores.prepare import prepare_stores
from psl_flower.stores.store_set import StoreSet
from psl_flower.system.devices import choose_device
from psl_flower.system.machine import keep_freed_memory, usable_cores

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Do a round's local passes from the weights received; a failure becomes the reply's error, in one line."""
    try:
        return Message(_train(message, context), reply_to=message)
    except PslError as error:
        reason = f"{' '.join(str(error).split())} ({type(error).__name__})"
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


def _train(message: Message, context: Context) -> RecordDict:
    told = message.content.config_records["config"]
    settings, first_round = told["settings"], told["server-round"]
    if not isinstance(settings, bytes) or not isinstance(first_round, int):
        raise FrameMismatch("the server: expected settings and the number of the round")
    fed = FedAvgConfig.from_mapping(context.run_config)
    blueprint = Blueprint.decode(settings)
    config, description = blueprint.config, blueprint.description
    client, count = _own_part(context)
    _prepare_process(config.machine.upper_threads)
    stores = _stores(settings)
    if stores.description.source != description.source:
        raise ConfigError(f"{config.data.dataset}: is not the server's dataset here")
    samples = _divided(settings, fed.partition, fed.dirichlet_alpha, count)[client]
    with closing(stores.open(0)) as store:
        local = LocalTraining(
            config, description, stores.labels, store, samples,
            total_epochs=fed.total_epochs,
            proximal=fed.proximal_mu if fed.strategy == "fedprox" else 0.0,
            device=choose_device(config.machine.device),
        )  # fmt: skip
        local.net.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        loss = local.train_epochs((first_round - 1) * fed.local_epochs, fed.local_epochs)
        arrays = ArrayRecord({name: value.cpu() for name, value in local.net.state_dict().items()})
    metrics: dict[str, int | float] = {
        "num-examples": local.num_samples,
        "num-passed": local.num_samples * fed.local_epochs,
        "num-steps": local.num_steps(fed.local_epochs),
        "loss": loss,
    }
    return RecordDict({"arrays": arrays, "metrics": MetricRecord(dict(metrics))})


def _own_part(context: Context) -> tuple[int, int]:
    """Return this client's number and how many there are: Flower's simulation says so, or the node's configuration."""
    client, count = context.node_config.get("partition-id"), context.node_config.get("num-partitions")
    if not isinstance(client, int) or not isinstance(count, int) or not 0 <= client < count:
        raise ConfigError(
            "expected this client's number and how many there are; start the SuperNode with "
            '--node-config "partition-id=0 num-partitions=4", say'
        )
    return client, count


def _prepare_process(threads: int) -> None:
    keep_freed_memory()
    # In Flower's simulation several clients share this machine.
    sharing = simulation_slots() if "ray" in sys.modules else 1
    torch.set_num_threads(threads or max(1, usable_cores() // sharing))


@lru_cache(maxsize=1)
def _stores(settings: bytes) -> StoreSet:
    """Return the store of whole images; once in a process that serves several messages of a run."""
    return prepare_stores(Blueprint.decode(settings).config)


@lru_cache(maxsize=1)
def _divided(settings: bytes, kind: str, alpha: float, count: int) -> list[NDArray[np.int64]]:
    """Return all clients' images, by client; divided once in a process."""
    stores = _stores(settings)
    samples_N = stores.description.samples_of("train")
    seed = Blueprint.decode(settings).config.training.seed
    return divide(samples_N, stores.labels[samples_N], num_clients=count, kind=kind, alpha=alpha, seed=seed)
