"""A run that trains: what a run does unless one of the other kinds is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from psl_flower.config import RunConfig
from psl_flower.engine.batches import batch_order
from psl_flower.kinds.kind import Kind, Work
from psl_flower.patches.description import StoreSetDescription
from psl_flower.runs.folder import RunFolder
from psl_flower.text import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Train(Kind):
    """Train a new network."""

    handler: ClassVar[str] = "server.training:train"
    trains: ClassVar[bool] = True

    def check(self, work: Work, description: StoreSetDescription) -> str:
        """Return a line where a batch is larger than the dataset; raises ConfigError if there is no batch at all."""
        count = len(batch_order(work.config, description).pool)
        size = work.config.training.batch_size
        if size <= count or size == RunConfig().training.batch_size:
            return ""
        return f"batch-size: {size} is more than the {counted(count, 'training image')}: every step takes all of them"

    def again(self, folder: RunFolder, simulated: bool) -> str:
        """Return the command that resumes it, once there is a checkpoint."""
        if not folder.has_checkpoint:
            return ""
        if simulated:
            return f"psl train resume={folder.name}"
        return f"flwr run . FEDERATION --stream --run-config 'resume=\"{folder.name}\"'"

    def continued(self, given: Mapping[str, object], folder: RunFolder) -> dict[str, object]:
        """Return the settings that resume it."""
        return {key: value for key, value in given.items() if key != "run-name"} | {"resume": folder.name}
