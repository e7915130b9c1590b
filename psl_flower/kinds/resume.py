"""A run that continues the training of an old one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from psl_flower.config.fields import RUN_NAME, setting
from psl_flower.errors import RunError
from psl_flower.kinds.kind import Work
from psl_flower.kinds.train import Train
from psl_flower.runs.folder import open_run
from psl_flower.runs.resuming import settings_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume(Train):
    """Continue a training in its folder, with the settings that it began with."""

    takes_name: ClassVar[bool] = False

    resume: str = setting("", "continue the run of this name", form=RUN_NAME)

    def find(self) -> Work:
        """Return the old run with its settings and the changes that `settings_of` permits."""
        run = open_run(self.config.workspace_path(), self.resume)
        if run.instead:
            raise RunError(f"{run.path}: was made with {run.instead}; it trained nothing that could be continued")
        return Work(config=settings_of(run, self.config, "resume"), source=run, folder=run)

    def begin(self) -> Work:
        """Return the same; an earlier request to stop is taken back."""
        work = self.find()
        work.folder.forget_stop()
        return work
