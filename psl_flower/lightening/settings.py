"""What a lightening is asked to do; loads no torch, so that bad input is refused at once."""

from __future__ import annotations

import dataclasses
import difflib
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, get_args, get_type_hints

from psl_flower.config import Value
from psl_flower.errors import ConfigError
from psl_flower.lightening.search import Conditions
from psl_flower.system.machine import usable_cores
from psl_flower.text import read_pairs

# The largest whole number of a weight, by bits, as onnxruntime has it. Of 7 bits, sums of two products of weights and
# activations fit into 16 bits, and processors without VNNI add up so.
LARGEST_WEIGHT = {7: 64, 8: 127}
SECOND_RATIOS = (1.1, 16.0)
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


class Measure(StrEnum):
    """The cost by which the second model's size is chosen."""

    MULTIPLY_ADDS = "multiply-adds"
    PARAMETERS = "parameters"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The conditions as a user gives them; see `psl_flower.lightening.search.Conditions`.

    Attributes
    ----------
    min_accuracy, max_drop : float or None
        Exactly one of them; `max_drop` is allowed below the first model's accuracy, 0..1.
    min_speed, max_latency_ms : float or None
        Exactly one of them.

    Raises
    ------
    ConfigError
        If a value is out of range, or they are not exactly two.
    """

    min_accuracy: float | None = None
    max_drop: float | None = None
    min_speed: float | None = None
    max_latency_ms: float | None = None

    def __post_init__(self) -> None:
        if (self.min_accuracy is None) == (self.max_drop is None):
            raise ConfigError("give one condition of accuracy: either min-accuracy or max-drop")
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            raise ConfigError(f"max-drop: expected a share of 0 to 1, got {self.max_drop:g}")
        self.conditions(1.0)  # refuses the others before any work

    def conditions(self, first_accuracy: float) -> Conditions:
        """Return them as the loop takes them."""
        least = self.min_accuracy
        if least is None:
            assert self.max_drop is not None
            # Above the threshold is required, and a drop of exactly max_drop is allowed.
            least = max(0.0, math.nextafter(first_accuracy - self.max_drop, 0.0))
        return Conditions(min_accuracy=least, min_speed=self.min_speed, max_latency_ms=self.max_latency_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class LighteningSettings:
    """How the second and third model are made and judged.

    Attributes
    ----------
    second_ratio, measure, growth
        As in `psl_flower.lightening.sizing.choose_second`.
    max_pruned, degrees
        As in `psl_flower.lightening.pruning.ladder`.
    weight_bits : {7, 8}
        Of the int8 weights, those used: 7 are right on every processor, 8 need one with VNNI (or ARM's dot products).
    epochs : int
        Epochs that the second and every third model is trained for; 0: as many as the run.
    rounding_epochs : int
        Epochs of the third after these, under quantisation; 0: a quarter of them, at least one.
    teacher : TeacherChoice
        What the third learns from.
    distil_share : float
        Weight of a teacher's answers in the loss, 0..1; the rest is the labels'.
    distil_first : bool
        First train the first model on the second's answers; as a teacher it is then that one.
    against : Against
        What accuracy is.
    threads : int
        Of onnxruntime, when speed is measured; 1 or more.
    batch : int
        Images at a time, when images per second are measured.
    target : str
        Where speed is measured: `EDGE` is the whole network on this machine; else a node, which measures the Uppers
        that it runs.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    second_ratio: float = 2.0
    measure: Measure = Measure.MULTIPLY_ADDS
    growth: Growth = Growth.WIDTH
    max_pruned: float = 0.875
    degrees: int = 12
    weight_bits: int = 7
    epochs: int = 0
    rounding_epochs: int = 0
    teacher: TeacherChoice = TeacherChoice.SECOND
    distil_share: float = 0.7
    distil_first: bool = False
    against: Against = Against.LABELS
    threads: int = 1
    batch: int = 32
    target: str = EDGE

    def __post_init__(self) -> None:
        if self.weight_bits not in LARGEST_WEIGHT:
            raise ConfigError(f"weight-bits: expected 7 or 8, got {self.weight_bits}")
        least, most = SECOND_RATIOS
        if not least <= self.second_ratio <= most:
            raise ConfigError(
                f"second-ratio: expected {least:g} to {most:g}, got {self.second_ratio:g}: below, there is nothing to "
                "lighten; above, most of the network would be trained to be cut away"
            )
        if not self.target:
            raise ConfigError(f"target: expected {EDGE} or the name of a node, got an empty text")
        if not 0 < self.max_pruned < 1:
            raise ConfigError(f"max-pruned: expected a share above 0 and below 1, got {self.max_pruned:g}")
        if not 0 < self.distil_share <= 1:
            raise ConfigError(f"distil-share: expected a share above 0, at most 1, got {self.distil_share:g}")
        for key, value, lowest in (
            ("degrees", self.degrees, 1),
            ("epochs", self.epochs, 0),
            ("rounding-epochs", self.rounding_epochs, 0),
            ("threads", self.threads, 1),
            ("batch", self.batch, 1),
        ):
            if value < lowest:
                raise ConfigError(f"{key}: expected {lowest} or more, got {value}")


class Request(NamedTuple):
    """What is asked for, and how it is to be found."""

    asked: Asked
    settings: LighteningSettings


def request_of(values: Mapping[str, Value]) -> Request:
    """Return a request of values by their keys; keys that are absent take their defaults.

    `threads` is by default all cores of this machine, and 1 where the target is a node.

    Raises
    ------
    ConfigError
        If a key is unknown, or a value mistyped, out of range or contradictory.
    """
    known = _kinds()
    for key in values.keys() - known.keys():
        alike = difflib.get_close_matches(key, known, n=1)
        rest = f"did you mean {alike[0]}?" if alike else f"known: {', '.join(known)}"
        raise ConfigError(f"unknown key {key}; {rest}")
    typed = {key.replace("-", "_"): _typed(key, value, known[key]) for key, value in values.items()}
    if not typed.get("threads"):
        typed["threads"] = usable_cores() if typed.get("target", EDGE) == EDGE else 1
    asked = {field.name for field in dataclasses.fields(Asked)}
    return Request(
        Asked(**{name: value for name, value in typed.items() if name in asked}),
        LighteningSettings(**{name: value for name, value in typed.items() if name not in asked}),
    )


def parse_request(text: str) -> Request:
    """Return the request that a text spells out, such as "max-drop=0.01 min-speed=2000"; errors as `request_of`."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"expected KEY=VALUE ..., got {text!r} ({error})") from None
    return request_of(read_pairs(words))


def request_text(values: Mapping[str, Value]) -> str:
    """Return values by their keys as a text that `parse_request` reads."""
    texts = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in values.items()}
    return " ".join(shlex.quote(f"{key}={text}") for key, text in texts.items())


def _kinds() -> dict[str, Any]:
    """Return the type of every key's value."""
    hints = get_type_hints(Asked) | get_type_hints(LighteningSettings)
    fields = [*dataclasses.fields(Asked), *dataclasses.fields(LighteningSettings)]
    kinds = {field.name.replace("_", "-"): hints[field.name] for field in fields}
    # A value that may be left out is of the other type where it is given.
    return {key: next((k for k in get_args(kind) if k is not type(None)), kind) for key, kind in kinds.items()}


def _typed(key: str, value: Value, kind: Any) -> Any:
    if issubclass(kind, StrEnum):
        if value not in list(kind):
            raise ConfigError(f"{key}: expected one of {', '.join(kind)}, got {value!r}")
        return kind(value)
    if kind is bool and value in ("true", "false"):
        return value == "true"
    try:
        if kind in (int, float) and not isinstance(value, bool):
            return kind(value)
    except ValueError:
        pass
    if type(value) is kind:
        return value
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    raise ConfigError(f"{key}: expected {names[kind]}, got {value!r}")
