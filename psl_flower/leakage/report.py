"""What an audit found, and its verdict in words."""

from __future__ import annotations

from io import BytesIO

import msgspec
import numpy as np
import torch
from PIL import Image

from psl_flower.leakage.measures import Interval

# What an attacker is given of an image.
CODES, LABEL, CONSTANT = "codes", "class", "nothing"
# From this mean similarity on, people recognise most images.
REBUILT = 0.7
_CLEAR = 0.05


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """How well one attacker rebuilds the victims.

    Attributes
    ----------
    attacker : str
        A decoder, or "mean image".
    knows : {"codes", "class", "nothing"}
        What it is given of an image.
    ssim, psnr : Interval
        Means over the victims; PSNR in dB.
    median_rank : float
        Of the true image among all victims, by its distance from what was rebuilt; 1 is best.
    first : float
        Share of victims with rank 1.
    validation_ssim : float
        SSIM on auxiliary images that the decoder was stopped by.
    epochs : int
        Trained.
    """

    attacker: str
    knows: str
    ssim: Interval
    psnr: Interval
    median_rank: float
    first: float
    validation_ssim: float
    epochs: int


class Leakage(msgspec.Struct, frozen=True, kw_only=True):
    """The result of an audit.

    Attributes
    ----------
    run, dataset : str
        What was attacked.
    victims, auxiliary, auxiliary_asked : int
        Images rebuilt; images the attacker had, and was to have.
    epochs, seed, looks : int
        Passes at most; seed; states of the network whose codes the attacker had.
    bits : int or None
        Of an image's codes in a look; None where numbers cross the cut.
    numbers : int
        That the attacker had of an image, of all looks together.
    unique : float
        Share of victims whose codes no other victim has, so that who has the image finds it.
    findings : tuple of Finding
        Of all attackers, the floors among them.
    """

    run: str
    dataset: str
    victims: int
    auxiliary: int
    auxiliary_asked: int
    epochs: int
    seed: int
    looks: int
    bits: int | None
    numbers: int
    unique: float
    findings: tuple[Finding, ...]

    @property
    def best(self) -> Finding:
        """The strongest attacker with codes, by the auxiliary images."""
        return max((f for f in self.findings if f.knows == CODES), key=lambda found: found.validation_ssim)

    @property
    def floor(self) -> Finding:
        """The strongest attacker without codes, by the auxiliary images."""
        return max((f for f in self.findings if f.knows != CODES), key=lambda found: found.validation_ssim)

    @property
    def verdict(self) -> str:
        """What it means, in one sentence."""
        best, floor = self.best, self.floor
        figures = (
            f"SSIM {best.ssim.mean:.2f}, {best.first:.0%} nearest to the true image; knowing {floor.knows} alone "
            f"{floor.ssim.mean:.2f} and {floor.first:.0%}"
        )
        if best.ssim.low > floor.ssim.high + _CLEAR and best.ssim.mean >= REBUILT:
            return f"Images can be rebuilt from what the server receives ({figures})."
        if best.ssim.low > floor.ssim.high + _CLEAR or best.first > 2 * floor.first + _CLEAR:
            return f"What the server receives shows more of an image than its class ({figures})."
        return f"These attackers rebuild no more than they would without the images' codes ({figures})."

    def rows(self) -> list[tuple[str, ...]]:
        """Return a table: names of columns, then a row for each attacker."""
        head: tuple[str, ...] = (
            "attacker",
            "knows",
            "SSIM (95 %)",
            "PSNR, dB",
            f"median rank of {self.victims}",
            "rank 1",
        )
        return [head] + [
            (
                found.attacker, found.knows,
                f"{found.ssim.mean:.3f} ({found.ssim.low:.3f} to {found.ssim.high:.3f})", f"{found.psnr.mean:.1f}",
                f"{found.median_rank:g}", f"{found.first:.1%}",
            )
            for found in sorted(self.findings, key=lambda found: -found.ssim.mean)
        ]  # fmt: skip

    def lines(self) -> list[str]:
        """Return three sentences: the attack, the verdict, and its limits."""
        crossing = f"{self.bits} bits" if self.bits is not None else f"{self.numbers // self.looks} numbers"
        short = f" (of {self.auxiliary_asked} asked)" if self.auxiliary < self.auxiliary_asked else ""
        looks = "one look" if self.looks == 1 else f"{self.looks} looks joined"
        return [
            f"{self.victims} training images, {crossing} an image and look, {looks}; the attacker has {self.auxiliary} "
            f"other images{short} and may query the trained Uppers.",
            self.verdict,
            f"{self.unique:.1%} of the images have codes that no other has: who already has such an image can find it.",
            "A stronger attacker, or the codes of all training steps together, may show more.",
        ]


def sheet_png(sheet_RNCHW: torch.Tensor, zoom: int = 3) -> bytes:
    """Return a PNG of images (rows, columns, C, H, W) with pixels in 0..1, each enlarged `zoom` times."""
    R, N, C, H, W = sheet_RNCHW.shape
    pixels = (sheet_RNCHW.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    joined = pixels.transpose(0, 3, 1, 4, 2).reshape(R * H, N * W, C)
    picture = Image.fromarray(np.ascontiguousarray(joined[:, :, 0] if C == 1 else joined))
    file = BytesIO()
    picture.resize((N * W * zoom, R * H * zoom), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()
