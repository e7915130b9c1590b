"""Names of the models of a lightening: in folders and logs, and for people."""

from __future__ import annotations

import re

FIRST, FIRST_INT8, FIRST_DISTILLED, SECOND = "first", "first-int8", "first-distilled", "second"
_TITLES = {
    FIRST: "first (the run's), float32",
    FIRST_INT8: "first, directly in int8",
    FIRST_DISTILLED: "first, taught by the second, float32",
    SECOND: "second, float32",
}
_FLOAT = "-float32"


def degree_name(degree: int) -> str:
    """Return the name of a degree's folder and log entries; its files are in int8."""
    return f"degree-{degree:03d}"


def float_name(degree: int) -> str:
    """Return the name of the same third model before it is trained under rounding, in float32."""
    return f"{degree_name(degree)}{_FLOAT}"


def title_of(what: str) -> str:
    """Return the title of a model for people."""
    if (match := re.match(r"degree-(\d+)", what)) is None:
        return _TITLES[what]
    return f"third, degree {int(match[1])}, {'float32' if what.endswith(_FLOAT) else 'int8'}"
