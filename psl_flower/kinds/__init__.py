"""Kinds of runs, as types: Train, Resume, Restore, Predict, Lighten or Audit, made from settings by `kind_of`.

Loads no torch, so that wrong settings are refused at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from psl_flower.config import GROUPS, RunConfig
from psl_flower.config.data import EMBEDDED
from psl_flower.config.fields import Settings, defaults, fields_of, parse, read_texts
from psl_flower.config.presets import resolved
from psl_flower.errors import ConfigError
from psl_flower.kinds.audit import Audit
from psl_flower.kinds.kind import HowToContinue, Kind, Work
from psl_flower.kinds.lighten import Lighten
from psl_flower.kinds.predict import Predict
from psl_flower.kinds.restore import Restore
from psl_flower.kinds.resume import Resume
from psl_flower.kinds.train import Train
from psl_flower.text import expanded, read_pairs

__all__ = [
    "KINDS",
    "Audit",
    "HowToContinue",
    "Kind",
    "Lighten",
    "Predict",
    "Restore",
    "Resume",
    "Train",
    "Work",
    "kind_of",
    "parse_settings",
    "setting_groups",
]

# By the setting that asks for it; a run that none of them asks for trains.
KINDS: dict[str, type[Kind]] = {
    "train": Train,
    "resume": Resume,
    "restore": Restore,
    "predict": Predict,
    "lighten": Lighten,
    "audit": Audit,
}


def setting_groups() -> dict[str, type[Settings]]:
    """Return all groups of settings by their names, those of the kinds included, in the order of pyproject.toml."""
    *before, last = GROUPS.items()
    return dict([*before, *KINDS.items(), last])


def parse_settings(words: Iterable[str]) -> dict[str, object]:
    """Return KEY=VALUE words as a flat mapping for `kind_of` or `RunConfig.from_mapping`, each read by its own type.

    Raises
    ------
    ConfigError
        If a word is not KEY=VALUE, or a key comes twice.
    """
    words = list(words)
    for word in words:
        if "=" not in word and (os.path.exists(expanded(word, "dataset")) or word == EMBEDDED):
            raise ConfigError(f"expected KEY=VALUE, got {word!r}; did you mean dataset={word}?")
    return read_texts(setting_groups().values(), read_pairs(words))


def kind_of(values: Mapping[str, Any]) -> Kind:
    """Return the kind of run that Flower's flat mapping asks for; keys that are absent take their defaults.

    Raises
    ------
    ConfigError
        If a key is unknown, a value mistyped or out of range, or two settings contradict each other.
    """
    groups = setting_groups()
    known = {key: value for group in groups.values() for key, value in defaults(group).items()}
    # Flower's mapping has the defaults of all others.
    values, _ = resolved(values, lambda key: values.get(key, known[key]) != known[key])
    parsed = dict(zip(groups, parse(groups.values(), values, "psl settings lists all"), strict=True))
    config = RunConfig.of_groups(parsed)
    asked = [key for key in KINDS if values.get(key)]
    if len(asked) > 1:
        raise ConfigError(f"{asked[1]} and {asked[0]} contradict each other: a run does one of them")
    chosen = asked[0] if asked else "train"
    for key, kind in KINDS.items():
        for field in fields_of(kind) if key != chosen else ():
            if parsed[key].get(field.name, field.default) != field.default:
                raise ConfigError(f"{field.key}: is set, but {key} is not; name the run with {key}")
    if config.run.run_name and not KINDS[chosen].takes_name:
        raise ConfigError(f"{chosen} and run-name contradict each other: the run has its name; leave run-name out")
    return KINDS[chosen](config=config, **parsed[chosen])
