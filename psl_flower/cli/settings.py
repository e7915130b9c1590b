"""The command `psl settings`: what `psl train` and `flwr run` accept."""

from __future__ import annotations

import textwrap
from typing import Annotated

import typer

from psl_flower.config.fields import Field, Value, defaults, fields_of
from psl_flower.errors import ConfigError

_INDENT, _WIDTH = 36, 120


def settings(
    words: Annotated[
        list[str] | None, typer.Argument(help="Only settings with one of these words in name or text.", metavar="WORD")
    ] = None,
) -> None:
    """List the settings of a run, each with its default and meaning, for `psl train KEY=VALUE`."""
    from psl_flower.kinds import setting_groups

    lines = []
    for name, group in setting_groups().items():
        shown = defaults(group)
        found = [_entry(field, shown[field.key]) for field in fields_of(group)]
        found = [entry for entry in found if not words or any(word.lower() in entry.lower() for word in words)]
        lines += [f"# --- {name.capitalize()} ---"] if found and not words else []
        lines += found
    if words and not lines:
        raise ConfigError(f"no setting with {' or '.join(words)}; psl settings lists all")
    typer.echo("\n".join(lines))


def _entry(field: Field, default: Value) -> str:
    shown = str(default).lower() if isinstance(default, bool) else f'"{default}"' if default == "" else str(default)
    choices = [choice for choice in field.about.choices if choice]
    named = all(choice in field.about.doc or choice == default for choice in choices)
    text = field.about.doc + ("" if named else f": {', '.join(choices)}")
    head = f"{field.key}={shown}".ljust(_INDENT - 2) + "  "
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=head,
        subsequent_indent=" " * _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
