"""`psl train --config FILE.toml`: settings in a file, such as the config.toml of a run."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from psl_flower.errors import ConfigError, RunError
from psl_flower.runs.folder import CONFIG_FILE, RunFolder
from psl_flower.runs.history import extensions
from psl_flower.system.files import read_file
from psl_flower.text import expanded

_LIMIT = 1 << 20


def settings_in(file: str) -> tuple[dict[str, object], list[str]]:
    """Return the settings in a TOML file by their keys, and lines for people.

    Tables divide the file for its readers only: a key counts the same in any of them. Of a run's own config.toml all
    but the run's name is taken, since a new run needs another one. Paths in it are relative to the current folder, as
    on the command line.

    Raises
    ------
    ConfigError
        If it is not TOML, or a key comes twice.
    RunError
        If it cannot be read, or belongs to a run that did not train.
    """
    path = expanded(file, "--config").absolute()
    try:
        found = tomllib.loads(read_file(path, RunError, limit=_LIMIT).decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--config {path}: not a TOML file: {error}") from None
    run = RunFolder(path.parent)
    if run.read_status() is None or path.name != CONFIG_FILE:
        return _flat(found, path), []
    if run.instead:
        raise RunError(f"--config {path}: the run was made with {run.instead}; it trained nothing to repeat")
    given: dict[str, object] = {
        key: value for key, value in run.read_config().to_mapping().items() if key != "run-name"
    }
    notes = [f"settings of run {run.name}; the new run gets another name"]
    for change in extensions(run):
        notes.append(
            f"run {run.name} was extended from {change.before} to {change.rounds} rounds after step {change.step}, so "
            "the same settings from the start give other weights"
        )
    return given, notes


def _flat(tables: Mapping[str, Any], path: Path) -> dict[str, object]:
    given: dict[str, object] = {}
    for key, value in tables.items():
        for name, inner in value.items() if isinstance(value, dict) else [(key, value)]:
            if name in given:
                raise ConfigError(f"--config {path}: {name} is given twice")
            given[name] = inner
    return given
