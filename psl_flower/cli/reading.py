"""Shared parts of the commands that read a dataset: the settings for reading it, and its account."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from psl_flower.errors import ConfigError

ReadingSettings = Annotated[
    list[str] | None,
    typer.Argument(
        help="How to read it, such as train-split=train+val or read-as=tables; psl settings explains them.",
        metavar="KEY=VALUE",
    ),
]


def given_settings(
    words: Sequence[str], options: Mapping[str, Any] | None = None, also: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the settings that a command was given, by their names in Python.

    Parameters
    ----------
    words : sequence of str
        Arguments KEY=VALUE.
    options : mapping, optional
        What the command's own options were given, by the names of the settings that they stand for; None or an empty
        text: not given.
    also : sequence of str
        Names of further settings that the command takes.

    Raises
    ------
    ConfigError
        If a word is not one of these settings, a value has another type, or an option and a word contradict each other.
    """
    from dataclasses import fields

    from psl_flower.config import GROUP_OF, GROUPS
    from psl_flower.config.fields import fields_of
    from psl_flower.data.options import SourceOptions
    from psl_flower.text import read_pairs

    names = [*(field.name for field in fields(SourceOptions)), *also]
    known = {f.key: f for name in names for f in fields_of(GROUPS[GROUP_OF[name]]) if f.name == name}
    texts = {name.replace("_", "-"): value for name, value in (options or {}).items() if value not in (None, "")}
    values = {known[key].name: known[key].typed(value) for key, value in texts.items()}
    for key, text in read_pairs(words).items():
        if key not in known:
            raise ConfigError(f"{key}: is no setting of how to read a dataset; these are {', '.join(known)}")
        value = known[key].typed(known[key].read(text))
        if key in texts and value != values[known[key].name]:
            raise ConfigError(f"--{key} {texts[key]} and {key}={text} contradict each other; give one of them")
        values[known[key].name] = value
    return values
