"""Settings that the benchmark decides itself."""

from __future__ import annotations

from simulations.throughput import defaults

# Keys that the benchmark decides, each with the option that asks for it; empty where there is none.
DECIDED = {
    **defaults.DECIDED,
    "rounds": "", "steps-per-round": "--steps", "transport": "", "workspace": "", "max-train": "--images",
    "stores": "", "keys": "", "owner": "", "restore": "", "image-size": "",
}  # fmt: skip
