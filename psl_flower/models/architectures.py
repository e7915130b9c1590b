"""Names of backbones, stems and cuts, and what follows from them without building a network (or loading torch)."""

from __future__ import annotations

from dataclasses import dataclass

from psl_flower.errors import ConfigError

BACKBONES = ("resnet18", "resnet34", "resnet50")
STEMS = ("cifar", "imagenet")
# What convolutions of Uppers find beyond the border of a patch.
PADDINGS = ("zeros", "replicate")
# Whether all Uppers begin with the same weights (`psl_flower.models.split.upper_seed`).
UPPER_INITS = ("alike", "own")
_STAGES = ("layer1", "layer2", "layer3", "layer4")
CUTS = ("stem", *_STAGES, "pool")
# The first stage's channels in torchvision's networks.
WIDTH = 64
_DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
# Those of bottleneck blocks.
BOTTLENECKED = frozenset({"resnet50"})


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneSize:
    """How deep and wide a residual network is.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    depths: tuple[int, int, int, int]  #: Blocks of each stage, 1 or more.
    #: Channels of each stage's blocks, 1 or more; the stem has those of the first stage. The output of a bottleneck
    #: block is 4 times as wide.
    widths: tuple[int, int, int, int]

    def __post_init__(self) -> None:
        for name, sizes in (("depths", self.depths), ("widths", self.widths)):
            if len(sizes) != len(_STAGES) or min(sizes) < 1:
                raise ConfigError(f"{name}: expected {len(_STAGES)} numbers of 1 or more, got {sizes}")


def backbone_size(backbone: str, width: int = WIDTH) -> BackboneSize:
    """Return the size of a backbone whose first stage has `width` channels, and every later one twice the one before.

    At the default width it is torchvision's.
    """
    return BackboneSize(depths=_DEPTHS[backbone], widths=(width, 2 * width, 4 * width, 8 * width))


def check_architecture(backbone: str, stem: str, padding: str = "zeros") -> None:
    """Raise ConfigError if there is no such backbone, stem or padding."""
    if backbone not in BACKBONES:
        raise ConfigError(f"backbone: expected one of {', '.join(BACKBONES)}, got {backbone!r}")
    if stem not in STEMS:
        raise ConfigError(f"stem: expected one of {', '.join(STEMS)}, got {stem!r}")
    if padding not in PADDINGS:
        raise ConfigError(f"padding: expected one of {', '.join(PADDINGS)}, got {padding!r}")


def last_stage(cut: str) -> str:
    """Return torchvision's name of the last stage on the Upper; raises ConfigError if there is no such cut."""
    if cut not in CUTS:
        raise ConfigError(f"cut: expected one of {', '.join(CUTS)}, got {cut!r}")
    return {"stem": "maxpool", "pool": "avgpool"}.get(cut, cut)


def reduction(cut: str, stem: str) -> int:
    """Return the factor from the map at the cut to the patch, each way; of "pool", before pooling."""
    factor = 1 if stem == "cifar" else 4
    for _ in CUTS[CUTS.index("layer2") : CUTS.index(cut) + 1]:
        factor *= 2
    return factor // 2 if cut == "pool" else factor


def check_context(context: int, cut: str, stem: str) -> None:
    """Raise ConfigError unless a context, in pixels, is whole places of the map at the cut."""
    step = reduction(cut, stem)
    if context % step:
        below = context - context % step
        raise ConfigError(
            f"context: {context} is no multiple of {step}, by which the network reduces patches up to cut={cut}; "
            f"the nearest are {below} and {below + step}"
        )


def smashed_channels(backbone: str, cut: str, size: BackboneSize | None = None) -> int:
    """Return the channels at the cut, before any protection; `size` as in `psl_flower.models.split.Upper`."""
    widths = (size or backbone_size(backbone)).widths
    if cut == "stem":
        return widths[0]
    expansion = 4 if backbone in BOTTLENECKED else 1
    last = "layer4" if cut == "pool" else last_stage(cut)
    return widths[_STAGES.index(last)] * expansion
