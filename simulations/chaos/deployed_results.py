"""The report on deployed federations: every kill, and the outcome of every run."""

from __future__ import annotations

import msgspec

from psl_flower.text import counted
from simulations import reports
from simulations.chaos.federation import ROLES
from simulations.reports import Cells, Row, Spread, Values
from simulations.tables import again, spread

# When a kill comes: while the run trains, or while it still recovers from the kill before.
TRAINING, RECOVERING = "training", "recovering"
# What was seen: the run trained on, all went back to the last committed step, or it ended and was resumed.
TRAINED_ON, WENT_BACK, RESUMED = "trained on", "went back", "resumed"


class Kill(msgspec.Struct, frozen=True, kw_only=True):
    """One process, or one whole host, killed."""

    #: One of `simulations.chaos.federation.ROLES`, and on which host.
    role: str
    host: str
    #: "training" or "recovering": whether it came while the run was training, or while it still recovered from the kill
    #: before.
    moment: str
    at_once: int  #: Number of processes or hosts killed at this moment, including this one.
    at_s: float  #: Seconds since the trial began.
    #: Training step that the run had reached, 0 while it did not train; and the last one that all parties had saved.
    step: int
    committed: int
    seen: str  #: "trained on", "went back" or "resumed": what the run did until it had recovered.
    said: str  #: The first warning or error that it logged meanwhile; empty if there was none.
    #: Seconds from the kill to a committed step that it cannot have disturbed, with everything running; None if the
    #: run ended before.
    recovery_s: float | None


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One run, or two at once, from the first step to the last."""

    #: Its own, and what was done to it; see `simulations.chaos.trials`.
    name: str
    kind: str
    transport: str  #: "stream" or "flower".
    #: Runs at once, and training steps of each.
    runs: int
    steps: int
    kills: tuple[Kill, ...]  #: Kills in the order in which they came.
    resumed: int  #: Number of times that a run had to be resumed.
    errors: tuple[str, ...]  #: Errors that earlier attempts ended with.
    seconds: float  #: Wall time.
    #: SHA-256 of the weights of the Lower and all Uppers at the end, and of those of the undisturbed network.
    weights: tuple[str, ...]
    undisturbed: str
    failure: str = ""  #: What went wrong; empty if nothing did.

    @property
    def equal(self) -> bool:
        """Whether all weights are those of the undisturbed network."""
        return not self.failure and set(self.weights) == {self.undisturbed}


class Report(reports.Report, frozen=True, kw_only=True):
    """A result file."""

    benchmark: str = "chaos-deployed"
    version: int = 2
    settings: Values  #: Settings of the runs by their kebab-case keys.
    #: Options of the command.
    kills: int
    kills_per_run: int
    seed: int
    nodes: int
    measurements: tuple[Trial, ...]  #: All trials that have ended.

    @property
    def ended(self) -> list[Trial]:
        """The trials whose runs came to their end; the weights of the others are unknown."""
        return [trial for trial in self.measurements if not trial.failure]

    @property
    def all_kills(self) -> list[Kill]:
        """Those of all trials that ended."""
        return [kill for trial in self.ended for kill in trial.kills]

    @property
    def equal(self) -> bool:
        """Whether all runs ended with the weights of the undisturbed network."""
        return all(trial.equal for trial in self.measurements)

    @property
    def title(self) -> str:
        """One line: what became of which runs, and where."""
        runs, equal = (sum(trial.runs for trial in found) for found in (self.ended, self._equal_trials()))
        weights = "bit-equal to those of the undisturbed network" if runs == equal else f"equal in {equal} of them ONLY"
        given_up = len(self.measurements) - len(self.ended)
        return (
            f"{counted(len(self.all_kills), 'kill')} of {self.kills} asked for, {counted(runs, 'run')} of a deployed "
            f"federation with TLS to the end, weights {weights}"
            + (f", {counted(given_up, 'trial')} given up" if given_up else "")
            + f"; {self.settings['dataset']}, batch {self.settings['batch-size']}; {self.place}"
        )

    @property
    def tables(self) -> tuple[Cells, ...]:
        """The kills, by what was killed; the trials, by kind."""
        return (
            (
                ("killed", "times", "recovering", "two at once", *_SEEN, "recovery, s"),
                [self._by_role(role) for role in ROLES],
            ),
            (
                ("trials", "transport", "runs", "steps", "kills", "resumed", "bit-equal"),
                [self._by_kind(*key) for key in dict.fromkeys((t.kind, t.transport) for t in self.ended)],
            ),
        )

    @property
    def notes(self) -> str:
        """How to read the tables."""
        return (
            f"A SuperLink and {self.nodes} SuperNodes in network namespaces, sealed stores, TLS with certificates of "
            "an own authority, mutual TLS of the streams, a checkpoint every "
            f"{self.settings['checkpoint-every']} steps. Every kill is a SIGKILL at a moment drawn from the seed; a "
            "host loses all its processes and its cable for 1 to 20 s. Services are started again as the systemd units "
            "do, and an operator resumes a run that has ended. Recovery: from the kill to a committed step beyond all "
            "that it could disturb, with everything running again, median (lowest to highest). Kills in the column "
            "'recovering' came before the run had recovered from the kill before, those of 'two at once' in the same "
            "moment as another. The undisturbed network is trained "
            f"in one process on the same batches. {self._given_up}{self.load}"
        )

    @property
    def command(self) -> str:
        """The command line that does the same again."""
        asked = {"kills": self.kills, "kills-per-run": self.kills_per_run, "seed": self.seed, "nodes": self.nodes}
        options = {"deployed": "", **asked}
        return again("chaos", [(name, str(value)) for name, value in options.items()], {})

    @property
    def _given_up(self) -> str:
        return "".join(f"Given up: {trial.name}, {trial.failure}. " for trial in self.measurements if trial.failure)

    def _equal_trials(self) -> list[Trial]:
        return [trial for trial in self.measurements if trial.equal]

    def _by_role(self, role: str) -> Row:
        found = [kill for kill in self.all_kills if kill.role == role]
        recovering = sum(kill.moment == RECOVERING for kill in found)
        together = sum(kill.at_once > 1 for kill in found)
        seen = (str(sum(kill.seen == what for kill in found)) for what in _SEEN)
        times = [kill.recovery_s for kill in found if kill.recovery_s is not None]
        return (
            role,
            str(len(found)),
            str(recovering),
            str(together),
            *seen,
            spread(Spread.of(times) if times else None, ".0f"),
        )

    def _by_kind(self, kind: str, transport: str) -> Row:
        found = [trial for trial in self.ended if (trial.kind, trial.transport) == (kind, transport)]
        steps = sum(trial.runs * trial.steps for trial in found)
        numbers = (sum(t.runs for t in found), steps, sum(len(t.kills) for t in found), sum(t.resumed for t in found))
        equal = sum(trial.runs for trial in found if trial.equal)
        return (kind, transport, *map(str, numbers), f"{equal} of {numbers[0]}")


_SEEN = (TRAINED_ON, WENT_BACK, RESUMED)
