"""The settings of the baseline: federated averaging of the same backbone on whole images.

The keys in `[tool.flwr.app.config]` of simulations/compare/fedavg/pyproject.toml are these fields in kebab case and
those settings of a run that apply to it, with these defaults; a test holds the two together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from psl_flower.config import RunConfig
from psl_flower.config.fields import Settings, Value, fields_of, flat, parse, setting

# Those of Flower's strategies that average weights, by name.
STRATEGIES = ("fedavg", "fedprox", "fedadam")
PARTITIONS = ("iid", "dirichlet")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FedAvgConfig(Settings):
    """All settings of a run of federated averaging."""

    config: RunConfig  #: Data, network, training and machine as in a patch-split run; `rounds` are rounds of averaging.
    strategy: str = setting("fedavg", "which of Flower's strategies", choices=STRATEGIES)
    clients: int = setting(0, "clients to wait for; 0: those that are connected", least=0)
    partition: str = setting("iid", "how the training images are divided; dirichlet: by class", choices=PARTITIONS)
    dirichlet_alpha: float = setting(0.5, "concentration: the smaller, the more the clients' classes differ", above=0)
    local_epochs: int = setting(1, "passes over its own images that a client makes in a round", least=1)
    proximal_mu: float = setting(0.01, "weight of FedProx' proximal term", least=0)
    server_lr: float = setting(0.01, "FedAdam's learning rate on the server", above=0)
    round_timeout_s: float = setting(3600.0, "longest seconds of a round's local training", above=0)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> FedAvgConfig:
        """Parse a flat mapping with kebab-case keys; keys that are absent take their defaults.

        Raises
        ------
        ConfigError
            If a key is unknown, a value has the wrong type, or is out of range.
        """
        keys = {field.key for field in fields_of(cls)}
        (own,) = parse([cls], {key: value for key, value in values.items() if key in keys}, "")
        rest = {key: value for key, value in values.items() if key not in keys}
        return cls(config=RunConfig.from_mapping(rest), **own)

    def own_mapping(self) -> dict[str, Value]:
        """Return the settings that a patch-split run does not have, by their kebab-case keys."""
        return flat(self)

    @property
    def total_epochs(self) -> int:
        """Passes of every client over its own images, in the whole run."""
        return self.config.training.rounds * self.local_epochs
