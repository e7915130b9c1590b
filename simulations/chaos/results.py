"""What is found and written: every kill, and what became of the run."""

from __future__ import annotations

import msgspec

from simulations import reports
from simulations.reports import Values

VERSION = 2

# When a kill comes: in a step, or while the run is beginning anew after the kill before it.
TRAINING, STARTING = "training", "starting"


class Kill(msgspec.Struct, frozen=True, kw_only=True):
    """One process killed.

    Attributes
    ----------
    role : str
        "node", "server" or "SuperLink".
    moment : {"training", "starting"}
        Whether it came in a step, or while the run was beginning anew.
    step, committed : int
        Training step that the run had reached, 0 if it had not begun to train, and the one that it went on from.
    lost_s : float or None
        From the kill to the first step after it, or to the next kill if that came before; None where that is not known.
    """

    role: str
    moment: str
    step: int
    committed: int
    lost_s: float | None

    @property
    def steps_repeated(self) -> int:
        """Steps done again."""
        return max(0, self.step - self.committed)


class Report(reports.Report, frozen=True, kw_only=True):
    """A result file.

    Attributes
    ----------
    settings : dict
        Settings of the run by their kebab-case keys.
    seed : int
        Of roles and moments.
    measurements : tuple of Kill
        Every kill, in the order in which they came.
    kills : dict
        Kills by role.
    restarts : int
        So often the run began anew; more than there were kills if something else went wrong, too.
    steps, steps_repeated : int
        Training steps of the run, and how many were done again.
    seconds, seconds_lost : float
        Wall time of the run, and what of it the kills cost, as far as that is known.
    equal : bool
        Whether the weights are bit for bit those of the undisturbed run.
    """

    benchmark: str = "chaos"
    version: int = VERSION
    settings: Values
    seed: int
    measurements: tuple[Kill, ...]
    kills: dict[str, int]
    restarts: int
    steps: int
    steps_repeated: int
    seconds: float
    seconds_lost: float
    equal: bool
