"""A SuperLink with TLS and node authentication and four SuperNodes, each on a host of its own (`network.Host`)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from psl_flower.cli.train import parse_settings
from psl_flower.config import RunConfig
from psl_flower.data.preparing import prepare_stores
from psl_flower.engine.monolith import Monolith
from psl_flower.runs import RunFolder, Status
from psl_flower.sealed.keyring import KeyRing
from psl_flower.stores.base import PatchStore, store_folder
from psl_flower.stores.opening import open_store
from tests.e2e.conftest import BIN, ROOT, wait_until
from tests.e2e.network import Host, Network

FLEET_PORT, EXCHANGE_PORT, PLAIN_PORT = 9092, 9444, 5000
# What a node's configuration names in the host's folder.
_NODE_CONFIG = {
    "store": "store", "key": "node.key", "owner": "owner.key.pub", "state": "state", "exchange-cert": "exchange.pem",
    "exchange-key": "exchange.key",
}  # fmt: skip
# Nodes that are given the operator's authority for the streams; the others trust what the run announces.
_WITH_AUTHORITY = (0, 1)
# Notes every 32 random bytes that the server's processes draw: the only way to know a run's tokens.
_TAP = """
import os, secrets
_draw = secrets.token_bytes
def _noted(nbytes=None):
    drawn = _draw(nbytes)
    if nbytes == 32:
        with open(os.environ["PSL_TEST_TOKENS"], "ab") as file:
            file.write(drawn)
    return drawn
