"""Settings of Flower's simulation that fit the grid and the machine."""

from __future__ import annotations

import os

from psl_flower.config import RunConfig
from psl_flower.errors import ConfigError
from psl_flower.system.machine import count_gpus, usable_cores

# Flower's simulation runs at most this many handlers at once (vce_api.py: ThreadPoolExecutor()).
POOL_SIZE = min(32, (os.cpu_count() or 1) + 4)
_FEWEST = 4


def check_simulated(config: RunConfig) -> None:
    """Raise ConfigError if a setting makes sense only with real nodes."""
    if config.wire.adaptation_node:
        raise ConfigError("adaptation-node: is the id of a real node; leave it out in a simulation")


def simulation(
    num_uppers: int,
    num_cores: int | None = None,
    num_gpus: int | None = None,
    num_nodes: int = 0,
    *,
    adaptation: bool = False,
) -> dict[str, int | float]:
    """Return the federation configuration of a simulation in which all nodes run at once.

    Parameters
    ----------
    num_uppers : int
        M; a node hosts one of them or, if there are fewer nodes, several.
    num_cores, num_gpus : int, optional
        Of the machine; counted on this one by default.
    num_nodes : int
        Nodes wanted; 0 for one per Upper, up to the number of cores (at least four) and what Flower runs at once.
    adaptation : bool
        Whether the Adaptation Net needs a node more.
    """
    num_cores = usable_cores() if num_cores is None else num_cores
    num_gpus = count_gpus() if num_gpus is None else num_gpus
    most = min(num_uppers + adaptation, POOL_SIZE)
    nodes = min(num_nodes or max(_FEWEST, num_cores) + adaptation, most)
    config: dict[str, int | float] = {
        "num-supernodes": nodes,
        "client-resources-num-cpus": 1,
        # Ray only counts: with one "processor" for each node all of them run at once, on what there is.
        "init-args-num-cpus": nodes,
    }
    if num_gpus:
        config["init-args-num-gpus"] = num_gpus
        config["client-resources-num-gpus"] = round(num_gpus / nodes, 4) if nodes > num_gpus else 1
    return config
