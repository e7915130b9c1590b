"""Separate hosts: SuperLink and server on one, four SuperNodes on one each; mutual TLS, node keys and firewalls.

The hosts are network namespaces (`network`), the programs real ones, started as docs/deploy.md says (`deployment`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import ROOT, differing, model, wait_until
from tests.e2e.deployment import PLAIN_PORT, Deployment, sniffing
from tests.e2e.network import Host, Network, NotAllowed, why_not

CIFAR10 = ROOT.parent / "shared" / "data" / "cifar10"
DATASET = str(CIFAR10) if CIFAR10.is_dir() else "digits"
INGEST = ("--max-train", "128", "--max-test", "32")
SETTINGS = (
    "batch-size=32", "rounds=2", "steps-per-round=2", "lr=0.02", "flip=true", "evaluate-every=0", "upper-threads=1",
    "lower-threads=1",
)  # fmt: skip
RUN_BYTES = 64
TOKEN_BYTES = 32

# Answers every connection with what it received first.
_ECHO = """
import socket, sys
with socket.create_server((sys.argv[1], int(sys.argv[2]))) as server:
    print("listening", flush=True)
    while True:
        connection, _ = server.accept()
        with connection:
            connection.sendall(connection.recv(65536))
"""
_SEND = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1) as connection:
    connection.sendall(bytes.fromhex(sys.argv[3]))
    print(connection.recv(65536).hex())
"""


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Return a deployment in operation: all nodes registered and online."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    try:
        network = Network(tmp_path_factory.mktemp("hosts"), 4, environment)
    except NotAllowed as error:
        pytest.skip(f"this machine does not allow separate hosts: {error}")
    try:
        made = Deployment(network, DATASET, INGEST, SETTINGS)
        made.start_superlink()
        made.register()
        for n in range(4):
            made.start_node(n)
        made.wait_for_nodes(4)
        yield made
    finally:
        network.close()


def _exchange_plaintext(sender: Host, receiver: Host, data: bytes) -> bytes | None:
    """Send bytes from one host to another, unencrypted; return the answer, None if there is none."""
    done = sender.call([sys.executable, "-S", "-c", _SEND, receiver.address, str(PLAIN_PORT), data.hex()])
    return bytes.fromhex(done.stdout.strip()) if done.returncode == 0 else None


def _secrets(deployed: Deployment) -> dict[str, list[bytes]]:
    """Return what must not be seen on the wire: runs of 64 bytes of patches and of labels, and the tokens drawn."""
    draw = np.random.default_rng(0)
    patches = []
    for n in range(4):
        store = deployed.open_store(n)
        for record in store.read(draw.choice(len(store), 6, replace=False)):
            pixels = record.tobytes()
            # Not of one colour: such a run could be seen by chance.
            start = next(s for s in range(0, len(pixels), 8) if len(set(pixels[s : s + RUN_BYTES])) > 16)
            patches.append(pixels[start : start + RUN_BYTES])
    labels_N = deployed.labels()
    drawn = deployed.tokens.read_bytes()
    return {
        "patch": patches,
        "label": [labels_N.astype(kind).tobytes()[:RUN_BYTES] for kind in ("<i8", "u1")],
        "token": [drawn[start : start + TOKEN_BYTES] for start in range(0, len(drawn), TOKEN_BYTES)],
    }


def _seen(capture: Path, secrets: dict[str, list[bytes]]) -> dict[str, int]:
    """Return how many of the secrets of each kind occur in a capture."""
    frames = capture.read_bytes()
    return {kind: sum(secret in frames for secret in values) for kind, values in secrets.items()}


