"""Presets: settings of what crosses the cut that belong together, by one word. Settings that are given win over them.

Figures are those of docs/results/leakage-cifar10.json: CIFAR-10, 2,000 training images, network of width 16, 4 epochs;
three seeds for plain, one for codes. SSIM is that of images rebuilt from one look by the best decoder tried, of an
attacker who queries the trained Uppers, or has their weights: 1 for equal images, about .15 for what the class alone
gives. Decoders that join the looks of all epochs had less there: they were too weakly trained to bound what these show
together. In docs/results/leakage-cifar10-all.json, of 50,000 images and 6 epochs, they had more. Not measured: other
networks and data, longer trainings, `looks`, `code-noise` and `gradient-feedback`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from psl_flower.errors import ConfigError

KEY = "preset"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Settings by their kebab-case keys."""

    about: str  #: What it protects, with what was measured of it.
    case: str  #: The case of the result file that it was measured as.
    settings: Mapping[str, Any]  #: The settings; none leaves the defaults.


def _codes(size: int) -> dict[str, Any]:
    return {"cut": "layer4", "protection": "code", "code-size": size, "wire-gradients": "float16"}


PRESETS = {
    "private": Preset(
        about="codes of 16 signs a patch, cut after layer4. Measured with 1 seed on 2x2 patches, 64 bits an "
        "image: SSIM .211 by queries of the Uppers, .211 with their weights; accuracy 33.5 %, where plain has 38.6 %. "
        "On all 50,000 images, 6 epochs: SSIM .202 of all looks joined; accuracy 67.5 %, where plain has 79.9 %",
        case="code16-layer4",
        settings=_codes(16),
    ),
    "balanced": Preset(
        about="codes of 32 signs a patch, cut after layer4. Measured with 1 seed on 2x2 patches, 128 bits an "
        "image: SSIM .217 by queries of the Uppers, .217 with their weights; accuracy 36.0 %, where plain has 38.6 %",
        case="code32-layer4",
        settings=_codes(32),
    ),
    "plain": Preset(
        about="feature maps as they are, cut after layer1: protects nothing. Measured with 3 seeds: SSIM .798 by "
        "queries of the Uppers, .977 with their weights; accuracy 38.6 %",
        case="plain-layer1",
        settings={},
    ),
}


def resolved(values: Mapping[str, Any], is_given: Callable[[str], bool]) -> tuple[dict[str, Any], str]:
    """Return settings with those of their preset in its place, and a line for the user that says so.

    Keys are kebab-case, with `KEY` or without. Settings that a person has given (`is_given`) win.

    Raises
    ------
    ConfigError
        If there is no such preset.
    """
    name = values.get(KEY, "")
    if not name:
        return dict(values), ""
    if name not in PRESETS:
        raise ConfigError(f"{KEY}: expected one of {', '.join(PRESETS)}, got {name!r}")
    preset = PRESETS[name]
    taken = {key: value for key, value in preset.settings.items() if not is_given(key)}
    won = [key for key, value in preset.settings.items() if key not in taken and values[key] != value]
    line = f"preset {name}: {', '.join(f'{key}={value}' for key, value in taken.items()) or 'the defaults'}"
    if won:
        line += f"; given otherwise, so its figures do not hold: {', '.join(f'{key}={values[key]}' for key in won)}"
    return {key: value for key, value in values.items() if key != KEY} | taken, line
