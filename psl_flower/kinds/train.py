"""A run that trains: the default kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from psl_flower.config import RunConfig
from psl_flower.engine.automatic_settings import planned
from psl_flower.engine.batches import batch_order
from psl_flower.errors import ConfigError
from psl_flower.kinds.kind import Kind, Work
from psl_flower.patches.description import StoreSetDescription
from psl_flower.patches.whole_images import refuse_whole_images
from psl_flower.runs.folder import RunFolder
from psl_flower.system.files import read_file, sha256_name
from psl_flower.text import counted, expanded


@dataclass(frozen=True, slots=True, kw_only=True)
class Train(Kind):
    """Train a new network."""

    handler: ClassVar[str] = "server.training:train"
    trains: ClassVar[bool] = True

    def find(self) -> Work:
        """Return the run's settings and folders, with the hash of the file of Upper weights, if there is one."""
        work = Kind.find(self)
        return dataclasses.replace(work, config=_with_hash(work.config))

    def begin(self) -> Work:
        """Make the folder and return the work."""
        return Kind.begin(dataclasses.replace(self, config=_with_hash(self.config)))

    def check(self, work: Work, description: StoreSetDescription) -> str:
        """Return a line on settings chosen by the number of images, or on a batch larger than the dataset.

        Raises
        ------
        ConfigError
            If there is no batch at all, one Upper alone would hold whole images and that is not allowed, or a node is
            named for an Adaptation Net that the server hosts.
        """
        if work.config.wire.adaptation_node and not work.config.network.adaptation_server:
            raise ConfigError("adaptation-node: is set, but adaptation-server is not; set both, or neither")
        if not work.config.patches.allow_whole_images:
            refuse_whole_images(description)
        training = planned(work.config, description).training
        if training.freeze_uppers_after >= training.rounds:
            raise ConfigError(
                f"freeze-uppers-after: the run has {counted(training.rounds, 'round')}, so no round is left after "
                f"{training.freeze_uppers_after}; choose less, or more rounds"
            )
        count = len(batch_order(work.config, description).pool)
        size = work.config.training.batch_size
        if size > count:
            images = counted(count, "training image")
            return f"batch-size: {size} is more than the {images}: every step takes all of them"
        return _chosen(work.config, description, count)

    def how_to_continue(self, folder: RunFolder, simulated: bool) -> str:
        """Return the command that resumes it, once there is a checkpoint."""
        if not folder.has_checkpoint:
            return ""
        if simulated:
            return f"psl train resume={folder.name}"
        return f"flwr run . FEDERATION --stream --run-config 'resume=\"{folder.name}\"'"

    def settings_to_continue(self, given: Mapping[str, object], folder: RunFolder) -> dict[str, object]:
        """Return the settings that resume it."""
        return {key: value for key, value in given.items() if key != "run-name"} | {"resume": folder.name}


def _with_hash(config: RunConfig) -> RunConfig:
    network = config.network
    if not network.upper_weights or network.upper_weights_hash:
        return config
    content = read_file(expanded(network.upper_weights, "upper-weights"), ConfigError)
    return config.replace(upper_weights_hash=sha256_name(content))


def _chosen(config: RunConfig, description: StoreSetDescription, count: int) -> str:
    """Return a line that names the settings chosen by the number of training images, if any are."""
    names = [name for name in ("rounds", "steps_per_round", "batch_size", "lr") if not config.value(name)]
    if names == ["steps_per_round"]:
        return ""
    plan = planned(config, description)
    values = ", ".join(f"{name.replace('_', '-')}={plan.value(name):g}" for name in names if plan.value(name))
    return f"chosen for {counted(count, 'training image')}: {values}" if values else ""
