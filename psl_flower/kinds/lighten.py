"""A run that finds a light model of a trained run over the federation, see `psl_flower.lightening`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from psl_flower.config.fields import RUN_NAME, setting
from psl_flower.errors import ConfigError
from psl_flower.kinds.kind import TRAINED, OfTrainedRun, Work
from psl_flower.lightening.settings import Request, check_noiseless, parse_request
from psl_flower.patches.description import StoreSetDescription
from psl_flower.runs.folder import RunFolder, open_run
from psl_flower.runs.resuming import settings_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Lighten(OfTrainedRun):
    """Find a light model; called again, it continues."""

    handler: ClassVar[str] = "server.lightening:lighten"

    lighten: str = setting(
        "", "find a light model of the run of this name, over the federation (docs/lightening.md)", form=RUN_NAME
    )
    lighten_with: str = setting("", "its goals, such as max-drop=0.01 min-speed=2000: the options of psl lighten")

    def _check(self) -> None:
        _ = self.request

    @property
    def request(self) -> Request:
        """The goals, and how they are to be met; raises ConfigError unless they are complete and valid."""
        try:
            return parse_request(self.lighten_with)
        except ConfigError as error:
            raise ConfigError(f"lighten-with: {error}") from None

    def check(self, work: Work, description: StoreSetDescription) -> str:
        """Raise OtherDataset as for all work with a trained run, and ConfigError if its network cannot be pruned."""
        from psl_flower.engine.build import Blueprint
        from psl_flower.lightening.pruning import check_prunable

        note = super(Lighten, self).check(work, description)
        check_prunable(Blueprint(work.config, description).network())
        return note

    def find(self) -> Work:
        """Return the trained run, and the folder of the lightening, new or begun."""
        from psl_flower.lightening.folder import LighteningFolder  # loads torch

        run = open_run(self.config.workspace_path(), self.lighten)
        settings = settings_of(run, self.config, "lighten")
        check_noiseless(settings)
        folder = LighteningFolder(run, self.request.settings, federated=True)
        # Missing nodes are waited for: training without them would give other weights.
        settings = settings.replace(on_missing_node="wait", **TRAINED)
        return Work(config=settings, source=run, folder=RunFolder(folder.path))
