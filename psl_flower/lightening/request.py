"""A lightening as a user asks for it: conditions and settings as KEY=VALUE, on the command line or in a run's settings.

The keys are the fields of `Asked` and `LighteningSettings` in kebab case, such as "max-drop=0.01 min-speed=2000".
"""

from __future__ import annotations

import dataclasses
import difflib
import shlex
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple, get_args, get_type_hints

from psl_flower.errors import ConfigError
from psl_flower.lightening.settings import EDGE, Asked, LighteningSettings
from psl_flower.system.machine import usable_cores
from psl_flower.text import read_pairs

Value = str | int | float | bool


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
