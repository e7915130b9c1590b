"""Warns if other users can reach a simulation, and refuses an owner's keys there."""

from __future__ import annotations

from flwr.serverapp import Grid

from psl_flower.config import RunConfig
from psl_flower.errors import ConfigError
from psl_flower.flower.messages import is_simulation
from psl_flower.stores.sealed_set import is_sealed_dataset
from psl_flower.system.exposure import close_ray, openings


def exposure(grid: Grid, config: RunConfig) -> str:
    """Return a warning if other users of this machine can reach this simulation; empty if they cannot.

    Raises
    ------
    ConfigError
        If an owner's keys would be in their reach, and the run's settings do not permit it.
    """
    if not is_simulation(grid):
        return ""
    close_ray()
    doors = openings()
    if not doors:
        return ""
    if (config.data.keys or is_sealed_dataset(config.data.dataset)) and not config.data.keys_in_open_simulation:
        raise ConfigError(
            f"keys: {doors}, and read an owner's keys; train with psl train, which lets in nobody else, or set "
            "keys-in-open-simulation=true if nobody else can log in to this machine"
        )
    return f"{doors}; where others can log in, use psl train, which lets in nobody else"
