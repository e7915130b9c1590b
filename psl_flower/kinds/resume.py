"""A run that continues the training of an old one, for as many rounds as it began with or for another number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import msgspec
import numpy as np

from psl_flower.config import RunConfig
from psl_flower.config.fields import RUN_NAME, setting
from psl_flower.errors import ConfigError, RunError
from psl_flower.kinds.kind import Work
from psl_flower.kinds.train import Train
from psl_flower.patches.description import StoreSetDescription
from psl_flower.runs.best import load_best
from psl_flower.runs.folder import RunFolder, Status, open_run
from psl_flower.runs.history import Extension, note_extension
from psl_flower.runs.resuming import settings_of
from psl_flower.text import counted

if TYPE_CHECKING:
    from psl_flower.engine.schedule import Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume(Train):
    """Continue a training in its folder, with the settings that it began with."""

    takes_name: ClassVar[bool] = False

    resume: str = setting("", "continue the run of this name", form=RUN_NAME)
    resume_rounds: int = setting(
        0, "rounds of the continued run in all, as psl train resume=NAME rounds=8 asks for; 0: as it began", least=0
    )
    resume_anyway: bool = setting(
        False, "change the rounds although the learning rates so far were those of another number of rounds"
    )

    @classmethod
    def with_rounds(cls, given: Mapping[str, object]) -> dict[str, object]:
        """Return settings given by a person, `rounds` beside `resume` as the setting that it stands for."""
        rest = dict(given)
        if given.get("resume") and given.get("rounds"):
            rest["resume-rounds"] = rest.pop("rounds")
        return rest

    def finished(self) -> Status | None:
        """Return the last status of a run that has done all its rounds, and whose model is there if it is wanted."""
        work = self.find()
        run, rounds = work.source, work.config.training.rounds
        status = run.read_status()
        if status is None or status.state != "completed" or rounds != run.read_config().training.rounds:
            return None
        if work.config.output.collect_model and not run.has_model:
            return None
        accuracy = "" if status.accuracy is None else f", test accuracy {status.accuracy:.2%}"
        return msgspec.structs.replace(
            status,
            message=f"run {run.name} has finished, all of its {counted(rounds, 'round')}{accuracy}; nothing was "
            f"changed. For more rounds: psl train resume={run.name} rounds={2 * rounds}",
        )

    def find(self) -> Work:
        """Return the old run with its settings, the changes that `settings_of` permits, and the rounds asked for."""
        run = open_run(self.config.workspace_path(), self.resume)
        if run.instead:
            raise RunError(f"{run.path}: was made with {run.instead}; it trained nothing that could be continued")
        rounds = self.resume_rounds or self._rounds_given(run)
        given = self.config.replace(rounds=run.read_config().training.rounds)
        config = settings_of(run, given, "resume").replace(rounds=rounds)
        return Work(config=config, source=run, folder=run)

    def begin(self) -> Work:
        """Return the same."""
        return self.find()

    def check(self, work: Work, description: StoreSetDescription) -> str:
        """Return what other rounds mean for the run, and what `Train.check` does.

        Raises
        ------
        ConfigError
            If the rounds asked for are done already, or give other weights than a run that began with them.
        """
        began = work.source.read_config()
        notes = [Train.check(self, work, description)]
        if work.config.training.rounds != began.training.rounds:
            if (best := load_best(work.source)) is not None:
                raise ConfigError(
                    f"rounds: training of run {work.source.name} ended after {best.trained} steps, of which the "
                    f"weights of step {best.step} were kept; start a new run for other rounds"
                )
            notes.append(self._about_rounds(work, began, description))
        return "; ".join(filter(None, notes))

    def accepted(self, work: Work) -> None:
        """Write other rounds to the run's config.toml."""
        began = work.source.read_config()
        if work.config.training.rounds != began.training.rounds:
            _, other, done = _compared(work, began, work.source.read_description())
            if other is not None:
                before, rounds = began.training.rounds, work.config.training.rounds
                note_extension(work.source, Extension(step=done, before=before, rounds=rounds))
            # The rest stays as it was: what may differ now was given for this time.
            work.source.write_config(began.replace(rounds=work.config.training.rounds))

    def _rounds_given(self, run: RunFolder) -> int:
        """Return the rounds asked for in a configuration where those that nobody gave are the default."""
        given, default = self.config.training.rounds, RunConfig().training.rounds
        return run.read_config().training.rounds if given == default else given

    def _about_rounds(self, work: Work, began: RunConfig, description: StoreSetDescription) -> str:
        (old, new), other, done = _compared(work, began, description)
        before, rounds = began.training.rounds, work.config.training.rounds
        change = f"run {work.source.name}: {counted(rounds, 'round')} instead of {before}"
        if new.total_steps < done:
            raise ConfigError(f"rounds: {change}, but {done} steps are done of {new.total_steps}; ask for more")
        if other is None:
            return f"{change}; the result is that of a run that began with {rounds}"
        differs = (
            f"{change}; under schedule={began.training.schedule} the rates of the {done} steps done depend on the "
            f"number of rounds (step {other + 1} took {old.lr(other):.4g}; with {rounds} rounds from the start it "
            f"takes {new.lr(other):.4g}), so the weights will differ from those of such a run"
        )
        if not self.resume_anyway:
            raise ConfigError(
                f"rounds: {differs}. Train on anyway with resume-anyway=true (next step at {new.lr(done):.4g}), or "
                "start a new run"
            )
        return differs


def _compared(
    work: Work, began: RunConfig, description: StoreSetDescription
) -> tuple[tuple[Schedule, Schedule], int | None, int]:
    """Return the schedules before and since, the first step done in which they differ, and the steps done."""
    from psl_flower.engine.build import Blueprint  # loads torch

    no_labels = np.zeros(0, np.int64)
    old, new = (Blueprint(config, description).task(no_labels).schedule for config in (began, work.config))
    done = max(work.source.checkpoints.steps(), default=0)
    return (old, new), next((step for step in range(done) if old.lr(step) != new.lr(step)), None), done
