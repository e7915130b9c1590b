"""Settings of the benchmarks' runs: what they choose unless asked, what they decide themselves, what was asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from psl_flower.config import RunConfig
from psl_flower.config.fields import defaults
from psl_flower.errors import ConfigError
from psl_flower.kinds import KINDS, parse_settings
from simulations.reports import Values

# Throughput does not depend on the schedule; a gentle one keeps the loss of a short run finite. The run through the
# test split at the end is not measured, so two images do.
DEFAULTS: dict[str, object] = {
    "dataset": "digits", "batch-size": 128, "wire-activations": "bfloat16", "wire-gradients": "bfloat16",
    "lr": 0.01, "schedule": "constant", "max-test": 2, "progress-every-s": 0.0,
}  # fmt: skip

# A benchmark trains; reports of earlier versions have these settings too.
_OF_KINDS = {key: value for kind in KINDS.values() for key, value in defaults(kind).items()}

# Keys that every benchmark decides, each with the option that asks for it, if any.
DECIDED = {
    "lower-threads": "--threads", "upper-threads": "--threads", "run-name": "", **dict.fromkeys(_OF_KINDS, ""),
    "evaluate-every": "", "checkpoint-every": "", "collect-model": "",
}  # fmt: skip
DECIDED_BUT_THREADS = {key: option for key, option in DECIDED.items() if "threads" not in key}


def merge(
    options: list[str], texts: list[str], decided: Mapping[str, str], chosen: Mapping[str, object] = DEFAULTS
) -> RunConfig:
    """Return a run's settings from KEY=VALUE words: those of a command's options, and those given as words.

    `decided` has the keys that the benchmark decides, each with the option that asks for it, or an empty text; `chosen`
    are the benchmark's defaults.

    Raises
    ------
    ConfigError
        If a setting is unknown, mistyped, contradictory, given twice, or the benchmark's own to decide.
    """
    for key in parse_settings(texts):
        if key in decided:
            raise ConfigError(f"{key}: the benchmark decides it{f'; see {decided[key]}' if decided[key] else ''}")
    return RunConfig.from_mapping({**chosen, **parse_settings([*options, *texts])})


def without(config: RunConfig, decided: Collection[str]) -> Values:
    """Return the settings listed in a report: all but those that the benchmark decides."""
    return {key: value for key, value in config.to_mapping().items() if key not in decided}


def differing(config: Values, chosen: Mapping[str, object] = DEFAULTS) -> Values:
    """Return those of a report's settings that were asked for: other than the benchmark's defaults."""
    usual = _OF_KINDS | RunConfig.from_mapping(chosen).to_mapping()
    return {key: value for key, value in config.items() if value != usual.get(key)}
