"""A run that continues the training of an old one, for as many rounds as it began with or for another number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import msgspec

from psl_flower.config import RunConfig
from psl_flower.config.fields import RUN_NAME, setting
from psl_flower.engine.automatic_settings import planned
from psl_flower.errors import ConfigError, RunError
from psl_flower.kinds.kind import Work
from psl_flower.kinds.train import Train
from psl_flower.patches.description import StoreSetDescription
from psl_flower.runs.best_checkpoint import load_best
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
    resume_collect: bool = setting(
        False, "collect the model that a run left on its nodes, as psl train resume=NAME collect-model=true asks for"
    )

    @classmethod
    def as_asked(cls, given: Mapping[str, object]) -> dict[str, object]:
        """Return a user's settings; `rounds` and `collect-model` given with `resume` become settings of this class."""
        rest = dict(given)
        if given.get("resume") and given.get("collect-model") is True:
            rest["resume-collect"] = rest.pop("collect-model")
        if given.get("resume") and given.get("rounds"):
            rest["resume-rounds"] = rest.pop("rounds")
        return rest

    def finished(self) -> Status | None:
        """Return the last status of a run that has done all its rounds, and whose model exists if it is wanted."""
        work = self.find()
        run, status = work.source, work.source.read_status()
        rounds = _in_numbers(work.config, run).training.rounds
        if status is None or status.state != "completed" or rounds != _began(run).training.rounds:
            return None
        if work.config.output.collect_model and not run.has_model:
            return None
        accuracy = "" if status.accuracy is None else f", test accuracy {status.accuracy:.2%}"
        anyway = "" if work.config.training.schedule == "constant" else " resume-anyway=true"
        more = f" For more rounds: psl train resume={run.name} rounds={2 * rounds}{anyway}"
        done = f"all of its {counted(rounds, 'round')}"
        if (best := load_best(run)) is not None:
            done, more = f"after step {best.trained}, the weights of step {best.step} kept", ""
        return msgspec.structs.replace(
            status, message=f"run {run.name} has finished, {done}{accuracy}; nothing was changed.{more}"
        )

    def find(self) -> Work:
        """Return the old run with its settings, the changes that `settings_of` permits, and the rounds asked for."""
        run = open_run(self.config.workspace_path(), self.resume)
        if run.instead:
            raise RunError(f"{run.path}: was made with {run.instead}; it trained nothing that could be continued")
        noted, began = run.read_config().training.rounds, _began(run)
        config = settings_of(run, self.config.replace(rounds=noted), "resume")
        if self.resume_collect:  # collect-model is true by default, so it cannot show that a user asked
            config = config.replace(collect_model=True)
        rounds = self.resume_rounds or self.config.training.rounds
        if rounds not in (began.training.rounds, RunConfig().training.rounds):
            # Rounds as long as those so far: settings that the run has chosen by its images stay what they were.
            config = _in_numbers(config, run).replace(rounds=rounds)
        return Work(config=config, source=run, folder=run)

    def begin(self) -> Work:
        """Return the work unchanged: its folder exists."""
        return self.find()

    def check(self, work: Work, description: StoreSetDescription) -> str:
        """Return a line on the effect of other rounds, and the line of `Train.check`.

        Raises
        ------
        ConfigError
            If the rounds asked for are done already, or give other weights than a run that began with them.
        """
        began = _began(work.source)
        notes = [Train.check(self, work, description)]
        if _in_numbers(work.config, work.source).training.rounds != began.training.rounds:
            if (best := load_best(work.source)) is not None:
                raise ConfigError(
                    f"rounds: training of run {work.source.name} ended after {best.trained} steps, of which the "
                    f"weights of step {best.step} were kept; start a new run for other rounds"
                )
            notes.append(self._about_rounds(work, began, description))
        return "; ".join(filter(None, notes))

    def accepted(self, work: Work) -> None:
        """Write other rounds to the run's config.toml."""
        began = _began(work.source)
        if _in_numbers(work.config, work.source).training.rounds != began.training.rounds:
            _, other, done = _compared(work, began, work.source.read_description())
            if other is not None:
                before, rounds = began.training.rounds, work.config.training.rounds
                note_extension(work.source, Extension(step=done, before=before, rounds=rounds))
            # The rest is unchanged: other settings that differ apply to this continuation only.
            work.source.write_config(began.replace(rounds=work.config.training.rounds))

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


def _in_numbers(config: RunConfig, run: RunFolder) -> RunConfig:
    """Return settings of a run with numbers for those that its images decide, as soon as these are known."""
    return planned(config, run.read_description()) if run.has_description else config


def _began(run: RunFolder) -> RunConfig:
    """Return the settings of a run so far, in numbers."""
    return _in_numbers(run.read_config(), run)


def _compared(
    work: Work, began: RunConfig, description: StoreSetDescription
) -> tuple[tuple[Schedule, Schedule], int | None, int]:
    """Return the schedules before and since, the first step done in which they differ, and the steps done."""
    from psl_flower.engine.build import Blueprint  # loads torch

    old, new = (Blueprint(config, description).schedule() for config in (began, work.config))
    done = max(work.source.checkpoints.steps(), default=0)
    return (old, new), next((step for step in range(done) if old.lr(step) != new.lr(step)), None), done
