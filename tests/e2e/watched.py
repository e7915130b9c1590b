"""The hosts of `simulations.separate_hosts` with what tests need: a patch server, restorers, the oracle, a sniffer.

The last node has no store on its disk: it reads it from a patch server, a sixth host.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from psl_flower.config import RunConfig
from psl_flower.kinds import parse_settings
from psl_flower.stores.prepare import prepare_stores
from simulations.child import call
from simulations.separate_hosts import deployment
from simulations.separate_hosts.deployment import BIN, started_again
from simulations.separate_hosts.network import Host, Network
from tests.paths import DATA, ROOT

PLAIN_PORT, WEB_PORT = 5000, 80
CIFAR10 = DATA / "cifar10"
DATASET = str(CIFAR10) if CIFAR10.is_dir() else "digits"
INGEST = ("--max-train", "128", "--max-test", "32")
SETTINGS = (
    "batch-size=32", "rounds=2", "steps-per-round=2", "lr=0.02", "flip=true", "evaluate-every=0", "upper-threads=1",
    "lower-threads=1",
)  # fmt: skip
RESTORERS = ("alice", "bob")
# Nodes that are given the operator's authority for the streams; the others trust what the run announces.
WITH_AUTHORITY = (0, 1)
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


class Deployment(deployment.Deployment):
    """That deployment, watched; the restorers' keys lie in `restorers`, a place of theirs."""

    def __init__(
        self,
        network: Network,
        dataset: str = DATASET,
        ingest: Sequence[str] = INGEST,
        settings: Sequence[str] = SETTINGS,
        restorers: Sequence[str] = RESTORERS,
    ) -> None:
        self.tokens = network.server.folder / "tokens"
        self.restorers = network.server.folder.parent / "restorers"
        people = ["--threshold", str(len(restorers))]
        for name in restorers:
            call(BIN / "psl", "keygen", "restorer", "--out", self.restorers / f"{name}.key")
            people += ["--restorer", f"{name}={self.restorers / name}.key.pub"]
        super().__init__(network, dataset, [*ingest, *people], settings)

    def store(self, n: int) -> Path:
        """On the node's own host, of the last one on the patch server's."""
        host = self.network.patch_server if n == len(self.nodes) - 1 else self.nodes[n]
        return host.folder / "store"

    def node_config(self, n: int) -> dict[str, str | bool]:
        allowed = {"lighten": True, "average": True, "audit": True}
        config, patches = super().node_config(n) | allowed, self.network.patch_server
        if n not in WITH_AUTHORITY:
            del config["exchange-ca"]
        if patches.folder in self.store(n).parents:
            config["store"] = f"http://{patches.address}:{WEB_PORT}/store"
        return config

    def start(self) -> None:
        self.start_patch_server()
        super().start()

    def start_supernode(self, host: Host, node_config: Mapping[str, str | bool]) -> None:
        """Start it again whenever it ends, as the systemd unit does: for a minute it may be turned away."""
        host.start(started_again(self.supernode_command(host, node_config)), "supernode.log")

    @contextlib.contextmanager
    def guest(self, **node_config: str) -> Iterator[str]:
        """Let one node more take part, with a key that is registered for it; yield its id."""
        host = self.network.guest
        self.equip(host, "guest")
        places = {"exchange-cert": "exchange.pem", "exchange-key": "exchange.key", "state": "state"}
        own = {name: str(host.folder / file) for name, file in places.items()}
        node_id = self.register_host(host, "guest")
        self.start_supernode(host, {**own, **node_config})
        try:
            self.wait_for_nodes(len(self.nodes) + 1)
            yield node_id
        finally:
            host.kill_all()
            self.flwr("supernode", "unregister", node_id, "lower")

    def start_patch_server(self) -> None:
        host = self.network.patch_server
        script = ROOT / "tests" / "web_server.py"
        host.start([sys.executable, "-u", "-S", script, host.address, str(WEB_PORT), host.folder], "web.log")

    def start_superlink(self) -> None:
        tap = self.server.folder / "tap"
        tap.mkdir(exist_ok=True)
        (tap / "sitecustomize.py").write_text(_TAP)
        self.server.environment |= {"PYTHONPATH": str(tap), "PSL_TEST_TOKENS": str(self.tokens)}
        super().start_superlink()

    def as_restorers(self, *arguments: str | Path) -> str:
        """Call `psl` on the restorers' machine, which has the manifest and the labels; return what it prints."""
        command = (BIN / "psl", arguments[0], "--manifest", self.dataset, *arguments[1:])
        return call(*command, PSL_STATE=str(self.restorers / "state"))

    def oracle(self, name: str, num_steps: int) -> dict[str, torch.Tensor]:
        """Return the weights of the same network trained in this process on the nodes' stores."""
        one_process = self.one_process(name)
        one_process.train(num_steps)
        return one_process.net.state_dict()

    def labels(self) -> NDArray[np.int64]:
        given = parse_settings([*self._settings, f"workspace={self._workspace}"])
        return prepare_stores(RunConfig.from_mapping(given)).labels


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
