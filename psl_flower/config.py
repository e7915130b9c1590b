"""The settings of a run: one frozen object, parsed once from Flower's flat run configuration.

The keys in `[tool.flwr.app.config]` of pyproject.toml are these fields in kebab case, with these defaults; a test
holds the two together.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from psl_flower.errors import ConfigError
from psl_flower.models.architectures import BACKBONES, CUTS, STEMS, UPPER_INITS
from psl_flower.patches.assignment import Method
from psl_flower.patches.grid import LARGE_IMAGE
from psl_flower.text import expanded

TRANSPORTS = ("auto", "stream", "flower")
STORES = ("sealed", "plain")
GRIDS = ("", "auto")
ON_MISSING_NODE = ("wait", "continue")
SCHEDULES = ("one-cycle", "cosine", "constant")
CODECS = ("float32", "bfloat16", "float16", "int8")
# The dataset that needs neither network nor files.
EMBEDDED = "digits"
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

Size = tuple[int, int]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """All settings of a run; sizes are (height, width) in pixels, (0, 0) where the default depends on the images.

    Raises
    ------
    ConfigError
        At construction, if a value is out of range or two values contradict each other.
    """

    # Data
    dataset: str = EMBEDDED
    image_column: str = ""
    label_column: str = ""
    test_fraction: float = 0.2
    max_train: int = 0
    max_test: int = 0
    stores: str = "sealed"
    keys: str = ""
    owner: str = ""
    image_size: Size = (0, 0)
    # Patches
    grid: str = ""
    patch_size: Size = (0, 0)
    stride: Size = (0, 0)
    fit: str = "exact"
    uppers: int = 0
    assignment: str = "scatter"
    # Network
    backbone: str = "resnet18"
    cut: str = "layer1"
    stem: str = "auto"
    protection: str = "none"
    upper_init: str = "alike"
    average_every: int = 0
    alpha: float = 1.0
    adaptation_server: bool = False
    # Training
    rounds: int = 3
    steps_per_round: int = 0
    batch_size: int = 64
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "one-cycle"
    flip: bool = False
    shift: int = 1
    cutout: int = 0
    mixup: float = 0.0
    patch_dropout: float = 0.0
    label_smoothing: float = 0.0
    seed: int = 0
    evaluate_every: int = 1
    evaluate_batch_size: int = 256
    # Machine
    device: str = "auto"
    autocast: bool = False
    lower_threads: int = 0
    upper_threads: int = 0
    # Wire
    transport: str = "auto"
    wire_activations: str = "float32"
    wire_gradients: str = "float32"
    exchange_host: str = "127.0.0.1"
    exchange_port: int = 0
    exchange_advertise: str = ""
    exchange_cert: str = ""
    exchange_key: str = ""
    exchange_client_ca: str = ""
    exchange_plaintext_on_untrusted_network: bool = False
    node_timeout_s: float = 180.0
    step_timeout_s: float = 600.0
    on_missing_node: str = "wait"
    # Run
    workspace: str = ""
    run_name: str = ""
    resume: str = ""
    restore: str = ""
    predict: str = ""
    predict_split: str = "test"
    predict_images: str = ""
    predict_without: str = ""
    predict_light: bool = False
    lighten: str = ""
    lighten_with: str = ""
    checkpoint_every: int = 0
    collect_model: bool = True
    progress_every_s: float = 2.0

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_ranges()
        self._check_contradictions()

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> RunConfig:
        """Parse a flat mapping with kebab-case keys; keys that are absent take their defaults.

        Raises
        ------
        ConfigError
            If a key is unknown, a value has the wrong type (a bool is not an int), or as at construction.
        """
        hints = get_type_hints(cls)
        fields = {field.name.replace("_", "-"): field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(fields))
        if unknown:
            raise ConfigError("; ".join(_unknown(key, list(fields)) for key in unknown))
        typed: dict[str, Any] = {fields[key]: _typed(key, value, hints[fields[key]]) for key, value in values.items()}
        return cls(**typed)

    def to_mapping(self) -> dict[str, str | int | float | bool]:
        """Return all settings as a flat mapping with kebab-case keys, as `from_mapping` takes it."""
        values: dict[str, str | int | float | bool] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            values[field.name.replace("_", "-")] = size_text(value) if isinstance(value, tuple) else value
        return values

    def replace(self, **changes: Any) -> RunConfig:
        """Return a copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def stem_for(self, image_size: Size) -> str:
        """Return the stem: the one asked for, or by the size of the images."""
        if self.stem != "auto":
            return self.stem
        return "imagenet" if max(image_size) >= LARGE_IMAGE else "cifar"

    def workspace_path(self) -> Path:
        """Return the absolute folder of stores and runs: the setting, else $PSL_WORKSPACE, else ~/psl-flower."""
        return default_workspace(self.workspace)

    def keys_path(self) -> Path:
        """Return the absolute folder of this machine's private keys: the setting, else keys/ in the workspace."""
        return expanded(self.keys, "keys").absolute() if self.keys else self.workspace_path() / "keys"

    def check_shift(self, patch_size: Size) -> None:
        """Raise ConfigError if the shift is too large for patches of (height, width) pixels."""
        if self.shift >= min(patch_size):
            raise ConfigError(
                f"shift: {self.shift} pixels would empty patches of {size_text(patch_size)}; "
                f"choose 0 to {min(patch_size) - 1}"
            )

    def uppers_left_out(self) -> frozenset[int]:
        """Return the Uppers that a prediction is to do without."""
        return frozenset(int(text) for text in self.predict_without.split(",") if text)

    def _check_choices(self) -> None:
        _choice("stores", self.stores, STORES)
        _choice("grid", self.grid, GRIDS)
        _choice("fit", self.fit, ("exact", "pad"))
        _choice("assignment", self.assignment, get_args(Method))
        _choice("backbone", self.backbone, BACKBONES)
        _choice("cut", self.cut, CUTS)
        _choice("stem", self.stem, ("auto", *STEMS))
        _choice("upper-init", self.upper_init, UPPER_INITS)
        if self.protection != "none":
            from psl_flower.models.cut import PROTECTIONS  # loads torch

            _choice("protection", self.protection, tuple(PROTECTIONS))
        _choice("schedule", self.schedule, SCHEDULES)
        _choice("transport", self.transport, TRANSPORTS)
        _choice("on-missing-node", self.on_missing_node, ON_MISSING_NODE)
        _choice("wire-activations", self.wire_activations, CODECS)
        _choice("wire-gradients", self.wire_gradients, CODECS)
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f'device: expected "auto", "cpu", "cuda" or "cuda:N", got {self.device!r}')
        if not self.dataset:
            raise ConfigError('dataset: expected "digits", a hub name or a folder, got an empty text')
        _choice("predict-split", self.predict_split, ("test", "train"))
        if not re.fullmatch(r"(\d{1,6}(,\d{1,6})*)?", self.predict_without):
            raise ConfigError(
                f'predict-without: expected numbers of Uppers, such as "0,3", got {self.predict_without!r}'
            )
        for key in ("run-name", "resume", "predict", "lighten"):
            name = getattr(self, key.replace("-", "_"))
            if name and not _RUN_NAME.fullmatch(name):
                raise ConfigError(f"{key}: expected letters, digits, '.', '_' and '-', 100 at most, got {name!r}")

    def _check_ranges(self) -> None:
        for name in ("image_size", "patch_size", "stride"):
            size = getattr(self, name)
            if size != (0, 0) and min(size) < 1:
                raise ConfigError(f"{name.replace('_', '-')}: both sizes must be 1 or more, got {size_text(size)}")
        _range("test-fraction", self.test_fraction, 0.0, 1.0, open_ends=True)
        _range("alpha", self.alpha, 0.0)
        _range("lr", self.lr, 0.0, open_ends=True)
        _range("momentum", self.momentum, 0.0, 1.0)
        _range("weight-decay", self.weight_decay, 0.0)
        _range("mixup", self.mixup, 0.0)
        _range("patch-dropout", self.patch_dropout, 0.0, 1.0)
        if self.patch_dropout == 1:
            raise ConfigError("patch-dropout: with 1 a sample keeps one Upper's patches; choose less, such as 0.1")
        _range("label-smoothing", self.label_smoothing, 0.0, 1.0)
        if self.label_smoothing == 1:
            raise ConfigError("label-smoothing: with 1 every class is as right as any other; choose less, such as 0.1")
        _range("rounds", self.rounds, 1)
        _range("batch-size", self.batch_size, 1, 65_536)
        if self.batch_size == 1:
            raise ConfigError("batch-size: BatchNorm needs 2 or more samples in a batch, got 1")
        _range("evaluate-batch-size", self.evaluate_batch_size, 1, 65_536)
        _range("exchange-port", self.exchange_port, 0, 65_535)
        _range("node-timeout-s", self.node_timeout_s, 0.0, open_ends=True)
        _range("step-timeout-s", self.step_timeout_s, 0.0, open_ends=True)
        _range("seed", self.seed, 0, 2**32 - 1)
        for name in (
            "max_train", "max_test", "uppers", "average_every", "steps_per_round", "shift", "cutout", "evaluate_every",
            "lower_threads", "upper_threads", "checkpoint_every", "progress_every_s",
        ):  # fmt: skip
            _range(name.replace("_", "-"), getattr(self, name), 0)

    def _check_contradictions(self) -> None:
        if self.grid == "auto" and (self.patch_size, self.stride) != ((0, 0), (0, 0)):
            raise ConfigError("grid: auto chooses patch-size and stride from the images; leave these two out")
        if self.stride != (0, 0) and self.patch_size == (0, 0):
            raise ConfigError("stride: is set, but patch-size is not; set patch-size too")
        if self.adaptation_server and self.alpha == 0:
            raise ConfigError(
                "adaptation-server: there is no Adaptation Net with alpha = 0; set alpha, or leave it out"
            )
        if self.average_every and self.upper_init == "own":
            raise ConfigError(
                "average-every and upper-init=own contradict each other: the mean of Uppers that began apart is of no "
                "use; leave one out"
            )
        if self.stores == "plain" and (self.keys or self.owner):
            key = "keys" if self.keys else "owner"
            raise ConfigError(f"{key} and stores=plain contradict each other: plain stores need no key; leave one out")
        if self.resume and self.run_name:
            raise ConfigError("resume and run-name contradict each other: a resumed run keeps its name")
        if self.restore and self.resume:
            raise ConfigError("restore and resume contradict each other: a run trains, or it restores images")
        if bool(self.exchange_cert) != bool(self.exchange_key):
            raise ConfigError("exchange-cert and exchange-key belong together: give both files, or neither")
        if self.exchange_plaintext_on_untrusted_network and (self.exchange_cert or self.exchange_client_ca):
            raise ConfigError(
                "exchange-plaintext-on-untrusted-network contradicts exchange-cert and exchange-client-ca: "
                "streams are in plaintext or they are not"
            )
        self._check_prediction()
        self._check_lightening()
        if self.patch_size != (0, 0):
            self.check_shift(self.patch_size)

    def _check_prediction(self) -> None:
        if self.predict:
            for key, given in (("resume", self.resume), ("restore", self.restore)):
                if given:
                    raise ConfigError(f"predict and {key} contradict each other: a run does one of them")
            return
        default = {name: field.default for name, field in type(self).__dataclass_fields__.items()}
        for name in ("predict_split", "predict_images", "predict_without", "predict_light"):
            if getattr(self, name) != default[name]:
                raise ConfigError(f"{name.replace('_', '-')}: is set, but predict is not; name the run with predict")

    def _check_lightening(self) -> None:
        if not self.lighten:
            if self.lighten_with:
                raise ConfigError("lighten-with: is set, but lighten is not; name the run with lighten")
            return
        for key in ("run-name", "resume", "restore", "predict"):
            if getattr(self, key.replace("-", "_")):
                raise ConfigError(f"lighten and {key} contradict each other: leave one out")


