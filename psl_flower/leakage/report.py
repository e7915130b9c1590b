"""The report of an audit: its findings, and a verdict in words."""

from __future__ import annotations

import msgspec

from psl_flower.leakage.gradients import LabelGuess
from psl_flower.leakage.images import AuditSettings
from psl_flower.leakage.measures import Interval
from psl_flower.leakage.seams import Seam
from psl_flower.text import counted, duration

# What an attacker is given of an image.
CODES, LOGITS, LABEL, CONSTANT = "codes", "logits", "class", "nothing"
# What else it can do, from strong to weak.
WEIGHTS, QUERY, UNPAIRED = "weights", "query", "unpaired"
LEVELS = {
    WEIGHTS: "i, weights: it has the trained Uppers, and mends images by their gradients",
    QUERY: "ii, query: it can run the trained Uppers on images that it has",
    UNPAIRED: "iii, unpaired: images of the same kind with classes, and the Lower, not the run's seed; it cannot "
    "compute codes",
}
# From this mean similarity on, people recognise most images.
REBUILT = 0.7
_CLEAR = 0.05


class AttackFinding(msgspec.Struct, frozen=True, kw_only=True):
    """How well one attacker rebuilds the victims."""

    attacker: str  #: A decoder, with what it was followed by, or "mean image".
    knows: str  #: "codes", "logits", "class" or "nothing": the attacker's knowledge of an image.
    level: str = ""  #: One of `LEVELS`, if it is given codes; else empty.
    looks: int = 1  #: Number of looks at each image that it is given.
    #: Means over the victims; PSNR in dB.
    ssim: Interval
    psnr: Interval
    median_rank: float  #: Median rank of the true image of all candidates, by distance to the rebuilt one; 1 is best.
    first: float  #: Share of victims with rank 1.
    validation_ssim: float  #: SSIM on auxiliary images that the decoder was stopped by.
    epochs: int  #: Trained.

    @property
    def figures(self) -> str:
        """Its figures in words."""
        return f"SSIM {self.ssim.mean:.2f}, {self.first:.0%} nearest to the true image"


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """How the looks of the training were obtained."""

    shown: int  #: Looks that the Lower had at each image in the training.
    joined: int  #: Number of these that the attacker joined.
    exact: bool  #: Whether training again gave the run's weights, bit by bit.
    seconds: float  #: Duration of the replay.

    @property
    def line(self) -> str:
        """What was done, in one sentence."""
        same = (
            "its weights are the run's, bit by bit"
            if self.exact
            else "its weights are not exactly the run's (another device or number of threads, or absent nodes)"
        )
        return (
            f"{self.joined} of the {counted(self.shown, 'look')} that the server had in training are joined with that "
            f"of the finished network; the training was done again for it in {duration(self.seconds)}, and {same}."
        )


