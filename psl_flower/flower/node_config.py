"""Reads a node's own configuration (`--node-config`), or supplies a simulated node's equivalent."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Any

from flwr.app import Context

from psl_flower.errors import ConfigError
from psl_flower.launch.sizing import POOL_SIZE
from psl_flower.system.state import node_state
from psl_flower.text import expanded
from psl_flower.wire.credentials import node_tls
from psl_flower.wire.node_messages import Inventory, NodeTask
from psl_flower.wire.tls import NodeTls

_PLAINTEXT = "exchange-plaintext-on-untrusted-network"


def is_simulated(context: Context) -> bool:
    """Return True if Flower simulates this node."""
    return "partition-id" in context.node_config and not {"store", "role", "party"} & set(context.node_config)


def simulation_slots() -> int:
    """Return the number of simulated nodes that run at once: actors of Flower's pool, no more than its threads."""
    import ray  # only where Flower simulates

    taken: dict[str, float] = ray.get_runtime_context().get_assigned_resources()
    total: dict[str, float] = ray.cluster_resources()
    actors = [math.floor(total.get(name, 0) / amount) for name, amount in taken.items() if amount > 0]
    return max(1, min([*actors, POOL_SIZE]))


def simulated_inventory(context: Context) -> Inventory:
    """Return a simulated node's report: its partition, the number of partitions, and how many nodes run at once."""
    partition, count = int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
    return Inventory(partition=partition, num_partitions=count, slots=simulation_slots())


def own_state(context: Context) -> Path:
    """Return the folder where a real node keeps its Uppers' states: `state`, or one of this user's own."""
    named = own_text(context, "state")
    return expanded(named, "node-config state") if named else node_state()


def state_root(context: Context, task: NodeTask) -> Path:
    """Return the folder of a run's states: in a simulation where the run says, else one of the node's own."""
    return Path(task.state) if is_simulated(context) else own_state(context) / task.run


def own_tls(context: Context) -> NodeTls:
    """Return a node's own TLS settings; a simulated node has none and follows the run's.

    `exchange-ca` is a file with the authorities that the endpoint's certificate must come from; `exchange-cert` and
    `exchange-key` are the node's own, for mutual TLS; `exchange-plaintext-on-untrusted-network` permits plaintext.

    Raises
    ------
    ConfigError
        If one of the files cannot be used, or the configuration contradicts itself.
    """
    if is_simulated(context):
        return NodeTls(allow_plaintext=True)
    allow = permission(context, _PLAINTEXT)
    ca, cert, key = (own_text(context, f"exchange-{name}") for name in ("ca", "cert", "key"))
    return node_tls(ca=ca, cert=cert, key=key, allow_plaintext=allow)


def permission(context: Context, name: str) -> bool:
    """Return a permission of the node's configuration; raises ConfigError unless it is true or false."""
    return bool(_own(context, name, lambda value: isinstance(value, bool), "true or false"))


def own_count(context: Context, name: str) -> int | None:
    """Return a count of a node's own configuration, None by default; raises ConfigError unless it is 1 or more."""
    value: int | None = _own(context, name, lambda value: _is(value, int) and value >= 1, "a whole number of 1 or more")
    return value


def own_amount(context: Context, name: str) -> float | None:
    """Return an amount of a node's own configuration, None by default; raises ConfigError unless it is above 0."""
    value = _own(context, name, lambda value: _is(value, int | float) and 0 < value < math.inf, "a number above 0")
    return None if value is None else float(value)


def own_text(context: Context, name: str) -> str:
    """Return a text of a node's own configuration, empty by default; raises ConfigError if it is no text."""
    return _own(context, name, lambda value: isinstance(value, str), "a text") or ""


def _own(context: Context, name: str, valid: Callable[[Any], bool], expected: str) -> Any:
    """Return a value of a node's own configuration, None if it is not set."""
    value = context.node_config.get(name)
    if value is None or valid(value):
        return value
    raise ConfigError(f"node-config {name}: expected {expected}, got {value!r}")


def _is(value: object, number: type | UnionType) -> bool:
    return isinstance(value, number) and not isinstance(value, bool)
