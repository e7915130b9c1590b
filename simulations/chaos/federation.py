"""A deployed federation whose programs are killed: what there is to kill on which host, and how all comes back."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from simulations.separate_hosts.deployment import Deployment, started_again
from simulations.separate_hosts.network import Host

SUPERLINK, SERVER_APP, SUPERNODE, CLIENT_APP = "SuperLink", "ServerApp", "SuperNode", "ClientApp"
SERVER_HOST, NODE_HOST = "server's host", "node's host"
# What is killed -> the program by which it is recognised; of a host all programs.
_PROGRAMS = {
    SUPERLINK: "flower-superlink", SERVER_APP: "flwr-serverapp", SUPERNODE: "flower-supernode",
    CLIENT_APP: "flwr-clientapp",
}  # fmt: skip
ROLES = (*_PROGRAMS, SERVER_HOST, NODE_HOST)
_ON_SERVER = (SUPERLINK, SERVER_APP, SERVER_HOST)
# A host stays away for a while, in seconds, its cable pulled.
_SHORTEST_OUTAGE_S, _LONGEST_OUTAGE_S = 1.0, 20.0
_ONLINE = "SuperNode ID: "


class Federation(Deployment):
    """A deployment whose services are started again whenever they end, as the systemd units do."""

    def superlink_command(self) -> list[str | Path]:
        """Return the command that starts the SuperLink, and again whenever it ends."""
        return started_again(super().superlink_command())

    def start_supernode(self, host: Host, node_config: Mapping[str, str | bool]) -> None:
        """Start a SuperNode on a host, and again whenever it ends."""
        host.start(started_again(self.supernode_command(host, node_config)), "supernode.log")

    def victims(self, role: str) -> list[tuple[Host, psutil.Process | None]]:
        """Return a role's targets: hosts, with the process or, for a whole host, None."""
        hosts = [self.server] if role in _ON_SERVER else self.nodes
        if role not in _PROGRAMS:
            return [(host, None) for host in hosts]
        return [(host, process) for host in hosts for process in _processes(host, _PROGRAMS[role])]

    def kill(self, role: str, draw: random.Random) -> Host | None:
        """Kill one process of a role, or a whole host, which comes back after a while; None if there is none now."""
        victims = self.victims(role)
        if not victims:
            return None
        host, process = draw.choice(victims)
        if process is None:
            self._reboot(host, draw.uniform(_SHORTEST_OUTAGE_S, _LONGEST_OUTAGE_S))
        else:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself this moment
                process.kill()
        return host

    def connections(self, host: Host) -> int:
        """Return the number of times a node's SuperNode has connected so far; 0 for the server."""
        log = host.folder / "supernode.log"
        return log.read_text(errors="replace").count(_ONLINE) if log.exists() else 0

    def superlink_runs(self) -> bool:
        """Check if a process of the SuperLink is alive."""
        return bool(self.victims(SUPERLINK))

    def server_apps(self) -> int:
        """Return the number of processes of ServerApps."""
        return len(self.victims(SERVER_APP))

    def restart(self, host: Host) -> None:
        """Kill all programs of a host and start its service again."""
        while host.processes():
            host.kill_all()
        if host is self.server:
            host.start(self.superlink_command(), "superlink.log")
        else:
            self.start_node(self.nodes.index(host))

    def _reboot(self, host: Host, outage_s: float) -> None:
        """Kill all programs of a host and pull its cable; after a while plug it in and start the service again."""
        self.network.unplug(host)
        try:
            while host.processes():
                host.kill_all()
            time.sleep(outage_s)
        finally:
            self.network.plug_in(host)
        self.restart(host)


def _processes(host: Host, program: str) -> list[psutil.Process]:
    found = []
    for process in host.processes():
        with contextlib.suppress(psutil.Error):
            if program in " ".join(process.cmdline()[:2]):
                found.append(process)
    return sorted(found, key=lambda process: process.pid)