secrets.token_bytes = _noted
"""


class Deployment:
    """Everything that an owner and an operator set up, as docs/deploy.md says it.

    Parameters
    ----------
    network : Network
        The hosts.
    dataset : str
        What the owner cuts into as many stores as there are nodes.
    ingest : sequence of str
        Further arguments of `psl ingest`.
    settings : sequence of str
        KEY=VALUE, of every run that is not resumed.
    """

    def __init__(self, network: Network, dataset: str, ingest: Sequence[str], settings: Sequence[str]) -> None:
        self.network = network
        self.server, self.nodes = network.server, network.nodes
        self.node_ids: list[str] = []
        self.tokens = self.server.folder / "tokens"
        self._workspace = Path(self.server.environment["PSL_WORKSPACE"])
        self._dataset = self.server.folder / "dataset"
        self._settings = [*settings, f"dataset={self._dataset}", f"keys={self.server.folder / 'lower.key'}"]
        self._certificates()
        self._ingest(dataset, ingest)

    def _certificates(self) -> None:
        made = self.server.folder / "certificates"
        script = ROOT / "deploy" / "make-certificates.sh"
        _call(script, made, self.server.address)
        for host in (self.server, *self.nodes):
            shutil.copy(made / "ca.crt", host.folder)
        for n, node in enumerate(self.nodes):
            _call(script, made, "--node", f"node{n}")
            for suffix in (".pem", ".key"):
                shutil.move(made / f"node{n}{suffix}", node.folder / f"exchange{suffix}")
            _call("ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", node.folder / "auth")

    def _ingest(self, dataset: str, arguments: Sequence[str]) -> None:
        """Let the owner seal one store to each node, and give each place what it may have."""
        owner = self.server.folder.parent / "owner"
        keygen = (BIN / "psl", "keygen")
        _call(*keygen, "owner", "--out", owner / "owner.key")
        _call(*keygen, "lower", "--out", self.server.folder / "lower.key")
        for node in self.nodes:
            _call(*keygen, "node", "--out", node.folder / "node.key")
        keys = [argument for node in self.nodes for argument in ("--node-key", node.folder / "node.key.pub")]
        lower = ("--lower-key", self.server.folder / "lower.key.pub")
        place = ("--out", owner / "sealed", "--owner-key", owner / "owner.key")
        _call(BIN / "psl", "ingest", dataset, *place, *keys, *lower, *arguments, PSL_STATE=str(owner))
        for m, node in enumerate(self.nodes):
            shutil.move(store_folder(owner / "sealed", m), node.folder / "store")
        # What is left: the signed manifest, and the labels, which only the Lower can read.
        shutil.move(owner / "sealed", self._dataset)
        for host in (self.server, *self.nodes):
            shutil.copy(owner / "owner.key.pub", host.folder)

    def start_superlink(self) -> None:
        tap = self.server.folder / "tap"
        tap.mkdir(exist_ok=True)
        (tap / "sitecustomize.py").write_text(_TAP)
        self.server.environment |= {"PYTHONPATH": str(tap), "PSL_TEST_TOKENS": str(self.tokens)}
        made = self.server.folder / "certificates"
        self.server.start(
            [
                BIN / "flower-superlink", "--host", self.server.address, "--port", str(FLEET_PORT),
                "--ssl-ca-certfile", made / "ca.crt", "--ssl-certfile", made / "server.pem",
                "--ssl-keyfile", made / "server.key", "--enable-supernode-auth",
                "--disable-runtime-dependency-installation", "--database", self.server.folder / "superlink.db",
            ],
            "superlink.log",
        )  # fmt: skip
        home = Path(self.server.environment["FLWR_HOME"])
        home.mkdir(exist_ok=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "lower"\n\n[superlink.lower]\naddress = "{self.server.address}:{FLEET_PORT}"\n'
            f'root-certificates = "{self.server.folder / "ca.crt"}"\n'
        )
        wait_until(lambda: self.flwr("list", "lower").returncode == 0, 60, "the SuperLink")

    def register(self) -> None:
        for n, node in enumerate(self.nodes):
            key = str(node.folder / "auth.pub")
            done = self.flwr("supernode", "register", key, "lower", "--name", f"patch-{n}", "--format", "json")
            assert done.returncode == 0, done.stdout + done.stderr
            self.node_ids.append(str(json.loads(done.stdout)["node-id"]))

    def start_node(self, n: int) -> None:
        node = self.nodes[n]
        named = _NODE_CONFIG | ({"exchange-ca": "ca.crt"} if n in _WITH_AUTHORITY else {})
        node.start(
            [
                BIN / "flower-supernode", "--root-certificates", node.folder / "ca.crt",
                "--superlink", f"{self.server.address}:{FLEET_PORT}",
                "--auth-supernode-private-key", node.folder / "auth",
                "--node-config", " ".join(f"{name}='{node.folder / file}'" for name, file in named.items()),
            ],
            "supernode.log",
        )  # fmt: skip

    def wait_for_nodes(self, count: int) -> None:
        wait_until(lambda: self.online() == count, 90, f"{count} nodes online")

    def online(self) -> int:
        listed = self.flwr("supernode", "list", "lower", "--format", "json")
        nodes = json.loads(listed.stdout).get("nodes", []) if listed.returncode == 0 else []
        return sum(node["status"] == "online" for node in nodes)

    def flwr(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Call `flwr` as the operator does, on the server's host."""
        return self.server.call([BIN / "flwr", *arguments], timeout)

    def train(self, *settings: str, timeout: float = 280) -> subprocess.CompletedProcess[str]:
        """Call `flwr run` and return when the run is over; its status is in the run's folder."""
        return self.server.call(self._run_command(settings), timeout)

    @contextlib.contextmanager
    def training(self, *settings: str) -> Iterator[subprocess.Popen[bytes]]:
        """Start `flwr run`, to do something while it goes on."""
        process = self.server.start(self._run_command(settings), "run.log")
        try:
            yield process
        finally:
            process.kill()

    def _run_command(self, settings: Sequence[str]) -> list[str | Path]:
        made = self.server.folder / "certificates"
        exchange = (
            f"exchange-host={self.server.address}", f"exchange-port={EXCHANGE_PORT}",
            f"exchange-cert={made / 'server.pem'}", f"exchange-key={made / 'server.key'}",
            f"exchange-client-ca={made / 'ca.crt'}",
        )  # fmt: skip
        given = {**parse_settings(self._settings), **parse_settings([*exchange, *settings])}
        pairs = " ".join(f"{key}={json.dumps(value)}" for key, value in given.items())
        return [BIN / "flwr", "run", ROOT, "lower", "--stream", "--run-config", pairs]

    def run(self, name: str) -> RunFolder:
        return RunFolder(self._workspace / "runs" / name)

    def status(self, name: str) -> Status:
        status = self.run(name).read_status()
        assert status is not None, self.logs()
        return status

    def oracle(self, name: str, num_steps: int) -> dict[str, torch.Tensor]:
        """Return the weights of the same network trained in this process on the nodes' stores."""
        config = self.run(name).read_config().replace(workspace=str(self._workspace))
        stores = prepare_stores(config)
        monolith = Monolith(config, stores.manifest, stores.labels, [self.open_store(n) for n in range(4)])
        monolith.train(num_steps)
        return monolith.net.state_dict()

    def open_store(self, n: int) -> PatchStore:
        return open_store(self.nodes[n].folder / "store", KeyRing(self.nodes[n].folder / "node.key"))

    def labels(self) -> NDArray[np.int64]:
        given = parse_settings([*self._settings, f"workspace={self._workspace}"])
        return prepare_stores(RunConfig.from_mapping(given)).labels

    def logs(self) -> str:
        """Return the ends of all logs, for the message of a failed test."""
        logs = [*self.server.folder.glob("*.log"), *(node.folder / "supernode.log" for node in self.nodes)]
        return "\n".join(f"--- {log}\n{log.read_text(errors='replace')[-3000:]}" for log in logs if log.exists())


def _call(*arguments: str | Path, **environment: str) -> None:
    done = subprocess.run(
        list(map(str, arguments)), env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"


@contextlib.contextmanager
def sniffing(network: Network, path: Path) -> Iterator[dict[str, Any]]:
    """Capture every frame that passes the switch; at the end the yielded dict holds the numbers `seen` and `lost`."""
    switch = Host(network.switch, "", path.parent)
    script = Path(__file__).with_name("sniffer.py")
    process = subprocess.Popen(
        switch.command([sys.executable, "-S", script, "br0", path]),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    counts: dict[str, Any] = {}
    try:
        yield counts
    finally:
        told, _ = process.communicate("\n", timeout=60)
        counts["seen"], counts["lost"] = map(int, told.split())