class Leakage(msgspec.Struct, frozen=True, kw_only=True):
    """The result of an audit."""

    #: Run and images attacked.
    run: str
    dataset: str
    #: Images rebuilt; images the attacker had, and was to have.
    victims: int
    auxiliary: int
    auxiliary_asked: int
    candidates: int  #: Images among which the true one is ranked.
    #: Passes at most; seed.
    epochs: int
    seed: int
    bits: int | None  #: Bits of an image's codes in a look; None if numbers cross the cut.
    numbers: int  #: Count of the numbers that cross the cut for an image in a look.
    unique: float  #: Share of victims whose codes no other victim has, so that who has the image finds it.
    findings: tuple[AttackFinding, ...]  #: Findings of all attackers, including the floors.
    #: Threads that the decoders computed with, which affects the last bits; None in older reports.
    threads: int | None = None
    replayed: Replayed | None = None  #: Replay of the training, if its looks were joined.
    labels: LabelGuess | None = None  #: What a node learns about classes; None if its gradients are unknown.
    seams: tuple[Seam, ...] = ()  #: Matches that colluding nodes find.

    @property
    def looks(self) -> int:
        """Looks of an image that are joined at most."""
        return max(found.looks for found in self.findings)

    @property
    def best(self) -> AttackFinding:
        """The strongest attacker with codes of all looks, who may use one of them."""
        return strongest(self.findings, self.looks)

    @property
    def too_weakly_joined(self) -> str:
        """A sentence where the decoders that join all looks did worse than those of one; else empty."""
        one, joined = (
            [found for found in self.findings if (found.level, found.looks) == (QUERY, looks)]
            for looks in (1, self.looks)
        )
        if self.looks == 1 or not one or not joined:
            return ""
        alone, together = (max(found, key=lambda each: each.validation_ssim).ssim.mean for found in (one, joined))
        if together >= alone:
            return ""
        return (
            f" The decoders that join {self.looks} looks did worse than those of one (SSIM {together:.2f}, not "
            f"{alone:.2f}): they were trained too weakly, so more looks may show more than was measured."
        )

    @property
    def reduced(self) -> str:
        """A sentence where the attackers were given less than by default; else empty."""
        full, less = AuditSettings(), list[str]()
        if self.epochs < full.epochs:
            less.append(f"{counted(self.epochs, 'pass')} in place of {full.epochs}")
        # Where there are fewer images than were asked for, asking for more would not have given more.
        if self.auxiliary == self.auxiliary_asked < full.auxiliary:
            less.append(f"{counted(self.auxiliary, 'auxiliary image')} in place of up to {full.auxiliary}")
        if not less:
            return ""
        return f"A reduced audit: its attackers had at most {' and '.join(less)}. A full one may find more."

    @property
    def floor(self) -> AttackFinding:
        """The strongest attacker without codes, by the auxiliary images."""
        floors = [found for found in self.findings if found.knows in (LABEL, CONSTANT)]
        return max(floors, key=lambda found: found.validation_ssim)

    @property
    def verdict(self) -> str:
        """What it means, all looks first; and whether the attack that joins them was too weak to judge by."""
        best, floor = self.best, self.floor
        figures = best.figures
        if self.looks > 1:
            one = strongest(self.findings, 1)
            figures = f"with {self.looks} looks: {figures}; one look: {one.figures}"
        figures += f"; knowing {floor.knows} alone {floor.ssim.mean:.2f} and {floor.first:.0%}"
        verdict = "These attackers rebuild no more than they would without the images' codes"
        if best.ssim.low > floor.ssim.high + _CLEAR and best.ssim.mean >= REBUILT:
            verdict = "Images can be rebuilt from what the server receives"
        elif best.ssim.low > floor.ssim.high + _CLEAR or best.first > 2 * floor.first + _CLEAR:
            verdict = "What the server receives shows more of an image than its class"
        return f"{verdict} ({figures}).{self.too_weakly_joined}"

    def rows(self) -> list[tuple[str, ...]]:
        """Return a table: names of columns, then a row for each attacker."""
        head: tuple[str, ...] = (
            "attacker", "knows", "level", "looks", "SSIM (95 %)", "PSNR, dB", f"median rank of {self.candidates}",
            "rank 1",
        )  # fmt: skip
        return [head] + [
            (
                found.attacker, found.knows, found.level or "-", str(found.looks) if found.level else "-",
                f"{found.ssim.mean:.3f} ({found.ssim.low:.3f} to {found.ssim.high:.3f})", f"{found.psnr.mean:.1f}",
                f"{found.median_rank:g}", f"{found.first:.1%}",
            )
            for found in sorted(self.findings, key=lambda found: -found.ssim.mean)
        ]  # fmt: skip

    def lines(self) -> list[str]:
        """Return sentences: the verdict, the attack, what nodes learn, and the limits."""
        crossing = f"{self.bits} bits" if self.bits is not None else f"{self.numbers} numbers"
        short = f" (of {self.auxiliary_asked} asked)" if self.auxiliary < self.auxiliary_asked else ""
        replayed = [self.replayed.line] if self.replayed else ["One look, that of the finished network, was attacked."]
        computed = f" The decoders computed with {counted(self.threads, 'thread')}." if self.threads else ""
        return [
            self.verdict,
            *([self.reduced] if self.reduced else []),
            f"{self.victims} training images, {crossing} an image and look; the attacker has {self.auxiliary} other "
            f"training images{short}. Levels: {'; '.join(LEVELS.values())}.{computed}",
            *replayed,
            f"{self.unique:.1%} of the images have codes that no other has: who already has such an image can find it.",
            *([self.labels.line] if self.labels else []),
            *self._seam_lines(),
            "A stronger attacker may find more. No learned perceptual distance: none comes without a download.",
        ]

    def _seam_lines(self) -> list[str]:
        if not self.seams:
            return []
        shares = [seam.matched.mean for seam in self.seams]
        return [
            f"Nodes that collude find the neighbouring patch of an image among {self.seams[0].records} by the pixels "
            f"along the border in {min(shares):.0%} to {max(shares):.0%} of cases."
        ]


def strongest(findings: tuple[AttackFinding, ...], looks: int) -> AttackFinding:
    """Return the strongest attacker with codes of this number of looks: of each level the best by auxiliary images.

    An attacker with many looks may use just one, which is better if the decoders of many are undertrained.
    """
    by_level = [
        max(same, key=lambda found: found.validation_ssim)
        for level in LEVELS
        if (same := [f for f in findings if f.knows == CODES and f.looks <= looks and f.level == level])
    ]
    return max(by_level, key=lambda found: found.ssim.mean)
