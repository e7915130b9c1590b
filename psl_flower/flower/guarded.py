"""Flower's SuperNode or SuperLink in this process, with a guard before its server.

    python -Pm psl_flower.flower.guarded PROGRAM ARGUMENTS...

Unguarded, a SuperNode serves its messages to every user of its host, and a SuperLink lets every client of its port
start runs, register nodes and take over a ServerApp. With the guard, a SuperNode serves only its own user. A SuperLink
serves other users only the Fleet API, where each SuperNode must prove its registered key.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from psl_flower.errors import ConfigError, PslError, RunError
from psl_flower.launch.only_this_user import can_tell, guard_servers
from psl_flower.text import printable

SUPERNODE, SUPERLINK = "flower-supernode", "flower-superlink"
# Each program's module, and its function that starts a server of uvicorn.
_STARTS = {
    SUPERNODE: ("flwr.supernode.cli.flower_supernode", "_start_supernode_http_api"),
    SUPERLINK: ("flwr.superlink.cli.flower_superlink", "_run_superlink_http_api"),
}
# What SuperNodes ask of a SuperLink.
OPEN_TO_NODES = ("/v1/fleet/",)
# These make a SuperLink start other kinds of servers, which the guard does not cover.
_OTHER_SERVERS = ("FLWR_INTERNAL_GRPC_CONTROL_API", "FLWR_INTERNAL_GRPC_FLEET_API")


def become(program: str, arguments: Sequence[str], environment: dict[str, str]) -> None:
    """Become one of Flower's programs, guarded, as the same process.

    Raises
    ------
    OSError
        If it is not installed beside this Python.
    """
    path = Path(sys.executable).with_name(program)
    path.stat()
    command = [sys.executable, "-Pm", __name__, str(path), *arguments]
    os.execve(sys.executable, command, environment)  # nosec B606 # no shell is wanted


def main() -> int:
    """Run the program; return 1 if it cannot be guarded."""
    path = sys.argv[1]
    os.umask(0o077)  # its database has node keys and tokens of runs; other users of the host have no business there
    try:
        _guard(Path(path).name)
    except (PslError, OSError) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 1
    sys.argv[:] = sys.argv[1:]
    runpy.run_path(path, run_name="__main__")
    return 0


def _guard(program: str) -> None:
    name, starts = _STARTS[program]
    module = import_module(name)
    if not hasattr(module, starts) or getattr(module, "uvicorn", None) is not import_module("uvicorn"):
        raise RunError(
            f"this Flower's {program} starts its server in an unknown way and cannot be guarded; install a version "
            "that psl-flower supports"
        )
    tells = can_tell()
    if program == SUPERNODE:
        if not tells:
            print(
                "warning: this system does not report which user owns a connection, so every user of this host can "
                "read this node's messages; keep other users off this host", file=sys.stderr,
            )  # fmt: skip
        guard_servers(tells=tells)
        return
    if not tells:
        raise ConfigError(
            "this system does not say which user owns a connection (/proc/net/tcp), so psl-superlink cannot tell "
            "operators from strangers; start flower-superlink behind a firewall (docs/deploy.md, Server)"
        )
    for variable in _OTHER_SERVERS:
        os.environ.pop(variable, None)
    guard_servers(tells=tells, open_to_all=OPEN_TO_NODES)


if __name__ == "__main__":
    sys.exit(main())