def test_hosts_are_apart(deployed: Deployment) -> None:
    """Only connections from a node to the server come about, and each place does have a listener."""
    hosts = (deployed.server, *deployed.nodes[:2])
    listeners = [
        host.start([sys.executable, "-S", "-c", _ECHO, host.address, str(PLAIN_PORT)], "echo.log") for host in hosts
    ]
    try:
        server, first, second = hosts
        for host in hosts:
            assert _eventually(host, host) == b"hello"
        assert _eventually(first, server) == b"hello"
        for sender, receiver in ((first, second), (second, first), (server, first), (server, second)):
            assert _exchange_plaintext(sender, receiver, b"hello") is None
    finally:
        for listener in listeners:
            listener.kill()
            listener.wait()


def _eventually(sender: Host, receiver: Host) -> bytes | None:
    answers = (_exchange_plaintext(sender, receiver, b"hello") for _ in range(50))
    return next((answer for answer in answers if answer is not None), None)


def test_stream_trains_exactly_and_shows_nothing(deployed: Deployment, tmp_path: Path) -> None:
    capture = tmp_path / "training.frames"
    with sniffing(deployed.network, capture) as counts:
        done = deployed.train("run-name=stream")
    status = deployed.status("stream")
    assert status.state == "completed", status.message + done.stdout + done.stderr + deployed.logs()
    run = deployed.run("stream")
    assert "4 nodes host 4 Uppers, stream transport" in (run.path / "log.txt").read_text()
    assert differing(model(run), deployed.oracle("stream", 4)) == []
    assert differing(model(run), deployed.oracle("stream", 3)) != []

    secrets = _secrets(deployed)
    exchanged = run.read_metrics()[-1]
    assert counts["lost"] == 0
    assert capture.stat().st_size > exchanged["bytes_up"] + exchanged["bytes_down"]
    # Two rounds of four one-time tokens; Flower may draw secrets of its own.
    assert len(secrets["token"]) >= 8
    assert _seen(capture, secrets) == {"patch": 0, "label": 0, "token": 0}
    # The same search sees all of them where they do travel in the clear.
    control = tmp_path / "control.frames"
    listener = deployed.server.start(
        [sys.executable, "-S", "-c", _ECHO, deployed.server.address, str(PLAIN_PORT)], "echo.log"
    )
    try:
        assert _eventually(deployed.nodes[0], deployed.server) == b"hello"
        with sniffing(deployed.network, control) as counts:
            everything = b"".join(secret for values in secrets.values() for secret in values)
            assert _exchange_plaintext(deployed.nodes[0], deployed.server, everything) == everything
    finally:
        listener.kill()
        listener.wait()
    assert _seen(control, secrets) == {kind: len(values) for kind, values in secrets.items()}


def test_flower_transport(deployed: Deployment) -> None:
    """A step in Flower messages alone, for nodes that reach nothing but the SuperLink."""
    done = deployed.train("run-name=flower", "transport=flower", "rounds=1", "steps-per-round=1")
    status = deployed.status("flower")
    assert status.state == "completed", status.message + done.stdout + done.stderr + deployed.logs()
    run = deployed.run("flower")
    assert "4 nodes host 4 Uppers, flower transport" in (run.path / "log.txt").read_text()
    assert differing(model(run), deployed.oracle("flower", 1)) == []


def test_host_dies_and_comes_back(deployed: Deployment) -> None:
    """The run goes back to the last step that all have saved, and ends with the weights of an undisturbed one."""
    run = deployed.run("lost")
    with deployed.training("run-name=lost", "rounds=1", "steps-per-round=4", "checkpoint-every=1") as process:
        wait_until(lambda: any(run.checkpoints.steps()), 180, "the checkpoint of a step")
        deployed.nodes[1].kill_all()
        wait_until(lambda: "go back to step" in (run.path / "log.txt").read_text(), 120, "the loss to be noticed")
        deployed.start_node(1)
        process.communicate(timeout=240)
    status = deployed.status("lost")
    assert status.state == "completed", status.message + deployed.logs()
    assert f"node {deployed.node_ids[1]}: " in (run.path / "log.txt").read_text()
    assert differing(model(run), deployed.oracle("lost", 4)) == []
