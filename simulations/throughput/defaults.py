"""Settings of the benchmark's runs: what it chooses unless asked, and what it decides itself."""

from __future__ import annotations

from psl_flower.config import RunConfig

# Throughput does not depend on the schedule; a gentle one keeps the loss of a short run finite. The run through the
# test split at the end is not measured, so two images do.
DEFAULTS: dict[str, object] = {
    "dataset": "digits", "batch-size": 128, "wire-activations": "bfloat16", "wire-gradients": "bfloat16",
    "lr": 0.01, "schedule": "constant", "max-test": 2, "progress-every-s": 0.0,
}  # fmt: skip

# Keys that the benchmark decides, each with the option that asks for it; empty where there is none.
DECIDED = {
    "rounds": "--steps", "steps-per-round": "--steps", "transport": "--transports", "lower-threads": "--threads",
    "upper-threads": "--threads", "workspace": "--keep", "run-name": "", "resume": "", "evaluate-every": "",
    "checkpoint-every": "", "collect-model": "",
}  # fmt: skip


def differing(config: dict[str, str | int | float | bool]) -> dict[str, str | int | float | bool]:
    """Return the settings that were asked for: neither the benchmark's own nor its defaults."""
    usual = RunConfig.from_mapping(DEFAULTS).to_mapping()
    return {key: value for key, value in config.items() if key not in DECIDED and value != usual.get(key)}
