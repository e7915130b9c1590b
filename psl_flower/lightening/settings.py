"""Goals and settings of a lightening, read from KEY=VALUE words; loads no torch.

The keys are the fields of `Goals` and `LighteningSettings` in kebab case, such as "max-drop=0.01 min-speed=2000": the
options of `psl lighten`, and what the setting `lighten-with` of a run holds.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from psl_flower.config import RunConfig
from psl_flower.config.fields import Settings, fields_of, flat, parse, read_texts, setting
from psl_flower.errors import ConfigError
from psl_flower.lightening.search import Conditions
from psl_flower.system.machine import usable_cores
from psl_flower.text import read_pairs

# The largest whole number of a weight, by bits, as onnxruntime has it. Of 7 bits, sums of two products of weights and
# activations fit into 16 bits, and processors without VNNI add up so.
LARGEST_WEIGHT = {7: 64, 8: 127}
EDGE = "edge"


class TeacherChoice(StrEnum):
    """What the third model learns from: labels alone, or also the answers of the first or second."""

    LABELS = "labels"
    FIRST = "first"
    SECOND = "second"


class Against(StrEnum):
    """What accuracy is: agreement with the labels, or with the first model's answers."""

    LABELS = "labels"
    FIRST = "first"


class Growth(StrEnum):
    """How the second model is larger than the first; "both" makes both grow."""

    WIDTH = "width"
    DEPTH = "depth"
    BOTH = "both"


class Method(StrEnum):
    """How a light model is looked for: first among the models that exist, or by the loop alone."""

    AUTO = "auto"
    LOOP = "loop"


