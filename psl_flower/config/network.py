"""Settings: the network, where it is cut, and the Uppers' auxiliary losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from psl_flower.config.fields import Form, Settings, Size, fields_of, setting
from psl_flower.errors import ConfigError
from psl_flower.models.architectures import (
    BACKBONES,
    CUTS,
    PADDINGS,
    STEMS,
    UPPER_INITS,
    WIDTH,
    BackboneSize,
    backbone_size,
)
from psl_flower.patches.grid import LARGE_IMAGE
from psl_flower.protection import PROTECTIONS, Protection

# Settings that reset what concerns the borders of patches.
BORDERLESS = {"context": 0, "padding": "zeros"}
# The settings that each protection uses; with another they must be left at their defaults.
_USED_BY = {
    "none": (),
    "narrow": ("code_size", "code_pool", "code_noise"),
    "code": ("code_size", "code_levels", "code_pool", "code_noise"),
}
_OF_PROTECTIONS = frozenset(name for used in _USED_BY.values() for name in used)

_HASH = Form(r"(sha256:[0-9a-f]{64})?", "sha256: and 64 hexadecimal digits, as psl pretrain prints it")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings(Settings):
    """Which network is trained, where it is cut, and what the Uppers' auxiliary losses weigh."""

    preset: Literal["", "private", "balanced", "plain"] = setting(
        "",
        "private, balanced: codes from a deep cut; plain: the defaults; settings given besides win (docs/privacy.md)",
    )
    backbone: str = setting("resnet18", "residual network that is divided into Uppers and Lower", choices=BACKBONES)
    backbone_width: int = setting(
        WIDTH, "channels of its first stage; later stages have 2, 4 and 8 times as many", least=1, most=1024
    )
    cut: str = setting(
        "layer1", "last stage that runs on the Upper nodes; pool: the mean over each patch after layer4", choices=CUTS
    )
    stem: str = setting(
        "auto",
        "cifar: 3x3 stem; imagenet: 7x7 with pooling; auto: imagenet from 96 pixels on",
        choices=("auto", *STEMS),
    )
    context: int = setting(
        0, "pixels beside each patch that its Upper computes with, so that seams vanish; needs a margin", least=0
    )
    padding: str = setting(
        "zeros",
        "what convolutions on the Uppers find beyond a patch; replicate: the patch's border, repeated",
        choices=PADDINGS,
    )
    protection: str = setting(
        "none",
        "what crosses the cut; narrow: few numbers a patch, code: few bits (docs/privacy.md)",
        choices=PROTECTIONS,
    )
    code_size: int = setting(32, "with narrow and code: numbers for each patch", least=1, most=65_536)
    code_levels: int = setting(2, "with code: values that each number can have; 2: signs", least=2, most=256)
    code_pool: int = setting(
        2, "with narrow and code: height and width that a patch's map is averaged to before", least=1, most=64
    )
    code_noise: float = setting(
        0.0,
        "with narrow and code: noise on each number before it is rounded, in its standard deviations, from a secret of "
        "each node; 0: none",
        least=0, most=100,
    )  # fmt: skip
    upper_init: str = setting(
        "alike", "alike: all Uppers start with the same weights; own: each with different ones", choices=UPPER_INITS
    )
    upper_weights: str = setting(
        "", "safetensors file of psl pretrain that the Uppers begin with; nodes must allow it", path=True
    )
    upper_weights_hash: str = setting(
        "", "what that file must be, as sha256:...; empty: as it is when the run begins", form=_HASH
    )
    average_every: int = setting(0, "steps between averages of all Uppers' weights; 0: never", least=0)
    alpha: float = setting(1.0, "weight of the Uppers' auxiliary losses (Adaptation Net); 0: none", least=0)
    adaptation_server: bool = setting(
        False, "run the Adaptation Net on an extra node, which then sees smashed data and labels"
    )

    @property
    def name(self) -> str:
        """The backbone in words."""
        return self.backbone + (f" of width {self.backbone_width}" if self.backbone_width != WIDTH else "")

    @property
    def size(self) -> BackboneSize:
        """Depth and width of the backbone."""
        return backbone_size(self.backbone, self.backbone_width)

    @property
    def cut_protection(self) -> Protection:
        """The protection, which makes the pair of modules at the cut."""
        # What the last stage has pooled is one number a channel.
        pool = 1 if self.cut == "pool" else self.code_pool
        return Protection(
            name=self.protection, size=self.code_size, levels=self.code_levels, pool=pool, noise=self.code_noise
        )

    def stem_for(self, image_size: Size) -> str:
        """Return the stem: the one asked for, or by the size of the images."""
        if self.stem != "auto":
            return self.stem
        return "imagenet" if max(image_size) >= LARGE_IMAGE else "cifar"

    def _check(self) -> None:
        if self.preset:
            raise ConfigError(
                f"preset: {self.preset} stands for other settings; psl train and flwr run put them in place"
            )
        unused = _OF_PROTECTIONS - set(_USED_BY[self.protection])
        for field in fields_of(type(self)):
            if field.name in unused and getattr(self, field.name) != field.default:
                raise ConfigError(f"{field.key}: is set, but protection is {self.protection}")
        if self.upper_weights_hash and not self.upper_weights:
            raise ConfigError("upper-weights-hash: is set, but upper-weights names no file; leave it out, or set both")
        if self.adaptation_server and self.alpha == 0:
            raise ConfigError(
                "adaptation-server: there is no Adaptation Net with alpha = 0; set alpha, or leave it out"
            )
        if self.average_every and self.upper_init == "own":
            raise ConfigError(
                "average-every and upper-init=own contradict each other: Uppers with different initial weights "
                "cannot be averaged usefully; leave one out"
            )


# Settings that reset the protection and all of its numbers.
UNPROTECTED: dict[str, Any] = {"protection": "none"} | {
    field.name: field.default for field in fields_of(NetworkSettings) if field.name in _OF_PROTECTIONS
}
