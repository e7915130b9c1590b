"""Links with delay and loss: by `tc netem` where the kernel has it, else by `slow_link` in the switch's namespace."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from psl_flower.errors import RunError
from simulations.separate_hosts.network import Host, Network, NotAllowed, ip, plug, run

# More frames on their way than a run has, instead of netem's 1,000.
_NETEM_LIMIT = "100000"
_STOP_TIMEOUT_S = 10.0
# The server refuses a connection to a closed port immediately: exactly one round trip.
_KNOCK = """
import contextlib, socket, sys, time
for _ in range(int(sys.argv[3])):
    began = time.perf_counter()
    with contextlib.suppress(ConnectionRefusedError):
        socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10).close()
    print(time.perf_counter() - began)
"""
_CLOSED_PORT = 9


@contextlib.contextmanager
def slowed(
    network: Network, nodes: Sequence[int], delay_s: float, loss: float = 0.0, *, seed: int = 0
) -> Iterator[None]:
    """Delay every frame between some nodes and the switch by `delay_s`, either way, and lose a share of them, 0 to 1.

    A frame is what a host's kernel hands over at once: up to 64 KiB. `seed` draws which frames the stand-in loses.

    Raises
    ------
    RunError
        If the machine refuses.
    """
    with contextlib.ExitStack() as stack:
        for n in nodes:
            slow = _by_netem if has_netem(network) else _by_stand_in
            stack.enter_context(slow(network, n, delay_s, loss, seed + n))
        yield


def has_netem(network: Network) -> bool:
    """Check if the kernel supports `tc netem`."""
    try:
        run(*_netem(network.switch, "add", "lo"), "delay", "1ms")
    except NotAllowed:
        return False
    run(*_netem(network.switch, "del", "lo"))
    return True


def round_trip_s(network: Network, node: int, tries: int = 5) -> float:
    """Return the median time in seconds from a node to the server and back; raises RunError if nothing comes back."""
    server = (network.server.address, str(_CLOSED_PORT), str(tries))
    done = network.nodes[node].call([sys.executable, "-S", "-c", _KNOCK, *server])
    if done.returncode != 0:
        raise RunError(f"node {node} does not reach the server: {done.stderr.strip()[-500:]}")
    return statistics.median(map(float, done.stdout.split()))


@contextlib.contextmanager
def _by_netem(network: Network, n: int, delay_s: float, loss: float, seed: int) -> Iterator[None]:
    """Slow both ends' sending down; netem draws by itself."""
    ends = ((network.nodes[n].namespace, "eth0"), (network.switch, f"node{n}"))
    with contextlib.ExitStack() as stack:
        for end in ends:
            run(*_netem(end[0], "add", end[1]), "delay", f"{1e6 * delay_s:.0f}us", "loss", f"{100 * loss:g}%")
            stack.callback(run, *_netem(end[0], "del", end[1]))
        yield


def _netem(namespace: str, action: str, device: str) -> list[str]:
    limit = ["limit", _NETEM_LIMIT] if action == "add" else []
    return ["tc", "-n", namespace, "qdisc", action, "dev", device, "root", "netem", *limit]


@contextlib.contextmanager
def _by_stand_in(network: Network, n: int, delay_s: float, loss: float, seed: int) -> Iterator[None]:
    """Put a program between the node's cable and the switch: cable - program - pair of interfaces - port."""
    cable, near, port = f"node{n}", f"near{n}", f"port{n}"
    switch = Host(network.switch, "", network.nodes[n].folder)
    ip("-n", network.switch, "link", "set", cable, "nomaster")
    try:
        ip("-n", network.switch, "link", "add", near, "type", "veth", "peer", "name", port)
        ip("-n", network.switch, "link", "set", near, "up")
        plug(network.switch, port)
        script = Path(__file__).with_name("slow_link.py")
        program = subprocess.Popen(
            switch.command([sys.executable, "-S", script, cable, near, str(delay_s), str(loss), str(seed)]),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            _check(program.stdout is not None and program.stdout.readline() == "ready\n", program, n)
            yield
            _check(program.poll() is None, program, n)
        finally:
            with contextlib.suppress(BrokenPipeError):
                program.communicate("", timeout=_STOP_TIMEOUT_S)
            program.kill()
    finally:
        ip("-n", network.switch, "link", "del", near, check=False)
        plug(network.switch, cable)


def _check(well: bool, program: subprocess.Popen[str], n: int) -> None:
    if not well:
        _, said = program.communicate()
        raise RunError(f"the slow link of node {n} failed: {said.strip()[-500:]}")