class Measure(StrEnum):
    """The cost by which the second model's size is chosen."""

    MULTIPLY_ADDS = "multiply-adds"
    PARAMETERS = "parameters"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goals(Settings):
    """The conditions as a user gives them, one of accuracy and one of speed, and how they are to be reached."""

    min_accuracy: float | None = setting(None, "accuracy to exceed, below 1", least=0, most=1)
    max_drop: float | None = setting(None, "instead: largest allowed loss of accuracy", least=0, most=1)
    min_speed: float | None = setting(None, "images/s to exceed, in batches", above=0)
    max_latency_ms: float | None = setting(None, "instead: milliseconds that one image must stay below", above=0)
    max_mb: float | None = setting(None, "largest size of model.onnx, in MB", above=0)
    method: Method = setting(
        Method.AUTO, "auto: try existing models first, such as the run's own in int8; loop: always prune the second"
    )

    def conditions(self, first_accuracy: float) -> Conditions:
        """Return the thresholds that the search takes; `first_accuracy` is the first model's, 0..1."""
        least, words = self.min_accuracy, ""
        if least is None:
            assert self.max_drop is not None
            # Above the threshold is required, and a drop of exactly max_drop is allowed.
            least = max(0.0, math.nextafter(first_accuracy - self.max_drop, 0.0))
            points = f"{100 * self.max_drop:g}"
            noun = "point" if points == "1" else "points"
            words = f"accuracy at least {least:.2%} ({first_accuracy:.2%} less {points} {noun})"
        return Conditions(
            min_accuracy=least,
            min_speed=self.min_speed,
            max_latency_ms=self.max_latency_ms,
            max_bytes=None if self.max_mb is None else self.max_mb * 1e6,
            accuracy_text=words,
        )

    def _check(self) -> None:
        if self.min_accuracy == 1:
            raise ConfigError("min-accuracy: no accuracy exceeds 1; choose less, such as 0.99")
        if (self.min_accuracy is None) == (self.max_drop is None):
            raise ConfigError("give one condition of accuracy: either min-accuracy or max-drop")
        if (self.min_speed is None) == (self.max_latency_ms is None):
            raise ConfigError("give one condition of speed: either min-speed or max-latency-ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class LighteningSettings(Settings):
    """How the second and third model are made and judged; `target` is `EDGE` or the name of a node."""

    # Less leaves nothing to prune; of more, most would be trained to be pruned.
    second_ratio: float = setting(2.0, "size of the second model over that of the first", least=1.1, most=16)
    measure: Measure = setting(Measure.MULTIPLY_ADDS, "which size that is")
    growth: Growth = setting(Growth.WIDTH, "how the second model is larger")
    max_pruned: float = setting(0.875, "share of channels pruned at the last degree", above=0, below=1)
    degrees: int = setting(12, "degrees of lightening beyond 0, which only quantises", least=1)
    weight_bits: int = setting(7, "bits of weights: 7 for every processor, 8 where it has VNNI", least=7, most=8)
    epochs: int = setting(0, "epochs of each training; 0: as many as the run", least=0)
    rounding_epochs: int = setting(0, "epochs of training under quantisation; 0: a quarter of epochs", least=0)
    teacher: TeacherChoice = setting(TeacherChoice.SECOND, "what the third model learns from")
    distil_share: float = setting(
        0.7, "weight of the teacher's answers in the loss; the rest is the labels'", least=0, most=1
    )
    distil_first: bool = setting(False, "first train the first model on the second's answers, also as a teacher")
    against: Against = setting(Against.LABELS, "what accuracy is: agreement with the labels, or with the first model")
    threads: int = setting(1, "threads of onnxruntime when speed is measured", least=1)
    batch: int = setting(32, "images at a time when images/s are measured", least=1)
    target: str = setting(EDGE, "where speed is measured: the whole network here, or the Uppers of the node named")

    def _check(self) -> None:
        if self.distil_share == 0:
            raise ConfigError("distil-share: with 0 no teacher is learnt from; choose more, or set teacher=labels")
        if not self.target:
            raise ConfigError(f"target: expected {EDGE} or the name of a node, got an empty text")


GROUPS = (Goals, LighteningSettings)


class Request(NamedTuple):
    """Goals and settings together."""

    goals: Goals
    settings: LighteningSettings

    def text(self) -> str:
        """Return the request as `parse_request` reads it."""
        values = flat(self.goals) | flat(self.settings)
        texts = {key: str(value).lower() if isinstance(value, bool) else value for key, value in values.items()}
        if self.goals.max_drop is not None:
            texts["max-drop"] = f"{100 * self.goals.max_drop:.9f}%"  # which `parse_drop` takes for any number
        return shlex.join(f"{key}={text}" for key, text in texts.items())


def parse_drop(text: str) -> float:
    """Return the share of a loss of accuracy as people write it: "0.01", "1%", "1pt" or "1 points" are all 0.01.

    Raises
    ------
    ConfigError
        If it has another form, or is a bare number of 1 and more, which may be meant either way.
    """
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?|\.\d{1,9})\s*(%|pts?|points?)?\s*", text)
    if match is None:
        raise ConfigError(f"max-drop: expected a share such as 0.01, or points such as 1pt or 1%, got {text!r}")
    number, unit = float(match[1]), match[2]
    if unit is None and number >= 1:
        raise ConfigError(
            f"max-drop: {text} may be meant in points or as a share; write {number:g}pt for {number:g} percentage "
            f"point{'s' * (number != 1)}, or a share below 1 such as 0.01"
        )
    return number / 100 if unit else number


def request_of(values: Mapping[str, object]) -> Request:
    """Return a request of values by their keys; keys that are absent take their defaults.

    `threads` is by default, and where it is 0, all cores of this machine, and 1 where the target is a node.

    Raises
    ------
    ConfigError
        If a key is unknown, or a value mistyped, out of range or contradictory.
    """
    if values.get("threads", 0) == 0:
        values = {**values, "threads": usable_cores() if values.get("target", EDGE) == EDGE else 1}
    keys = ", ".join(field.key for group in GROUPS for field in fields_of(group))
    goals, settings = parse(GROUPS, values, f"known: {keys}")
    return Request(Goals(**goals), LighteningSettings(**settings))


def parse_request(text: str) -> Request:
    """Return the request that a text spells out, such as "max-drop=0.01 min-speed=2000"; errors as `request_of`."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"expected KEY=VALUE ..., got {text!r} ({error})") from None
    pairs = read_pairs(words)
    if "max-drop" in pairs:
        pairs["max-drop"] = str(parse_drop(pairs["max-drop"]))
    return request_of(read_texts(GROUPS, pairs))


def check_noiseless(config: RunConfig) -> None:
    """Raise ConfigError if a run adds noise to its codes: light Uppers on the nodes, and teachers, would send none."""
    if config.network.code_noise:
        raise ConfigError(
            "this run adds noise to its codes (code-noise), which light Uppers on the nodes would not; lighten a "
            "collected model in one place, with psl lighten RUN, or train without code-noise (docs/privacy.md)"
        )
