"""Protections of smashed data at the cut, as settings; docs/privacy.md says what each protects.

Loads torch only when pairs are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psl_flower.errors import ConfigError

if TYPE_CHECKING:
    from psl_flower.models.cut import CutPair

# none: smashed data as they are. narrow: a few numbers for each patch. code: as many, each of a few levels.
PROTECTIONS = ("none", "narrow", "code")


@dataclass(frozen=True, slots=True, kw_only=True)
class Protection:
    """A choice of protection: makes the `CutPair` for a number of channels, as `psl_flower.models.split` takes it.

    Raises
    ------
    ConfigError
        If there is no such protection.
    """

    name: str = "none"  #: "none", "narrow" or "code": which one.
    size: int = 32  #: Numbers for each patch, 1 or more; for "narrow" and "code".
    levels: int = 2  #: Values that each of them can have, 2 to 256; for "code".
    #: Height and width that a patch's feature map is averaged to before, 1 or more; a smaller map repeats its values.
    pool: int = 2
    #: Deviation of the noise on each number, in its own, 0 for none; for "narrow" and "code". A node draws it from a
    #: secret of its store for each batch (`psl_flower.engine.noise`); an Upper that is given no draw adds none.
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in PROTECTIONS:
            raise ConfigError(f"protection: expected one of {', '.join(PROTECTIONS)}, got {self.name!r}")

    def __call__(self, channels: int) -> CutPair:
        """Return the pair for `channels` channels at the cut, with weights that are not initialised from a seed."""
        from psl_flower.protection.pairs import PAIRS

        return PAIRS[self.name](self, channels)

    def codec(self, chosen: str) -> str:
        """Return the wire codec of what crosses the cut; `chosen` is that of numbers which are no codes."""
        return f"code{self.levels}" if self.name == "code" else chosen

    def bits(self, num_patches: int) -> int | None:
        """Return the bits that the codes of an image take on the wire; None if they are no codes."""
        return num_patches * self.size * (self.levels - 1).bit_length() if self.name == "code" else None
