"""The measurements, in the form of the result file, and their tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

import msgspec

from psl_flower.leakage.report import CODES, QUERY, AttackFinding
from simulations import kept
from simulations.leakage.cases import REFERENCE, Options
from simulations.reports import Cells, Row
from simulations.tables import dataset_name


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One network, trained and attacked."""

    case: str
    seed: int
    accuracy: float  #: Accuracy on the test images.
    #: Payload of an image and step, of all nodes together.
    bytes_up: float
    bytes_down: float
    bits: int | None  #: Bits of an image's codes in a look; None if there are no codes.
    unique: float  #: Share of victims whose codes no other victim has.
    #: The attacks on the finished network, and on that and what crossed the cut in all epochs together.
    one_look: tuple[AttackFinding, ...]
    all_looks: tuple[AttackFinding, ...]
    looks: int  #: Number of looks joined, from the epochs and the finished network.
    auxiliary: int  #: Images that the attacker had, of those asked.
    seconds: float  #: Duration of training and attacks.


class Floor(msgspec.Struct, frozen=True, kw_only=True):
    """What the same attackers rebuild without codes, for a seed: from classes, from nothing, and from logits."""

    seed: int
    findings: tuple[AttackFinding, ...]


class Average(msgspec.Struct, frozen=True, kw_only=True):
    """A case over its seeds."""

    case: str
    seeds: int  #: Number of seeds it was trained with.
    accuracy: float
    lost: float | None  #: Accuracy that the reference has more with the same seeds, points; None without it.
    #: SSIM of the better decoder; of all looks, of those that join them.
    one_look: float
    all_looks: float
    bytes_both: float  #: Payload of an image and step, up and down.


class Report(kept.Report, frozen=True, kw_only=True):
    """A result file."""

    benchmark: str = "leakage"
    version: int = 2
    settings: Options
    measurements: tuple[Trial, ...] = ()
    floors: tuple[Floor, ...] = ()

    @property
    def missing(self) -> list[tuple[str, int]]:
        """(case, seed) of the trials that are still to be measured, in order: all cases with a seed, then the next."""
        done = {(trial.case, trial.seed) for trial in self.measurements}
        wanted = [(case, seed) for seed in self.settings.seeds for case in self.settings.cases]
        return [pair for pair in wanted if pair not in done]

    @property
    def averages(self) -> list[Average]:
        """The cases that were measured, over their seeds."""
        found = []
        for case in self.settings.cases:
            trials = [trial for trial in self.measurements if trial.case == case]
            if trials:
                found.append(self._average(case, trials))
        return found

    @property
    def title(self) -> str:
        """One line: what was measured, and where."""
        asked, missing = self.settings, len(self.missing)
        partial = f", {missing} of {missing + len(self.measurements)} trials still missing" if missing else ""
        return (
            f"What codes give away: {dataset_name(asked.dataset)}, {asked.images} training images, "
            f"width {asked.width}, {asked.epochs} epochs{partial}; {self.place}"
        )

    @property
    def tables(self) -> tuple[Cells, ...]:
        """A row for each network, the floors, cases over their seeds, and attackers of other levels."""
        return self._trials(), self._floors(), self._cases(), self._levels()

    def _trials(self) -> Cells:
        head: Row = (
            "case", "seed", "accuracy, %", "bytes up", "bytes down", "bits", "SSIM, one look", "nearest, %",
            "SSIM, looks joined", "nearest, looks joined, %", "of their own, %",
        )  # fmt: skip
        rows: list[Row] = []
        for trial in self.measurements:
            one, joined = best(trial.one_look), best(trial.all_looks)
            rows.append((
                trial.case, str(trial.seed), f"{100 * trial.accuracy:.1f}", f"{trial.bytes_up:g}",
                f"{trial.bytes_down:g}", str(trial.bits or "-"), similarity(one), f"{100 * one.first:.1f}",
                similarity(joined), f"{100 * joined.first:.1f}", f"{100 * trial.unique:.1f}",
            ))  # fmt: skip
        return head, rows

    def _floors(self) -> Cells:
        return ("knows", "attacker", "seed", "SSIM", "nearest, %"), [
            (found.knows, found.attacker, str(floor.seed), similarity(found), f"{100 * found.first:.1f}")
            for floor in self.floors
            for found in floor.findings
        ]

    def _cases(self) -> Cells:
        head: Row = (
            "case", "seeds", "accuracy, %", "points lost", "SSIM, one look", "SSIM, looks joined", "bytes, both ways",
        )  # fmt: skip
        return head, [
            (
                one.case, str(one.seeds), f"{100 * one.accuracy:.1f}", "-" if one.lost is None else f"{one.lost:.1f}",
                f"{one.one_look:.3f}", f"{one.all_looks:.3f}", f"{one.bytes_both:g}",
            )
            for one in self.averages
        ]  # fmt: skip

    def _levels(self) -> Cells:
        return ("case", "seed", "level", "looks", "attacker", "SSIM", "nearest, %"), [
            (
                trial.case, str(trial.seed), found.level, str(found.looks), found.attacker, similarity(found),
                f"{100 * found.first:.1f}",
            )
            for trial in self.measurements
            for found in (*trial.one_look, *trial.all_looks)
            if found.level != QUERY
        ]  # fmt: skip

    @property
    def notes(self) -> str:
        """How to read the tables."""
        asked = self.settings
        return (
            f"Attacks on {asked.victims} training images with {asked.auxiliary} others at most, {asked.decoder_epochs} "
            "epochs of each decoder at most; the better decoder by auxiliary images, mean SSIM and its 95 % interval "
            "over the images. Nearest: rebuilt images whose nearest image, of all attacked and those held back from "
            "the decoders, is the true one. Looks joined: what crossed the cut in every epoch, as the server received "
            "it, and the codes of the finished network, together. Where that is below one look, the decoders of joined "
            "looks were trained too weakly, and more looks may show more than was measured. "
            f"Of their own: images whose codes no other has. Points lost: accuracy less than that of {REFERENCE} with "
            "the same seeds. Levels: with the Uppers' weights images are mended by gradients; unpaired, the Uppers "
            "cannot be queried, and substitutes are trained for as many epochs as decoders. Bytes are the payload of "
            "an image and step over all nodes. Accuracy is that of so few epochs, far from what longer training "
            f"reaches, and stronger attackers may find more. {self.load}"
        )

    def _average(self, case: str, trials: Sequence[Trial]) -> Average:
        mean = statistics.fmean
        reference = {trial.seed: trial.accuracy for trial in self.measurements if trial.case == REFERENCE}
        lost = [100 * (reference[trial.seed] - trial.accuracy) for trial in trials if trial.seed in reference]
        return Average(
            case=case,
            seeds=len(trials),
            accuracy=mean(trial.accuracy for trial in trials),
            lost=mean(lost) if lost else None,
            one_look=mean(best(trial.one_look).ssim.mean for trial in trials),
            all_looks=mean(best(trial.all_looks).ssim.mean for trial in trials),
            bytes_both=trials[0].bytes_up + trials[0].bytes_down,
        )


def best(findings: Iterable[AttackFinding]) -> AttackFinding:
    """Return the better decoder's findings with query access, by auxiliary images."""
    queried = (found for found in findings if found.knows == CODES and found.level == QUERY)
    return max(queried, key=lambda found: found.validation_ssim)


def similarity(found: AttackFinding) -> str:
    """Return an SSIM with its interval, as text."""
    return f"{found.ssim.mean:.3f} ({found.ssim.low:.3f} to {found.ssim.high:.3f})"
