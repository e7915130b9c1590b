"""A simulation and strangers: another host, another program without the token, and what a killed command leaves."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import os
import re
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from simulations.separate_hosts.network import Host, ip, why_not
from tests.e2e.conftest import TINY, Place, wait_until

START_S = 240
# What starts code, or leads to it, in each of Ray's servers: its cluster's, its node's two, and its workers'.
METHODS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo", "/ray.rpc.NodeManagerService/RequestWorkerLease",
    "/ray.rpc.ObjectManagerService/Pull", "/ray.rpc.CoreWorkerService/PushTask",
)  # fmt: skip
# Tries every address it is given; prints those that answer.
KNOCK = """
import contextlib, socket, sys
for address in sys.argv[1:]:
    host, port = address.split()
    with contextlib.suppress(OSError):
        socket.create_connection((host, int(port)), timeout=5).close()
        print(address)
"""


def named(processes: list[psutil.Process], name: str) -> list[psutil.Process]:
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if name in " ".join(process.cmdline()):
                found.append(process)
    return found


def listening(processes: list[psutil.Process]) -> list[tuple[str, int]]:
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            connections = process.net_connections("inet")
            found += [(c.laddr.ip, c.laddr.port) for c in connections if c.status == "LISTEN"]
    return found


def beyond_loopback(sockets: list[tuple[str, int]]) -> list[tuple[str, int]]:
    def near(text: str) -> bool:
        address = ipaddress.ip_address(text)
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback

    return [each for each in sockets if not near(each[0])]


def simulating(place: Place) -> bool:
    """Return whether all of Ray is there: the actors come last."""
    return bool(named(place.processes(), "ClientAppActor"))


def whole(place: Place) -> list[psutil.Process]:
    """Return all processes of a simulation, also Ray's agents, which write their titles over their environments."""
    found = place.processes()
    return [
        *found,
        *(child for raylet in named(found, "raylet/raylet") for child in raylet.children() if child not in found),
    ]


@contextlib.contextmanager
def other_host(folder: Path) -> Iterator[tuple[Host, str]]:
    """Yield a host with a cable to this one, and this one's address on it."""
    name = f"psl{os.getpid()}-other"
    ip("netns", "add", name)
    try:
        ip("link", "add", "psl-near", "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("address", "add", "10.79.0.1/24", "dev", "psl-near")
        ip("link", "set", "psl-near", "up")
        ip("-n", name, "address", "add", "10.79.0.2/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        yield Host(name, "10.79.0.2", folder, dict(os.environ)), "10.79.0.1"
    finally:
        ip("netns", "del", name, check=False)


def reached(host: Host, addresses: list[str]) -> list[str]:
    done = host.call([sys.executable, "-S", "-c", KNOCK, *addresses], timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def answer(port: int, method: str, token: str = "") -> grpc.StatusCode:
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            channel.unary_unary(method)(b"", timeout=10, metadata=metadata)
            return grpc.StatusCode.OK
        except grpc.RpcError as error:
            return error.code()


def check_that_ray_is_closed(processes: list[psutil.Process]) -> None:
    """Ask each of Ray's servers, without a token, with another one and, to see that they do serve, with the right one."""
    (gcs,), (agent,) = named(processes, "gcs_server"), named(processes, "RuntimeEnvAgent")
    ((_, port),) = listening([gcs])
    assert answer(port, METHODS[0], gcs.environ()["RAY_AUTH_TOKEN"]) == grpc.StatusCode.OK
    servers = [each for name in ("gcs_server", "raylet/raylet", "ClientAppActor") for each in named(processes, name)]
    ports = [port for _, port in listening(servers)]
    assert len(ports) >= 4
    for port in ports:
        for token in ("", "0" * 64):
            answers = {answer(port, method, token) for method in METHODS}
            assert answers == {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAUTHENTICATED}
    # It makes environments for workers, and so runs programs.
    ((host, port),) = listening([agent])
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(f"http://{host}:{port}/get_or_create_runtime_env", data=b"", timeout=10)
    assert refusal.value.code == 401


def test_no_stranger_reaches_a_simulation_and_a_killed_one_leaves_nothing(place: Place, tmp_path: Path) -> None:
    planted, came = tmp_path / "shared", tmp_path / "came"
    planted.mkdir()
    for module in ("flwr", "torch", "psl_flower", "json"):
        (planted / f"{module}.py").write_text(f"open({str(came)!r}, 'w'); raise ImportError", "utf-8")
    process = place.start_psl("train", *TINY, "rounds=500", "run-name=watched", cwd=planted)
    wait_until(lambda: simulating(place), START_S, "Ray's actors")
    run = place.run("watched")
    wait_until(lambda: (status := run.read_status()) is not None and status.step > 0, START_S, "the first step")
    assert not came.exists(), "a module of the folder that psl train was called in has run"
    processes = whole(place)
    sockets = listening(processes)
    assert len(sockets) > 8
    assert beyond_loopback(sockets) == []
    assert {8265, 10001}.isdisjoint(port for _, port in sockets)  # Ray's dashboard and its client server

    (gcs,) = named(processes, "gcs_server")
    token = gcs.environ()["RAY_AUTH_TOKEN"]
    lines = [" ".join(each.cmdline()) for each in named(processes, "")]
    encoded = [word for line in lines for word in re.findall(r"--config_list=(\S+)", line)]
    assert encoded
    assert token not in " ".join([*lines, *(base64.b64decode(word).decode() for word in encoded)])
    check_that_ray_is_closed(processes)

    if not why_not():
        with other_host(tmp_path) as (other, here), socket.create_server(("0.0.0.0", 0)) as open_port:
            threading.Thread(target=open_port.accept, daemon=True).start()
            open_address = f"{here} {open_port.getsockname()[1]}"
            addresses = [f"{here} {port}" for _, port in sockets]
            assert reached(other, [*addresses, open_address]) == [open_address]

    home = Path(gcs.environ()["FLWR_HOME"])
    process.kill()
    process.communicate()
    wait_until(lambda: not any(each.is_running() for each in processes) and not home.exists(), 30, "their end")
    assert place.processes() == []


def test_plain_flwr_run_closes_ray_and_warns_of_the_rest(place: Place) -> None:
    config = " ".join([*TINY, "rounds=1", "steps-per-round=3", "run-name='plain'"])
    results: list[subprocess.CompletedProcess[str]] = []
    thread = threading.Thread(target=lambda: results.append(place.flwr("run", ".", "--stream", "--run-config", config)))
    thread.start()
    wait_until(lambda: simulating(place), START_S, "Ray's actors")
    processes = whole(place)
    assert beyond_loopback(listening(processes)) == []
    assert len(listening(processes)) > 5
    check_that_ray_is_closed(processes)
    thread.join()
    assert "warning: any user of this machine can start runs as you on Flower's local SuperLink; " in results[0].stdout
    status = place.run("plain").read_status()
    assert status is not None and status.state == "completed"

    # The demonstration keys were made by that run; named, they are an owner's.
    keys = f"{config.replace('plain', 'owners')} keys='{place.workspace / 'keys'}'"
    place.flwr("run", ".", "--stream", "--run-config", keys)
    status = place.run("owners").read_status()
    assert status is not None and status.state == "failed"
    assert "and read an owner's keys; train with psl train" in status.message
    done = place.psl("train", *TINY, "rounds=1", "steps-per-round=3", f"keys={place.workspace / 'keys'}")
    assert done.returncode == 0, done.stderr
