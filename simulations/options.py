"""A benchmark's options: declared as fields, read from the command line, printed as words to type again."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from psl_flower.config.fields import Field, Settings, fields_of
from psl_flower.errors import ConfigError

T = TypeVar("T")
Asked = TypeVar("Asked", bound=Settings)
_SEVERAL = "several"


def several(default: tuple[T, ...], doc: str, read: Callable[[str], T]) -> tuple[T, ...]:
    """Declare an option that takes values with commas between, none of them twice; `setting` declares all others.

    `read` returns the value of a text, or raises ConfigError.
    """
    field: tuple[T, ...] = dataclasses.field(default=default, metadata={_SEVERAL: (doc, read)})
    return field


def one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    """Return a reader of values for `several`."""

    def read(text: str) -> str:
        if text not in choices:
            raise ConfigError(f"expected some of {','.join(choices)}, got {text!r}")
        return text

    return read


def number(text: str) -> float:
    """Read a finite number of 0 or more, for `several`."""
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise ConfigError(f"expected a number of 0 or more, got {text!r}")
    return found


def seed(text: str) -> int:
    """Read a whole number from 0 to 2**32 - 1, for `several`."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise ConfigError(f"expected a whole number of 0 or more, got {text!r}")
    return int(text)


def add_options(parser: argparse.ArgumentParser, kind: type[Settings]) -> None:
    """Add an argument for every option that a dataclass declares."""
    single = {field.name: field for field in fields_of(kind)}
    for field in dataclasses.fields(kind):
        flag, key = f"--{_option(field.name)}", field.name.replace("_", "-")
        if _SEVERAL in field.metadata:
            doc, read = field.metadata[_SEVERAL]
            parser.add_argument(
                flag, dest=field.name, type=_Reader(key, partial(_read_several, read)), default=field.default,
                metavar="LIST", help=_with_default(doc, field.default),
            )  # fmt: skip
        elif single[field.name].kind is bool:
            parser.add_argument(flag, action="store_true", help=single[field.name].about.doc)
        else:
            about = single[field.name].about
            parser.add_argument(
                flag, type=_Reader(key, partial(_read, single[field.name])), default=field.default,
                choices=about.choices or None, help=_with_default(about.doc, field.default),
            )  # fmt: skip


def read_options(given: argparse.Namespace, kind: type[Asked]) -> Asked:
    """Return the options among parsed arguments; raises ConfigError if they contradict each other."""
    make: Callable[..., Asked] = kind
    return make(**{field.name: getattr(given, field.name) for field in dataclasses.fields(kind)})


def texts(options: Settings) -> dict[str, str]:
    """Return options as a person types them, by name: a flag as an empty text; absent ones are left out."""
    declared = {field.name for field in fields_of(type(options))}
    values = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if field.name in declared or _SEVERAL in field.metadata
    }
    return {
        _option(name): "" if value is True else text_of(value)
        for name, value in values.items()
        if value is not None and value is not False and value != ""
    }


def text_of(value: object) -> str:
    """Return a value as a person types it."""
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return ",".join(map(text_of, value))
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _option(name: str) -> str:
    # The help states a unit.
    return name.removesuffix("_ms").replace("_", "-")


def _with_default(doc: str, default: object) -> str:
    return doc if doc.endswith("]") or default in (None, "") else f"{doc} [{text_of(default)}]"


class _Reader:
    """Reads an argument; raises for a bad one as argparse expects."""

    def __init__(self, key: str, read: Callable[[str], object]) -> None:
        self._key, self._read = key, read

    def __call__(self, text: str) -> object:
        try:
            return self._read(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix(f"{self._key}: ")) from None


def _read(field: Field, text: str) -> object:
    value = field.typed(field.read(text))
    field.about.check(field.key, value)
    return value


def _read_several(read: Callable[[str], T], text: str) -> tuple[T, ...]:
    values = tuple(read(part) for part in text.split(",") if part)
    if not values or len(set(values)) < len(values):
        raise ConfigError(f"expected one value or more, none of them twice, got {text!r}")
    return values
