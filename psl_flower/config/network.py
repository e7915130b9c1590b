"""Settings: the network, where it is cut, and the Uppers' auxiliary losses."""

from __future__ import annotations

from dataclasses import dataclass

from psl_flower.config.fields import Settings, Size, setting
from psl_flower.errors import ConfigError
from psl_flower.models.architectures import BACKBONES, CUTS, STEMS, UPPER_INITS
from psl_flower.patches.grid import LARGE_IMAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings(Settings):
    """Which network is trained, where it is cut, and what the Uppers' auxiliary losses weigh."""

    backbone: str = setting("resnet18", "residual network that is divided into Uppers and Lower", choices=BACKBONES)
    cut: str = setting("layer1", "last stage that runs on the Upper nodes", choices=CUTS)
    stem: str = setting(
        "auto",
        "cifar: 3x3 stem; imagenet: 7x7 with pooling; auto: imagenet from 96 pixels on",
        choices=("auto", *STEMS),
    )
    protection: str = setting("none", "module pair that protects smashed data at the cut; none: no protection")
    upper_init: str = setting(
        "alike", "alike: all Uppers start with the same weights; own: each with its own", choices=UPPER_INITS
    )
    average_every: int = setting(0, "steps between averages of all Uppers' weights; 0: never", least=0)
    alpha: float = setting(1.0, "weight of the Uppers' auxiliary losses (Adaptation Net); 0: none", least=0)
    adaptation_server: bool = setting(
        False, "run the Adaptation Net on an extra node, which then sees smashed data and labels"
    )

    def stem_for(self, image_size: Size) -> str:
        """Return the stem: the one asked for, or by the size of the images."""
        if self.stem != "auto":
            return self.stem
        return "imagenet" if max(image_size) >= LARGE_IMAGE else "cifar"

    def _check(self) -> None:
        if self.protection != "none":
            from psl_flower.models.cut import cut_pair  # loads torch

            cut_pair(self.protection, 1)
        if self.adaptation_server and self.alpha == 0:
            raise ConfigError(
                "adaptation-server: there is no Adaptation Net with alpha = 0; set alpha, or leave it out"
            )
        if self.average_every and self.upper_init == "own":
            raise ConfigError(
                "average-every and upper-init=own contradict each other: Uppers with different initial weights "
                "cannot be averaged usefully; leave one out"
            )
