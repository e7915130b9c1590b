"""Base of the kinds of runs: their settings, folder, how to continue them, their handler on the server.

A new kind of run is a class like those beside this module, a line in `psl_flower.kinds.KINDS`, and its handler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from psl_flower.config import RunConfig
from psl_flower.config.fields import Settings, flat
from psl_flower.errors import NoCheckpoint, OtherDataset
from psl_flower.patches.description import StoreSetDescription
from psl_flower.runs.folder import RunFolder, Status, create_run, free_name, open_run
from psl_flower.runs.resuming import settings_of

# Returns how to continue a run, from its folder and whether its nodes are simulated; empty if it cannot be continued.
HowToContinue = Callable[[RunFolder, bool], str]
# For work with a trained model: the Adaptation Net has no part in it, and nothing is averaged.
TRAINED: dict[str, Any] = {
    "alpha": 0.0,
    "adaptation_server": False,
    "adaptation_node": "",
    "average_every": 0,
    "collect_model": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Settings and folders of a run."""

    config: RunConfig  #: Its settings: those given, or those of an old run.
    source: RunFolder  #: The run that owns settings, weights and nodes' states.
    folder: RunFolder  #: Folder of status, log and results; for a training, `source`.


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind(Settings):
    """A kind of run, made by `psl_flower.kinds.kind_of`; by default one that makes the folder of a new run."""

    handler: ClassVar[str]  #: "module:function", called on the server with a `server.run.ServerRun`.
    unit: ClassVar[str] = "step, with a checkpoint"  #: Unit of work that a run completes before it stops on request.
    takes_name: ClassVar[bool] = True  #: Whether `run-name` names its folder.
    trains: ClassVar[bool] = False  #: Whether it trains a network that can then be used.

    #: The general settings; a kind's own settings are its fields declared with `setting`.
    config: RunConfig = field(default_factory=RunConfig)

    def to_mapping(self) -> dict[str, Any]:
        """Return all settings given as a flat mapping with kebab-case keys, as `kind_of` takes it."""
        return self.config.to_mapping() | flat(self)

    def finished(self) -> Status | None:
        """Return the status to show, with its message for the user, if nothing is left to do; None otherwise."""
        return None

    def find(self) -> Work:
        """Return the run's settings and folders, without creating a folder.

        Raises
        ------
        PslError
            If a name is taken, or an old run is missing or was made with other settings.
        """
        workspace = self.config.workspace_path()
        name = free_name(workspace, self.config.run.run_name, self.config.data.dataset)
        run = RunFolder(workspace / "runs" / name)
        return Work(config=self.config, source=run, folder=run)

    def begin(self) -> Work:
        """Create or open the folder and return the work; raises what `find` raises, or for a wrong dataset."""
        from psl_flower.stores.prepare import find_dataset  # loads pyarrow, which takes a while

        find_dataset(self.config)
        run = create_run(self.config.workspace_path(), self.config.run.run_name, self.config.data.dataset)
        run.write_config(self.config, flat(self))
        return Work(config=self.config, source=run, folder=run)

    def check(self, work: Work, description: StoreSetDescription) -> str:
        """Raise PslError if it cannot be done with these stores; return a line for the user, or an empty text."""
        return ""

    def accepted(self, work: Work) -> None:
        """Record the kind of run on the server, after `check`."""

    def how_to_continue(self, folder: RunFolder, simulated: bool) -> str:
        """Return the command that continues it, as `HowToContinue`."""
        return ""

    def settings_to_continue(self, given: Mapping[str, object], folder: RunFolder) -> dict[str, object]:
        """Return the settings that continue it, made from those it began with, where `how_to_continue` names a way."""
        return dict(given)


@dataclass(frozen=True, slots=True, kw_only=True)
class OfTrainedRun(Kind):
    """Work with a trained run's model, on the stores it was trained on, in a folder within the run's."""

    takes_name: ClassVar[bool] = False

    def begin(self) -> Work:
        """Return the work unchanged: its folder exists."""
        return self.find()

    def check(self, work: Work, description: StoreSetDescription) -> str:
        """Raise OtherDataset unless the run was trained on these stores."""
        check_stores(work, description)
        return ""

    def how_to_continue(self, folder: RunFolder, simulated: bool) -> str:
        """Return the hint that the same command continues it."""
        return "the same command"


def trained_run(config: RunConfig, setting: str, name: str, nothing: str) -> tuple[RunFolder, RunConfig]:
    """Return the run that a kind's setting names, and its settings for work with its model.

    Raises
    ------
    PslError
        If there is no such run, or it was made with other settings; NoCheckpoint with what there is `nothing` of, if it
        has no checkpoint of a step.
    """
    run = open_run(config.workspace_path(), name)
    settings = settings_of(run, config, setting)
    if not any(run.checkpoints.steps()):
        raise NoCheckpoint(f"{run.path}: the run has no checkpoint of a step yet, so there is {nothing}")
    return run, settings.replace(**TRAINED)


def check_stores(work: Work, description: StoreSetDescription) -> None:
    """Raise OtherDataset unless these patch stores are those that a run was trained on."""
    if description.fingerprint != work.source.read_description().fingerprint:
        raise OtherDataset(
            f"{work.config.data.dataset}: its patch stores are not those that run {work.source.name} was trained on, "
            "to which the nodes' weights belong; put those back, or train again"
        )
