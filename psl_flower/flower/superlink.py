"""`psl-superlink`: Flower's SuperLink, which serves other hosts only what nodes ask.

All of Flower's APIs share one port, and every client of that port can start runs, register nodes and take over a
ServerApp. `psl-superlink` serves these APIs only to its own user on its own host. Other hosts get the Fleet API, for
which Flower requires the key of a registered node.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from psl_flower.flower.guarded import SUPERLINK, become
from psl_flower.text import printable


def superlink(arguments: Sequence[str] | None = None) -> int:
    """Become `flower-superlink`, guarded, with the same arguments; return 1 if that fails."""
    try:
        become(SUPERLINK, sys.argv[1:] if arguments is None else arguments, dict(os.environ))
    except OSError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
    return 1
