"""Typed settings: the declaration of a field in a group of settings, and how values from outside are parsed into it.

A group is a frozen dataclass that derives from `Settings`; each field is declared with `setting`. The settings of a
run, of the baseline and of a lightening are all read, checked and listed here.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from types import NoneType
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from psl_flower.errors import ConfigError
from psl_flower.text import did_you_mean

Size = tuple[int, int]
Value = str | int | float | bool
T = TypeVar("T")

_KEY = "setting"
# Other programs' names for our settings; none is spelled like a name of ours.
_ELSEWHERE = {
    "epoch": "rounds", "epochs": "rounds", "num-epochs": "rounds", "n-epochs": "rounds", "max-epochs": "rounds",
    "learning-rate": "lr", "bs": "batch-size", "batch": "batch-size", "wd": "weight-decay", "gpu": "device",
    "data": "dataset", "data-dir": "dataset", "folder": "dataset", "path": "dataset", "model": "backbone",
    "arch": "backbone", "name": "run-name", "out": "workspace", "output": "workspace", "output-dir": "workspace",
    "img-size": "image-size", "size": "image-size", "imgsz": "image-size", "random-seed": "seed",
    "val-split": "test-split", "amp": "autocast", "hflip": "flip", "patches": "grid", "num-nodes": "uppers",
}  # fmt: skip
_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


class Form(NamedTuple):
    """Form of a text: a regular expression, and how errors name it."""

    pattern: str
    words: str


# Empty where no run is named.
RUN_NAME = Form(r"([A-Za-z0-9][A-Za-z0-9._-]{0,99})?", "letters, digits, '.', '_' and '-', 100 at most")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """Meaning, range and choices of one setting."""

    doc: str  #: Meaning, with its unit; for `psl settings`.
    #: Range of a number: `least` and `most` are allowed themselves, `above` and `below` are not.
    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf
    #: The texts that are allowed; empty: any. A field that is typed as a `Literal` has them from there.
    choices: tuple[str, ...] = ()
    form: Form | None = None  #: Form of a text.
    path: bool = False  #: Whether a text may name a file or folder of this machine.

    def check(self, key: str, value: object) -> None:
        """Raise ConfigError if a value is out of range, of another form or none of the choices."""
        if self.choices and value not in self.choices:
            named = (choice or "an empty text" for choice in self.choices)
            raise ConfigError(f"{key}: expected one of {', '.join(named)}, got {value!r}")
        if isinstance(value, int | float) and not isinstance(value, bool):
            inside = self.least <= value <= self.most and self.above < value < self.below
            if not (inside and math.isfinite(value)):
                raise ConfigError(f"{key}: expected a number {self._range()}, got {value!r}")
        if self.form is not None and not re.fullmatch(self.form.pattern, str(value)):
            raise ConfigError(f"{key}: expected {self.form.words}, got {value!r}")

    def _range(self) -> str:
        ends = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        return (
            " and ".join(f"{end} {value:.12g}" for end, value in ends.items() if math.isfinite(value))
            or "that is finite"
        )


def setting(
    default: T,
    doc: str,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
    choices: Iterable[str] = (),
    form: Form | None = None,
    path: bool = False,
) -> T:
    """Declare a field of a group of settings; see `Description`. Typed as its default, as `dataclasses.field` is."""
    about = Description(
        doc=doc, least=least, above=above, most=most, below=below, choices=tuple(choices), form=form, path=path
    )
    field: T = dataclasses.field(default=default, metadata={_KEY: about})
    return field


class Settings:
    """A group of settings: checked at construction, by the fields' declarations and then by `_check`.

    Raises
    ------
    ConfigError
        At construction, if a value is out of range or two values contradict each other.
    """

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __post_init__(self) -> None:
        for field in fields_of(type(self)):
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                if value != (0, 0):
                    _positive(field.key, value)
            elif value is not None:
                field.about.check(field.key, value)
        self._check()

    def _check(self) -> None:
        """Raise ConfigError if values contradict each other."""


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """One field of a group: its name in Python and outside, the type of its value, and the rest."""

    name: str
    kind: Any
    default: Any
    about: Description

    @property
    def key(self) -> str:
        """The name that people use, in kebab case."""
        return self.name.replace("_", "-")

    def typed(self, value: object) -> object:
        """Return a value from Flower's configuration as this setting's type.

        Raises
        ------
        ConfigError
            If it has another type; a bool is not an int.
        """
        if self.kind == Size:
            return parse_size(self.key, value)
        if issubclass(self.kind, StrEnum):
            if value not in list(self.kind):
                raise ConfigError(f"{self.key}: expected one of {', '.join(self.kind)}, got {value!r}")
            return self.kind(value)
        if self.kind is float and type(value) is int:
            return float(value)
        if type(value) is not self.kind:
            raise ConfigError(f"{self.key}: expected {_NAMES[self.kind]}, got {value!r}")
        return value

    def read(self, text: str) -> Value:
        """Parse a typed text into a value that `typed` takes; text needs no quotes, since the type is known."""
        if self.kind is bool:
            return {"true": True, "false": False}.get(text.lower(), text)
        try:
            if self.kind is int:
                return int(text, 0)
            if self.kind is float:
                return float(text)
        except ValueError:
            return text
        quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
        return text[1:-1] if quoted else text


def fields_of(group: type[Settings]) -> Iterator[Field]:
    """Yield the fields of a group that are settings, in order."""
    hints = get_type_hints(group)
    for field in dataclasses.fields(group):
        if _KEY in field.metadata:
            kind, about = hints[field.name], field.metadata[_KEY]
            if get_origin(kind) is Literal:
                kind, about = str, dataclasses.replace(about, choices=get_args(kind))
            elif NoneType in get_args(kind):
                # A value that may be left out is of the other type where it is given.
                (kind,) = (other for other in get_args(kind) if other is not NoneType)
            yield Field(field.name, kind, field.default, about)


def parse(groups: Iterable[type[Settings]], values: Mapping[str, Any], hint: str) -> list[dict[str, Any]]:
    """Divide a flat mapping with kebab-case keys among groups of settings; return for each the arguments that make it.

    Each key belongs to one of the groups; `hint` says in the error where all keys are listed. Keys that are absent are
    left to defaults.

    Raises
    ------
    ConfigError
        If a key is unknown or a value has the wrong type.
    """
    known = [{field.key: field for field in fields_of(group)} for group in groups]
    keys = [key for group in known for key in group]
    if unknown := sorted(set(values) - set(keys)):
        raise ConfigError("; ".join(_unknown(key, keys, hint) for key in unknown))
    return [{field.name: field.typed(values[key]) for key, field in group.items() if key in values} for group in known]


def read_texts(groups: Iterable[type[Settings]], texts: Mapping[str, str]) -> dict[str, object]:
    """Parse typed texts, by key, into values that `parse` takes; unknown keys stay unchanged."""
    known = {field.key: field for group in groups for field in fields_of(group)}
    return {key: known[key].read(text) if key in known else text for key, text in texts.items()}


def flat(group: Settings) -> dict[str, Any]:
    """Return the values of a group by their kebab-case keys, sizes as texts; those that are None left out."""
    return _outside({field.key: getattr(group, field.name) for field in fields_of(type(group))})


def defaults(group: type[Settings]) -> dict[str, Any]:
    """Return the defaults of a group as `flat` returns values."""
    return _outside({field.key: field.default for field in fields_of(group)})


def _outside(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: size_text(value) if isinstance(value, tuple) else value
        for key, value in values.items()
        if value is not None
    }


def parse_size(key: str, value: object) -> Size:
    """Return (height, width) of "16x24", "16" or 16; (0, 0) of an empty text.

    Raises
    ------
    ConfigError
        If the value has another form, or a size is below 1.
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


def size_text(size: Size) -> str:
    """Return "16x24" of (16, 24); an empty text of (0, 0)."""
    return "" if size == (0, 0) else f"{size[0]}x{size[1]}"


def _positive(key: str, size: Size) -> Size:
    # (0, 0) stands for a size that is not set, but is not one that a person may give.
    if min(size) < 1:
        raise ConfigError(f"{key}: both sizes must be 1 or more, got {size[0]}x{size[1]}")
    return size


def _unknown(key: str, known: list[str], hint: str) -> str:
    name = key.replace("_", "-").lower()
    if _ELSEWHERE.get(name) in known:
        return f"unknown setting {key}; did you mean {_ELSEWHERE[name]}?"
    return f"unknown setting {key}" + (did_you_mean(name, known) or f"; {hint}")
