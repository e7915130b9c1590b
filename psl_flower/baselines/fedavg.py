"""The settings of the baseline: federated averaging of the same backbone on whole images.

The keys in `[tool.flwr.app.config]` of simulations/compare/fedavg/pyproject.toml are these fields in kebab case and
those settings of a run that apply to it, with these defaults; a test holds the two together.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from psl_flower.config import RunConfig
from psl_flower.errors import ConfigError

# By name those of Flower's strategies that average weights.
STRATEGIES = ("fedavg", "fedprox", "fedadam")
PARTITIONS = ("iid", "dirichlet")
_OWN = (
    "strategy", "clients", "partition", "dirichlet-alpha", "local-epochs", "proximal-mu", "server-lr", "round-timeout-s"
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FedAvgConfig:
    """All settings of a run of federated averaging.

    Attributes
    ----------
    run : RunConfig
        Data, network, training and machine as of a patch-split run; `rounds` are rounds of averaging.
    strategy : {"fedavg", "fedprox", "fedadam"}
        Which of Flower's strategies.
    clients : int
        Clients to wait for; 0: those that are there.
    partition, dirichlet_alpha
        How the training images are divided, see `clients.partitions.divide`.
    local_epochs : int
        Passes over its own images that a client makes in a round.
    proximal_mu : float
        Weight of FedProx' proximal term.
    server_lr : float
        FedAdam's learning rate on the server.
    round_timeout_s : float
        Longest time of a round's local training.

    Raises
    ------
    ConfigError
        At construction, if a value is out of range.
    """

    run: RunConfig
    strategy: str = "fedavg"
    clients: int = 0
    partition: str = "iid"
    dirichlet_alpha: float = 0.5
    local_epochs: int = 1
    proximal_mu: float = 0.01
    server_lr: float = 0.01
    round_timeout_s: float = 3600.0

    def __post_init__(self) -> None:
        """Check choices and ranges."""
        for key, value, choices in (
            ("strategy", self.strategy, STRATEGIES),
            ("partition", self.partition, PARTITIONS),
        ):
            if value not in choices:
                raise ConfigError(f"{key}: expected one of {', '.join(choices)}, got {value!r}")
        positive = ("dirichlet_alpha", "local_epochs", "server_lr", "round_timeout_s")
        for name in (*positive, "clients", "proximal_mu"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or (value == 0 and name in positive):
                least = "above 0" if name in positive else "of 0 or more"
                raise ConfigError(f"{name.replace('_', '-')}: expected a number {least}, got {value}")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> FedAvgConfig:
        """Parse a flat mapping with kebab-case keys; keys that are absent take their defaults.

        Raises
        ------
        ConfigError
            If a key is unknown, a value has the wrong type, or is out of range.
        """
        rest = {key: value for key, value in values.items() if key not in _OWN}
        own = {key.replace("-", "_"): _typed(key, values[key]) for key in _OWN if key in values}
        return cls(run=RunConfig.from_mapping(rest), **own)

    def own_mapping(self) -> dict[str, str | int | float]:
        """Return the settings that a patch-split run does not have, by their kebab-case keys."""
        return {key: getattr(self, key.replace("-", "_")) for key in _OWN}

    @property
    def total_epochs(self) -> int:
        """Passes of every client over its own images, in the whole run."""
        return self.run.rounds * self.local_epochs


def _typed(key: str, value: object) -> Any:
    kind = type(FedAvgConfig.__dataclass_fields__[key.replace("-", "_")].default)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        names = {str: "a text", int: "a whole number", float: "a number"}
        raise ConfigError(f"{key}: expected {names[kind]}, got {value!r}")
    return value