def default_workspace(setting: str = "") -> Path:
    """Return the absolute workspace folder: `setting`, else $PSL_WORKSPACE, else ~/psl-flower."""
    return expanded(setting or os.environ.get("PSL_WORKSPACE") or "~/psl-flower", "workspace").absolute()


def parse_size(key: str, value: object) -> Size:
    """Return (height, width) of "16x24", "16" or 16; (0, 0) of an empty text.

    Raises
    ------
    ConfigError
        If the value is none of these, or a size is below 1.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return _positive(key, (value, value))
    if isinstance(value, str):
        if not value:
            return 0, 0
        match = re.fullmatch(r"(-?\d{1,6})(?:x(-?\d{1,6}))?", value.strip())
        if match:
            height = int(match[1])
            return _positive(key, (height, int(match[2]) if match[2] else height))
    raise ConfigError(f'{key}: expected a size such as "16x16" (height x width, in pixels), got {value!r}')


def _positive(key: str, size: Size) -> Size:
    # Here and not at construction: there (0, 0) stands for a size that is not set.
    if min(size) < 1:
        raise ConfigError(f"{key}: both sizes must be 1 or more, got {size[0]}x{size[1]}")
    return size


def size_text(size: Size) -> str:
    """Return "16x24" of (16, 24); an empty text of (0, 0)."""
    return "" if size == (0, 0) else f"{size[0]}x{size[1]}"


def _unknown(key: str, known: list[str]) -> str:
    alike = difflib.get_close_matches(key.replace("_", "-"), known, n=1)
    return f"unknown setting {key}; " + (f"did you mean {alike[0]}?" if alike else "psl settings lists all")


def _typed(key: str, value: object, kind: Any) -> object:
    if kind == Size:
        return parse_size(key, value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
        raise ConfigError(f"{key}: expected {names[kind]}, got {value!r}")
    return value


def _choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        named = (choice or "an empty text" for choice in choices)
        raise ConfigError(f"{key}: expected one of {', '.join(named)}, got {value!r}")


def _range(key: str, value: float, least: float, most: float = math.inf, *, open_ends: bool = False) -> None:
    inside = least < value < most if open_ends else least <= value <= most
    if not inside or not math.isfinite(value):
        ends = ("above", "below") if open_ends else ("at least", "at most")
        limits = f"{ends[0]} {least:g}" + (f" and {ends[1]} {most:g}" if math.isfinite(most) else "")
        raise ConfigError(f"{key}: expected a number {limits}, got {value!r}")
