"""Completes names of runs and settings on the command line, for the shell; loads no torch."""

from __future__ import annotations

import click

from psl_flower.errors import PslError


def run_names(ctx: click.Context, args: list[str], incomplete: str) -> list[str]:
    """Return the runs of the workspace given, newest first."""
    from psl_flower.config import default_workspace
    from psl_flower.runs.folder import list_runs

    try:
        names = [run.name for run in list_runs(default_workspace(str(ctx.params.get("workspace") or "")))]
    except PslError:
        return []
    return [name for name in reversed(names) if name.startswith(incomplete)]


def settings(ctx: click.Context, args: list[str], incomplete: str) -> list[tuple[str, str]]:
    """Return the settings that begin so, and the choices of one, each with its meaning."""
    from psl_flower.config.fields import fields_of
    from psl_flower.kinds import setting_groups

    key, equals, value = incomplete.partition("=")
    fields = [field for group in setting_groups().values() for field in fields_of(group)]
    if not equals:
        return [(f"{field.key}=", field.about.doc) for field in fields if field.key.startswith(key)]
    choices = [
        choice
        for field in fields
        if field.key == key
        for choice in (("true", "false") if field.kind is bool else field.about.choices)
    ]
    return [(f"{key}={choice}", "") for choice in choices if choice and choice.startswith(value)]
