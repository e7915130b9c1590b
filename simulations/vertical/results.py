"""The report: accuracy, seconds and bytes of both."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from psl_flower.config import fields
from psl_flower.config.fields import setting
from simulations import kept
from simulations.options import number, one_of, several
from simulations.reports import Cells, Row

HERE, BY_ROUNDS = "examples/tabular", "a Flower round per step"
_TRANSPORTS = ("stream", "flower")


@dataclass(frozen=True, kw_only=True)
class Options(fields.Settings):
    """What to train."""

    epochs: int = setting(40, "epochs of examples/tabular at most; it stops early", least=1)
    transports: tuple[str, ...] = several(_TRANSPORTS, "transports of examples/tabular", one_of(_TRANSPORTS))
    rounds: int = setting(1000, "rounds of the other, each one step over all rows", least=10)
    lrs: tuple[float, ...] = several((0.01, 0.1), "learning rates of the other", number)


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One training, or one point of it."""

    #: `HERE` or `BY_ROUNDS`; the transport, or the learning rate.
    method: str
    how: str
    #: Times that every training row was used, and steps of the optimisers.
    passes: int
    steps: int
    auc: float  #: Area under the ROC curve on the 169 patients that no step saw, 0..1; `HERE` stops early by them.
    seconds: float  #: Duration of the training, without starting Flower and its processes.
    #: Bytes from the parties to the server, and back.
    bytes_up: int
    bytes_down: int


class Report(kept.Report, frozen=True, kw_only=True):
    """A result file: every training."""

    benchmark: str = "vertical"
    version: int = 1
    settings: Options
    measurements: tuple[Trial, ...]

    @property
    def title(self) -> str:
        """One line: what was measured, and where."""
        return f"Three parties with tabular data, in a simulation of Flower; {self.place}"

    @property
    def tables(self) -> tuple[Cells, ...]:
        """Every training."""
        head = ("training", "passes", "steps", "AUC, %", "seconds", "ms a step", "MB up", "MB down")
        rows: list[Row] = [
            (
                f"{t.method}, {t.how}", str(t.passes), f"{t.steps:,}", f"{100 * t.auc:.1f}", f"{t.seconds:.1f}",
                f"{1000 * t.seconds / t.steps:.0f}", f"{t.bytes_up / 1e6:.2f}", f"{t.bytes_down / 1e6:.2f}",
            )
            for t in self.measurements
        ]  # fmt: skip
        return ((head, rows),)

    @property
    def notes(self) -> str:
        """How to read the table."""
        return (
            "scikit-learn's breast cancer data, three parties with ten columns each, the same models and the same 169 "
            f'patients held back. "{BY_ROUNDS}" is our own program of what Flower\'s vertical example describes: '
            "all rows up, one step of SGD on the server, gradients down with the next round; without dropout, which "
            "would draw another mask for the gradient. Its bytes are those of tensors alone, with the outputs of the "
            "patients held back in each round; those of examples/tabular are all that its frames hold. "
            "examples/tabular stops early on the patients that its AUC is measured on, which flatters it; the "
            f"other has fixed rounds. One training each. {self.load}"
        )
