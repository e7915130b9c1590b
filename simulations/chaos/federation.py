"""A deployed federation whose programs are killed: the targets on each host, and how they restart."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from simulations.separate_hosts.deployment import CLIENT_APP_PROGRAM, Deployment, started_again
from simulations.separate_hosts.network import Host, Network

SUPERLINK, SERVER_APP, SUPERNODE, CLIENT_APP = "SuperLink", "ServerApp", "SuperNode", "ClientApp"
SERVER_HOST, NODE_HOST = "server's host", "node's host"
# What is killed -> the program by which it is recognised; of a host all programs.
_PROGRAMS = {
    SUPERLINK: "flower-superlink", SERVER_APP: "flwr-serverapp", SUPERNODE: "flower-supernode",
    CLIENT_APP: CLIENT_APP_PROGRAM,
}  # fmt: skip
ROLES = (*_PROGRAMS, SERVER_HOST, NODE_HOST)
_ON_SERVER = (SUPERLINK, SERVER_APP, SERVER_HOST)
# A host stays away for a while, in seconds, its cable pulled.
_SHORTEST_OUTAGE_S, _LONGEST_OUTAGE_S = 1.0, 20.0
_ONLINE = "SuperNode ID: "


class Federation(Deployment):
    """A deployment whose services are started again whenever they end, as the systemd units do.

    Parameters are those of `Deployment`. Hosts that have been killed come back in `tend`.
    """

    def __init__(
        self, network: Network, dataset: str, ingest: Sequence[str] = (), settings: Sequence[str] = ()
    ) -> None:
        super().__init__(network, dataset, ingest, settings)
        # Hosts that are away, and until when, by the monotonic clock.
        self._away: dict[str, tuple[Host, float]] = {}

    def superlink_command(self) -> list[str | Path]:
        """Return the command that starts the SuperLink, and again whenever it ends."""
        return started_again(super().superlink_command())

    def start_supernode(self, host: Host, node_config: Mapping[str, str | bool]) -> None:
        """Start a SuperNode on a host, and again whenever it ends."""
        host.start(started_again(self.supernode_command(host, node_config)), "supernode.log")

    def victims(self, role: str) -> list[tuple[Host, psutil.Process | None]]:
        """Return a role's targets: hosts, with the process or, for a whole host, None; none on hosts that are away."""
        hosts = [host for host in ([self.server] if role in _ON_SERVER else self.nodes) if not self.away(host)]
        if role not in _PROGRAMS:
            return [(host, None) for host in hosts]
        return [(host, process) for host in hosts for process in host.running(_PROGRAMS[role])]

    def kill(self, role: str, draw: random.Random) -> Host | None:
        """Kill one process of a role, or a whole host, which comes back after a while; None if there is none now."""
        victims = self.victims(role)
        if not victims:
            return None
        host, process = draw.choice(victims)
        if process is None:
            self.network.unplug(host)
            _kill_all(host)
            self._away[host.namespace] = (host, time.monotonic() + draw.uniform(_SHORTEST_OUTAGE_S, _LONGEST_OUTAGE_S))
        else:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself this moment
                process.kill()
        return host

    def away(self, host: Host) -> bool:
        """Check if a host has been killed and is not back yet."""
        return host.namespace in self._away

    def tend(self, *, all_back: bool = False) -> None:
        """Bring hosts back, all or those whose outage is over, with network and services; call it repeatedly."""
        for host, until in list(self._away.values()):
            if all_back or time.monotonic() >= until:
                self.network.plug_in(host)
                self.restart(host)
                del self._away[host.namespace]

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
        _kill_all(host)
        if host is self.server:
            host.start(self.superlink_command(), "superlink.log")
        else:
            self.start_node(self.nodes.index(host))


def _kill_all(host: Host) -> None:
    while host.processes():
        host.kill_all()
