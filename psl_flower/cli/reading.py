"""What commands that read a dataset share: the settings of the reading, and its account."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from psl_flower.cli.output import say
from psl_flower.errors import ConfigError

if TYPE_CHECKING:
    from psl_flower.data.account import Account
    from psl_flower.data.options import SourceOptions

ReadingSettings = Annotated[
    list[str] | None,
    typer.Argument(
        help="How to read it, such as train-split=train+val or read-as=tables; psl settings explains them.",
        metavar="KEY=VALUE",
    ),
]


def reading_options(words: Sequence[str], **given: Any) -> SourceOptions:
    """Return the options of a reading: KEY=VALUE words, and those given otherwise.

    Raises
    ------
    ConfigError
        As `reading_values`, or if a value is not fit.
    """
    from psl_flower.data.options import SourceOptions

    return SourceOptions(**{name: value for name, value in given.items() if value} | reading_values(words))


def reading_values(words: Sequence[str]) -> dict[str, Any]:
    """Return KEY=VALUE words as options of a reading by their names in Python.

    Raises
    ------
    ConfigError
        If a word is not one of these settings, or its value has another type.
    """
    from dataclasses import fields

    from psl_flower.config import GROUP_OF, GROUPS
    from psl_flower.config.fields import fields_of
    from psl_flower.data.options import SourceOptions
    from psl_flower.text import read_pairs

    names = [field.name for field in fields(SourceOptions)]
    known = {f.key: f for name in names for f in fields_of(GROUPS[GROUP_OF[name]]) if f.name == name}
    values: dict[str, Any] = {}
    for key, text in read_pairs(words).items():
        if key not in known:
            option = "; write --image-size HEIGHTxWIDTH to psl ingest" if key == "image-size" else ""
            raise ConfigError(f"{key}: is no setting of how to read a dataset{option}; these are {', '.join(known)}")
        values[known[key].name] = known[key].typed(known[key].read(text))
    return values


def account_json(account: Account) -> object:
    """Return an account for a report in JSON."""
    import msgspec

    return msgspec.to_builtins(account)


def print_account(account: Account) -> None:
    """Print an account for people."""
    for line in account.lines():
        say(line)
