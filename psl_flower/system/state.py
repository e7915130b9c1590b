"""The one folder where a user's state is kept: what was seen of datasets, and the weights of nodes.

$PSL_STATE, else psl-flower in the XDG state folder ($XDG_STATE_HOME, or ~/.local/state)
seen.json      what was seen of datasets, `psl_flower.sealed.seen`
node/          checkpoints of the Uppers that this user's nodes hold, where node-config names no `state`
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from psl_flower.errors import ConfigError
from psl_flower.system.files import disk_errors
from psl_flower.system.folders import make_folder

VARIABLE = "PSL_STATE"


def state_home() -> Path:
    """Return the folder of this user's state, which need not be there yet.

    Raises
    ------
    ConfigError
        If no home folder is known.
    StoreUnreachable
        If the disk refuses to move the folder that an earlier version used.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    usual = _home() / ".local" / "state"
    return _moved(usual / "psl-flower", Path(os.environ.get("XDG_STATE_HOME") or usual) / "psl-flower")


def node_state() -> Path:
    """Return the folder where nodes of this user keep their state by default; raises what `state_home` does."""
    folder = state_home() / "node"
    # $PSL_STATE may be set for a short while: no place to move a node's weights to.
    return folder if os.environ.get(VARIABLE) else _moved(_home() / ".psl-flower" / "state", folder)


def note_moved(old: Path, new: Path) -> None:
    """Say on standard error that the state of an earlier version has moved."""
    print(f"psl-flower: moved this user's state from {old} to {new}", file=sys.stderr, flush=True)


def _moved(old: Path, new: Path) -> Path:
    if old != new and old.exists() and not new.exists():
        make_folder(new.parent)
        with disk_errors(old, f"moved to {new}", advice="move it yourself"):
            try:
                old.rename(new)
            except FileNotFoundError:
                return new  # another process has just moved it
        note_moved(old, new)
    return new


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:
        raise ConfigError(f"{VARIABLE}: name a folder for this user's state; {error}") from None
