"""Keeps other users of this machine out of a simulation: closes Ray to them; `psl train` closes Flower's SuperLink."""

from __future__ import annotations

import os
import secrets
import sys
import threading
from pathlib import Path

# In the environment of a local SuperLink that serves its own user alone, and of all that it starts.
GUARDED = "PSL_SUPERLINK_GUARDED"
_closing = threading.Lock()  # in a simulation ServerApp and ClientApp are loaded by two threads


def closed_ray() -> dict[str, str]:
    """Return the environment in which Ray listens on loopback alone, and answers only those who know a new token."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # So named because this is Ray's default on those systems; on Linux, too, it then binds to loopback.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def close_ray() -> None:
    """Close the Ray that Flower's simulation is about to start in this process; does nothing in any other process.

    Settings of Ray's that the user has made stay as they are.
    """
    if Path(sys.argv[0]).name == "flwr-simulation" and "ray" not in sys.modules:
        with _closing:
            os.environ.update({key: value for key, value in closed_ray().items() if key not in os.environ})


def openings() -> str:
    """Return how others could run code as this user during a simulation in this process; empty if they cannot."""
    doors = []
    if GUARDED not in os.environ:
        doors.append("any user of this machine can start runs as you on Flower's local SuperLink")
    if "RAY_ADDRESS" in os.environ or os.environ.get("RAY_AUTH_MODE") != "token":
        doors.append("anybody who reaches Ray's ports can run code as you (see RAY_ADDRESS and RAY_AUTH_MODE)")
    return ", and ".join(doors)
