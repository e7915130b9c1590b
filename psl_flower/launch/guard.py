"""The local SuperLink's own process: it serves this user alone, and ends with the process that started it.

    python -m psl_flower.launch.guard HOME PROGRAM ARGUMENTS...

Flower's SuperLink takes runs from anybody who reaches its port, and a run's ServerApp may do all that its user may. So
it serves only this user (`psl_flower.launch.only_this_user`). Standard input is the lifeline: when it ends, the
SuperLink and all that it started are killed, and its folder HOME is removed.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
from pathlib import Path

from psl_flower.launch import home
from psl_flower.launch.only_this_user import can_tell, guard_servers
from psl_flower.system.exposure import GUARDED


def main() -> None:
    """Run the SuperLink in this process."""
    folder, program = Path(sys.argv[1]), sys.argv[2]
    # Children inherit standard input; none may hold the lifeline, or read from it.
    lifeline = os.dup(0)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    threading.Thread(target=_end_with, args=(lifeline, folder), daemon=True).start()
    tells = can_tell()
    guard_servers(tells=tells)
    if tells:
        os.environ[GUARDED] = "1"
    sys.argv[:] = sys.argv[2:]
    runpy.run_path(program, run_name="__main__")


def _end_with(lifeline: int, folder: Path) -> None:
    while os.read(lifeline, 1):
        pass
    home.end(folder)
    os._exit(1)


if __name__ == "__main__":
    main()
