"""A SuperLink with TLS and node authentication and four SuperNodes, each on a host of its own (`network.Host`).

The last node has no store on its disk: it reads it from a patch server, a sixth host.
"""

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
from tests.e2e.conftest import BIN, wait_until
from tests.e2e.network import Host, Network
from tests.paths import DATA, ROOT

FLEET_PORT, EXCHANGE_PORT, PLAIN_PORT, WEB_PORT = 9092, 9444, 5000, 80
CIFAR10 = DATA / "cifar10"
DATASET = str(CIFAR10) if CIFAR10.is_dir() else "digits"
INGEST = ("--max-train", "128", "--max-test", "32")
SETTINGS = (
    "batch-size=32", "rounds=2", "steps-per-round=2", "lr=0.02", "flip=true", "evaluate-every=0", "upper-threads=1",
    "lower-threads=1",
)  # fmt: skip
RESTORERS = ("alice", "bob")
# What a node's configuration names in the host's folder, its store apart.
_NODE_CONFIG = {
    "key": "node.key", "owner": "owner.key.pub", "state": "state", "exchange-cert": "exchange.pem",
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
    restorers : sequence of str
        Names of those who may restore, all together; their keys lie in `restorers`, a place of theirs.
    """

    def __init__(
        self,
        network: Network,
        dataset: str = DATASET,
        ingest: Sequence[str] = INGEST,
        settings: Sequence[str] = SETTINGS,
        restorers: Sequence[str] = RESTORERS,
    ) -> None:
        self.network = network
        self.server, self.nodes = network.server, network.nodes
        self.node_ids: list[str] = []
        self.tokens = self.server.folder / "tokens"
        self.restorers = self.server.folder.parent / "restorers"
        self._workspace = Path(self.server.environment["PSL_WORKSPACE"])
        self.dataset = self.server.folder / "dataset"
        self._settings = [*settings, f"dataset={self.dataset}", f"keys={self.server.folder / 'lower.key'}"]
        self._certificates()
        self._ingest(dataset, ingest, restorers)

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

    def _ingest(self, dataset: str, arguments: Sequence[str], restorers: Sequence[str]) -> None:
        """Let the owner seal one store to each node, and give each place what it may have."""
        owner = self.server.folder.parent / "owner"
        keygen = (BIN / "psl", "keygen")
        _call(*keygen, "owner", "--out", owner / "owner.key")
        _call(*keygen, "lower", "--out", self.server.folder / "lower.key")
        for node in self.nodes:
            _call(*keygen, "node", "--out", node.folder / "node.key")
        keys = [argument for node in self.nodes for argument in ("--node-key", node.folder / "node.key.pub")]
        lower = ("--lower-key", self.server.folder / "lower.key.pub")
        people: list[str | Path] = ["--threshold", str(len(restorers))]
        for name in restorers:
            _call(*keygen, "restorer", "--out", self.restorers / f"{name}.key")
            people += ["--restorer", f"{name}={self.restorers / name}.key.pub"]
        place = ("--out", owner / "sealed", "--owner-key", owner / "owner.key")
        _call(BIN / "psl", "ingest", dataset, *place, *keys, *lower, *people, *arguments, PSL_STATE=str(owner))
        for m in range(len(self.nodes)):
            shutil.move(store_folder(owner / "sealed", m), self._store(m))
        # What is left: the signed manifest, and the labels, which only the Lower can read.
        shutil.move(owner / "sealed", self.dataset)
        for host in (self.server, *self.nodes):
            shutil.copy(owner / "owner.key.pub", host.folder)

    def _store(self, n: int) -> Path:
        """Return the folder of a node's store: on the node's own host, of the last one on the patch server's."""
        host = self.network.patch_server if n == len(self.nodes) - 1 else self.nodes[n]
        return host.folder / "store"

    def start_patch_server(self) -> None:
        host = self.network.patch_server
        script = ROOT / "tests" / "web_server.py"
        host.start([sys.executable, "-u", "-S", script, host.address, str(WEB_PORT), host.folder], "web.log")

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
        node, patches = self.nodes[n], self.network.patch_server
        far = patches.folder in self._store(n).parents
        named = _NODE_CONFIG | ({"exchange-ca": "ca.crt"} if n in _WITH_AUTHORITY else {})
        places = {name: str(node.folder / file) for name, file in named.items()}
        places["store"] = f"http://{patches.address}:{WEB_PORT}/store" if far else str(self._store(n))
        node.start(
            [
                BIN / "flower-supernode", "--root-certificates", node.folder / "ca.crt",
                "--superlink", f"{self.server.address}:{FLEET_PORT}",
                "--auth-supernode-private-key", node.folder / "auth",
                "--node-config", " ".join(f"{name}='{place}'" for name, place in places.items()),
            ],
            "supernode.log",
        )  # fmt: skip

    def start(self) -> None:
        """Start everything and wait until all nodes are registered and online."""
        self.start_patch_server()
        self.start_superlink()
        self.register()
        for n in range(len(self.nodes)):
            self.start_node(n)
        self.wait_for_nodes(len(self.nodes))

    def wait_for_nodes(self, count: int) -> None:
        wait_until(lambda: self.online() == count, 90, f"{count} nodes online")

    def online(self) -> int:
        listed = self.flwr("supernode", "list", "lower", "--format", "json")
        nodes = json.loads(listed.stdout).get("nodes", []) if listed.returncode == 0 else []
        return sum(node["status"] == "online" for node in nodes)

    def as_restorers(self, *arguments: str | Path) -> str:
        """Call `psl` on the restorers' machine, which has the manifest and the labels; return what it prints."""
        command = (BIN / "psl", arguments[0], "--manifest", self.dataset, *arguments[1:])
        return _call(*command, PSL_STATE=str(self.restorers / "state"))

    def flwr(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Call `flwr` as the operator does, on the server's host."""
        return self.server.call([BIN / "flwr", *arguments], timeout)

    def train(self, *settings: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
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
        # A resumed run has its settings.
        begun = any(setting.startswith("resume=") for setting in settings)
        given = {**parse_settings([] if begun else self._settings), **parse_settings([*exchange, *settings])}
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
        monolith = self.monolith(name)
        monolith.train(num_steps)
        return monolith.net.state_dict()

    def monolith(self, name: str) -> Monolith:
        """Return the network of a run before its first step, in this process, with the nodes' stores."""
        config = self.run(name).read_config().replace(workspace=str(self._workspace))
        stores = prepare_stores(config)
        return Monolith(config, stores.manifest, stores.labels, [self.open_store(n) for n in range(4)])

    def open_store(self, n: int) -> PatchStore:
        return open_store(self._store(n), KeyRing(self.nodes[n].folder / "node.key"))

    def labels(self) -> NDArray[np.int64]:
        given = parse_settings([*self._settings, f"workspace={self._workspace}"])
        return prepare_stores(RunConfig.from_mapping(given)).labels

    def logs(self) -> str:
        """Return the ends of all logs, for the message of a failed test."""
        nodes = (node.folder / "supernode.log" for node in self.nodes)
        logs = [*self.server.folder.glob("*.log"), self.network.patch_server.folder / "web.log", *nodes]
        return "\n".join(f"--- {log}\n{log.read_text(errors='replace')[-3000:]}" for log in logs if log.exists())


def _call(*arguments: str | Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, arguments)), env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


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
