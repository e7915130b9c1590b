"""Separate hosts on one machine: network namespaces joined by a switch, with the firewalls of a careful operator.

The switch is a bridge in a separate namespace whose ports for nodes are isolated, so nodes reach the servers and no
other node. Every node drops connections that others open to it, by a filter on its interface (`tc`, classic BPF:
part of iproute2 like all that is used here, where nft and iptables may be missing).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from psl_flower.errors import RunError

SUBNET = "10.77.0"
# Pass anything but IPv4 (ARP) and TCP other than a first SYN; drop SYN without ACK, and any IPv4 that is not TCP.
_ONLY_OUTGOING = (
    "10,40 0 0 12,21 0 6 2048,48 0 0 23,21 0 5 6,177 0 0 14,80 0 0 27,84 0 0 18,21 1 0 2,6 0 0 4294967295,6 0 0 2"
)
# Where a program's name can be: python SCRIPT, python -P -c CODE, or python -Pm MODULE SCRIPT.
_WORDS = 4


def why_not() -> str:
    """Return why this machine cannot have such hosts; empty if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program in ("ip", "tc", "openssl", "ssh-keygen"):
        if not shutil.which(program):
            return f"{program} is not installed"
    name = f"psl-try-{os.getpid()}"
    added = ["ip", "netns", "add", name]
    tried = subprocess.run(added, capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"no network namespaces: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=False)
    return ""


def is_program(command_line: Sequence[str], program: str) -> bool:
    """Check if a process's command line is that of a program: a script of this name, or Python code with this text."""
    return any(program in word for word in command_line[:_WORDS])


@dataclass
class Host:
    """One host: a network namespace, an address, a folder for what its programs keep."""

    namespace: str
    address: str
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def command(self, arguments: Sequence[str | Path]) -> list[str]:
        """Return the command line that runs a program on this host."""
        return ["ip", "netns", "exec", self.namespace, *map(str, arguments)]

    def start(self, arguments: Sequence[str | Path], log: str) -> subprocess.Popen[bytes]:
        """Start a program in a new session, its output going to a file in the host's folder."""
        with (self.folder / log).open("ab") as file:
            process = subprocess.Popen(
                self.command(arguments), env=self.environment, cwd=self.folder, stdin=subprocess.DEVNULL,
                stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.started.append(process)
        return process

    def call(self, arguments: Sequence[str | Path], timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, within a time limit in seconds."""
        return subprocess.run(
            self.command(arguments), env=self.environment, cwd=self.folder, capture_output=True, text=True,
            timeout=timeout, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip

    def processes(self) -> list[psutil.Process]:
        """Return all processes on this host."""
        listed = ip("netns", "pids", self.namespace, check=False).split()
        found = []
        for pid in listed:
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(pid)))
        return found

    def running(self, program: str) -> list[psutil.Process]:
        """Return the processes of a program on this host, see `is_program`, by their ids."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if is_program(process.cmdline(), program):
                    found.append(process)
        return sorted(found, key=lambda process: process.pid)

    def kill_all(self) -> None:
        """Kill all processes on this host."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        while self.started:
            self.started.pop().wait()


class NotAllowed(RunError):
    """The machine refuses what such hosts need."""


class Network:
    """A server, a patch server, nodes and a guest, each a `Host`; `close` ends their processes and drops them.

    Raises
    ------
    NotAllowed
        Where the kernel has no bridge, no isolated ports or no such filter.
    """

    _count = itertools.count()

    def __init__(self, folder: Path, num_nodes: int, environment: Mapping[str, str]) -> None:
        # A process may have several.
        self._stem = f"psl{os.getpid()}-{next(self._count)}"
        self.switch = f"{self._stem}-switch"
        self._hosts: list[Host] = []
        try:
            self._add(Host(self.switch, "", folder))
            ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
            ip("-n", self.switch, "link", "set", "br0", "up", "promisc", "on")
            self.server = self._host("server", f"{SUBNET}.1", folder, environment)
            self.patch_server = self._host("patches", f"{SUBNET}.2", folder, environment)
            self.nodes = [self._node(f"node{n}", f"{SUBNET}.{n + 11}", folder, environment) for n in range(num_nodes)]
            # One more host of that kind, for any use.
            self.guest = self._node("guest", f"{SUBNET}.10", folder, environment)
        except BaseException:
            self.close()
            raise

    def unplug(self, host: Host) -> None:
        """Pull a host's cable."""
        self._set_cable(host, "down")

    def plug_in(self, host: Host) -> None:
        """Plug it in again."""
        self._set_cable(host, "up")

    def _set_cable(self, host: Host, state: str) -> None:
        # The port has the host's own name.
        ip("-n", self.switch, "link", "set", host.folder.name, state)

    def close(self) -> None:
        """End all processes and drop all hosts."""
        for host in self._hosts:
            deadline = time.monotonic() + 10
            while host.processes() and time.monotonic() < deadline:
                host.kill_all()
                time.sleep(0.1)
            ip("netns", "del", host.namespace, check=False)
        self._hosts.clear()

    def _add(self, host: Host) -> None:
        ip("netns", "add", host.namespace)
        self._hosts.append(host)
        run("ip", "netns", "exec", host.namespace, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", check=False)
        ip("-n", host.namespace, "link", "set", "lo", "up")

    def _node(self, name: str, address: str, folder: Path, environment: Mapping[str, str]) -> Host:
        """Add a host that cannot reach others of its kind and accepts no incoming connections."""
        node = self._host(name, address, folder, environment)
        plug(self.switch, name)
        run("ip", "netns", "exec", node.namespace, "tc", "qdisc", "add", "dev", "eth0", "ingress")
        run(
            "ip", "netns", "exec", node.namespace, "tc", "filter", "add", "dev", "eth0", "ingress",
            "bpf", "direct-action", "bytecode", _ONLY_OUTGOING,
        )  # fmt: skip
        return node

    def _host(self, name: str, address: str, folder: Path, environment: Mapping[str, str]) -> Host:
        own = folder / name
        own.mkdir(parents=True)
        folders = {"FLWR_HOME": "flwr", "PSL_WORKSPACE": "workspace", "PSL_STATE": "user-state"}
        own_environment = {**environment, **{name: str(own / folder) for name, folder in folders.items()}}
        host = Host(f"{self._stem}-{name}", address, own, own_environment)
        self._add(host)
        peer = ("peer", "name", "eth0", "netns", host.namespace)
        ip("link", "add", name, "netns", self.switch, "type", "veth", *peer)
        ip("-n", self.switch, "link", "set", name, "master", "br0", "up")
        ip("-n", host.namespace, "address", "add", f"{address}/24", "dev", "eth0")
        ip("-n", host.namespace, "link", "set", "eth0", "up")
        return host


def plug(switch: str, port: str) -> None:
    """Make an interface of a switch's namespace one of its ports for nodes: isolated from the others of these."""
    ip("-n", switch, "link", "set", port, "master", "br0", "up")
    ip("-n", switch, "link", "set", port, "type", "bridge_slave", "isolated", "on")


def ip(*arguments: str, check: bool = True) -> str:
    """Call `ip`, as `run`."""
    return run("ip", *arguments, check=check)


def run(*arguments: str, check: bool = True) -> str:
    """Run a program that sets up the network; return what it prints. NotAllowed if it fails, unless not checked."""
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise NotAllowed(f"{' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
