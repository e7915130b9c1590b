"""The report: every kill, and the outcome of the run."""

from __future__ import annotations

import msgspec

from psl_flower.text import counted
from simulations import reports
from simulations.reports import Cells, Row, Spread, Values
from simulations.tables import again, spread

# When a kill comes: in a step, or while the run restarts after the kill before it.
TRAINING, STARTING = "training", "starting"


class Kill(msgspec.Struct, frozen=True, kw_only=True):
    """One process killed."""

    role: str  #: "node", "server" or "SuperLink".
    moment: str  #: "training" or "starting": whether it came in a step, or while the run restarted.
    #: Training step that the run had reached, 0 if it had not begun to train, and the one it continued from.
    step: int
    committed: int
    #: Seconds from the kill to the first step after it, or to the next kill if that came first; None if unknown.
    lost_s: float | None

    @property
    def steps_repeated(self) -> int:
        """Steps done again."""
        return max(0, self.step - self.committed)


class Report(reports.Report, frozen=True, kw_only=True):
    """A result file."""

    benchmark: str = "chaos"
    version: int = 2
    settings: Values  #: Settings of the run by their kebab-case keys.
    seed: int  #: Seed of roles and moments.
    measurements: tuple[Kill, ...]  #: Every kill, in the order in which they came.
    kills: dict[str, int]  #: Kills by role.
    restarts: int  #: Restarts of the run; more than kills if something else failed as well.
    #: Training steps of the run, and how many were done again.
    steps: int
    steps_repeated: int
    #: Wall time of the run, and what of it the kills cost, as far as that is known.
    seconds: float
    seconds_lost: float
    equal: bool  #: Whether the weights are bit for bit those of the undisturbed run.

    @property
    def title(self) -> str:
        """One line: what became of which run, and where."""
        return (
            f"{counted(len(self.measurements), 'kill')} survived, weights "
            f"{'bit-equal to' if self.equal else 'DIFFERENT from'} those of the undisturbed run; "
            f"{self.settings['dataset']}, batch {self.settings['batch-size']}, {self.steps} steps; {self.place}"
        )

    @property
    def tables(self) -> tuple[Cells, ...]:
        """The kills, by what was killed."""
        rows: list[Row] = []
        for role in self.kills:
            found = [kill for kill in self.measurements if kill.role == role]
            lost = [kill.lost_s for kill in found if kill.lost_s is not None]
            repeated = sum(kill.steps_repeated for kill in found)
            rows.append((role, str(len(found)), str(repeated), spread(Spread.of(lost) if lost else None, ".1f")))
        return ((("killed", "times", "steps repeated", "lost by a kill, s"), rows),)

    @property
    def notes(self) -> str:
        """How to read the table."""
        starting = sum(kill.moment == STARTING for kill in self.measurements)
        unknown = sum(kill.lost_s is None for kill in self.measurements)
        except_for = f" (not known of {unknown} kills)" if unknown else ""
        return (
            "A run in Flower's simulation on this machine with a checkpoint every "
            f"{self.settings['checkpoint-every']} steps; one process at a time was killed (SIGKILL), {starting} of "
            "them while the run was beginning anew after the kill before, and `psl train --retries` recovered "
            f"({self.restarts} times). {self.steps_repeated} of {self.steps} steps were done again; "
            f"{self.seconds:.0f} s in all, of which {self.seconds_lost:.0f} s were lost by kills{except_for}: from a "
            "kill to the first step after it or to the next kill, median (lowest to highest). The undisturbed run is "
            f"the same network trained in one process on the same batches. {self.load}"
        )

    @property
    def command(self) -> str:
        """The command line that does the same again."""
        options = {"kills": len(self.measurements), "seed": self.seed, "steps": self.steps}
        return again("chaos", [(name, str(value)) for name, value in options.items()], {})
