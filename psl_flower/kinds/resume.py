"""A run that continues the training of an old one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from psl_flower.config import check_run_name
from psl_flower.config.fields import setting
from psl_flower.errors import RunError
from psl_flower.kinds.kind import Work
from psl_flower.kinds.train import Train
from psl_flower.runs.folder import open_run
from psl_flower.runs.resuming import settings_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume(Train):
    """Continue a training in its folder, with the settings that it began with."""

    takes_name: ClassVar[bool] = False

    resume: str = setting("", "continue the run of this name")

    def _check(self) -> None:
        check_run_name("resume", self.resume)

    def find(self) -> Work:
        """Return the old run, with its settings; see `settings_of` for those that may be given.

        Raises
        ------
        RunError
            If there is no such run, or it trained nothing.
        ConfigError
            If a setting is given that would make it another run.
        """
        run = open_run(self.config.workspace_path(), self.resume)
        if run.instead:
            raise RunError(f"{run.path}: was made with {run.instead}; it trained nothing that could be continued")
        return Work(config=settings_of(run, self.config, "resume"), source=run, folder=run)

    def begin(self) -> Work:
        """Return the same, and take back an earlier request to stop."""
        work = self.find()
        work.folder.forget_stop()
        return work
