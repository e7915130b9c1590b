"""A node far away connects in spite of a flood: by what it shows of its token, and where the flood has one network, at all."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from psl_flower.wire.gate import network_of
from simulations.separate_hosts.links import round_trip_s, slowed
from simulations.separate_hosts.network import Host, Network, NotAllowed, ip, why_not

PROGRAM = Path(__file__).with_name("far_away.py")
NODES = 5
ONE_WAY_S = 0.15
# Connecting, TLS and the welcome are a round trip each; the rest is for busy machines.
LONGEST_S = 10.0
MANY_NETWORKS, ONE_NETWORK = "198.18.0.0/15", "fd00:99::/64"
SERVER6, GUEST6 = "fd00:77::1", "fd00:77::3"


def program(*arguments: str, lean: bool = False) -> list[str | Path]:
    return [sys.executable, *(["-S"] if lean else []), PROGRAM, *arguments]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """A server, a node, and a guest that has all addresses of two more networks."""
    if reason := why_not():
        pytest.skip(reason)
    paths = os.pathsep.join(filter(None, [str(PROGRAM.parents[2]), os.environ.get("PYTHONPATH")]))
    try:
        made = Network(tmp_path_factory.mktemp("far"), 1, {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"})
    except NotAllowed as error:
        pytest.skip(f"this machine does not allow separate hosts: {error}")
    try:
        for host, address in ((made.server, SERVER6), (made.nodes[0], "fd00:77::2"), (made.guest, GUEST6)):
            host.call(["sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=0", "net.ipv6.conf.lo.disable_ipv6=0"])
            ip("-n", host.namespace, "address", "add", f"{address}/64", "dev", "eth0", "nodad")
        for source, gateway in ((MANY_NETWORKS, made.guest.address), (ONE_NETWORK, GUEST6)):
            ip("-n", made.guest.namespace, "route", "add", "local", source, "dev", "lo")
            ip("-n", made.server.namespace, "route", "add", source, "via", gateway)
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def endpoint(server: Host, address: str, folder: Path) -> Iterator[int]:
    """Open an endpoint on the server; yield its port."""
    process = subprocess.Popen(
        server.command(program("serve", address, str(folder), str(NODES))),
        env=server.environment,
        stdin=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 60
        while not (folder / "told.json").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        yield json.loads((folder / "told.json").read_text())["port"]
        process.communicate(timeout=30)
        assert json.loads((folder / "refused.json").read_text())["PeerLost"] > 1000  # there was a flood
    finally:
        process.kill()
        process.wait()


def connected(network: Network, address: str, source: str, folder: Path, *, knock: bool = True) -> list[float]:
    """Return how long each node took to connect during a flood from a network; -1 where it did not."""
    with endpoint(network.server, address, folder) as port, slowed(network, [0], ONE_WAY_S):
        stranger = subprocess.Popen(network.guest.command(program("flood", address, str(port), source, lean=True)))
        try:
            time.sleep(1)
            done = network.nodes[0].call(program("connect", str(folder), "yes" if knock else ""), timeout=200)
            assert done.returncode == 0, done.stderr
            assert stranger.poll() is None
        finally:
            stranger.kill()
            stranger.wait()
    return [float(line) for line in done.stdout.split()]


def test_the_node_is_far_away(network: Network) -> None:
    with slowed(network, [0], ONE_WAY_S):
        assert round_trip_s(network, 0) >= 2 * ONE_WAY_S


def test_from_many_networks(network: Network, tmp_path: Path) -> None:
    took_s = connected(network, network.server.address, MANY_NETWORKS, tmp_path)
    assert len(took_s) == NODES
    assert all(2 * ONE_WAY_S < each < LONGEST_S for each in took_s), took_s


def test_from_one_network_of_2_to_the_64_addresses(network: Network, tmp_path: Path) -> None:
    """Also a node that shows nothing first, from another network."""
    took_s = connected(network, SERVER6, ONE_NETWORK, tmp_path, knock=False)
    assert len(took_s) == NODES
    assert all(2 * ONE_WAY_S < each < LONGEST_S for each in took_s), took_s


ALIKE = [
    ("127.1.2.3", "127.1.2.200"),
    ("::ffff:10.0.0.9", "10.0.0.1"),
    ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::1"),
    ("fe80::1%eth0", "fe80::2"),
]
UNLIKE = [("127.1.2.3", "127.1.3.3"), ("::ffff:10.0.0.9", "::ffff:10.0.1.9"), ("2001:db8:1:2::1", "2001:db8:1:3::1")]


def test_networks() -> None:
    assert [network_of(one) == network_of(other) for one, other in ALIKE] == [True] * 4
    assert [network_of(one) == network_of(other) for one, other in UNLIKE] == [False] * 3
