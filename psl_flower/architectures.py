"""Names of backbones, stems and cuts, and what follows from them without building a network (or loading torch)."""

from __future__ import annotations

from psl_flower.errors import ConfigError

BACKBONES = ("resnet18", "resnet34", "resnet50")
STEMS = ("cifar", "imagenet")
# Images of this many pixels and more get the stem that reduces them (DESIGN.md section 3).
LARGE_IMAGE = 96
_STAGES = ("layer1", "layer2", "layer3", "layer4")
CUTS = ("stem", *_STAGES[:3])


def check_architecture(backbone: str, stem: str) -> None:
    """Raise ConfigError if there is no such backbone or stem."""
    if backbone not in BACKBONES:
        raise ConfigError(f"backbone: expected one of {', '.join(BACKBONES)}, got {backbone!r}")
    if stem not in STEMS:
        raise ConfigError(f"stem: expected one of {', '.join(STEMS)}, got {stem!r}")


def last_stage(cut: str) -> str:
    """Return torchvision's name of the last stage on the Upper.

    Raises
    ------
    ConfigError
        If there is no such cut.
    """
    if cut not in CUTS:
        raise ConfigError(f"cut: expected one of {', '.join(CUTS)}, got {cut!r}")
    return "maxpool" if cut == "stem" else cut


def smashed_channels(backbone: str, cut: str) -> int:
    """Return the channels at the cut, before any protection."""
    if cut == "stem":
        return 64
    expansion = 4 if backbone == "resnet50" else 1
    return (64 << _STAGES.index(last_stage(cut))) * expansion
