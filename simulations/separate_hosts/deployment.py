"""A SuperLink with TLS and node authentication and SuperNodes, each on its own host (`network.Host`)."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from psl_flower.errors import RunError
from psl_flower.kinds import parse_settings
from psl_flower.launch.running import app_folder
from psl_flower.launch.superlink import last_line
from psl_flower.patches.store import PatchStore, store_folder
from psl_flower.runs.folder import RunFolder, Status
from psl_flower.sealed.keyring import KeyRing
from psl_flower.stores.opening import open_store
from psl_flower.stores.prepare import prepare_stores
from simulations.child import call
from simulations.separate_hosts.network import Host, Network
from simulations.watching import wait_until

if TYPE_CHECKING:
    from psl_flower.engine.one_process import OneProcessTrainer

BIN = Path(sys.executable).parent
FLEET_PORT, EXCHANGE_PORT = 9092, 9444
# By this `Host.running` recognises a ClientApp of psl-supernode, which is Python code (`psl_flower.flower.supernode`).
CLIENT_APP_PROGRAM = "import client_app"
# What a node's configuration names in the host's folder, its store apart.
_NODE_CONFIG = {
    "key": "node.key", "owner": "owner.key.pub", "state": "state", "exchange-ca": "ca.crt",
    "exchange-cert": "exchange.pem", "exchange-key": "exchange.key",
}  # fmt: skip


class Deployment:
    """Everything that an owner and an operator set up, as docs/deploy.md says it.

    `ingest` are further arguments of `psl ingest`; `settings`, as KEY=VALUE, go to every run that is not resumed.

    Raises
    ------
    RunError
        If one of their programs fails, with its last words; so do the methods.
    """

    def __init__(
        self,
        network: Network,
        dataset: str,
        ingest: Sequence[str] = (),
        settings: Sequence[str] = (),
    ) -> None:
        self.network = network
        self.server, self.nodes = network.server, network.nodes
        self.node_ids: list[str] = []
        self._workspace = Path(self.server.environment["PSL_WORKSPACE"])
        self.dataset = self.server.folder / "dataset"
        self._settings = [*settings, f"dataset={self.dataset}", f"keys={self.server.folder / 'lower.key'}"]
        self._certificates()
        self._ingest(dataset, ingest)

    def _certificates(self) -> None:
        call(_certificates_script(), self.server.folder / "certificates", self.server.address)
        shutil.copy(self.server.folder / "certificates" / "ca.crt", self.server.folder)
        for n, node in enumerate(self.nodes):
            self.equip(node, f"node{n}")

    def equip(self, host: Host, name: str) -> None:
        """Give a node's host what it proves itself with: a certificate for streams, a key for the SuperLink."""
        made = self.server.folder / "certificates"
        call(_certificates_script(), made, "--node", name)
        shutil.copy(made / "ca.crt", host.folder)
        for suffix in (".pem", ".key"):
            shutil.move(made / f"{name}{suffix}", host.folder / f"exchange{suffix}")
        (host.folder / "auth").unlink(missing_ok=True)
        call("ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", host.folder / "auth")

    def _ingest(self, dataset: str, arguments: Sequence[str]) -> None:
        """Let the owner seal one store to each node, and give each place what it may have."""
        owner = self.server.folder.parent / "owner"
        keygen = (BIN / "psl", "keygen")
        call(*keygen, "owner", "--out", owner / "owner.key")
        call(*keygen, "lower", "--out", self.server.folder / "lower.key")
        for node in self.nodes:
            call(*keygen, "node", "--out", node.folder / "node.key")
        keys = [argument for node in self.nodes for argument in ("--node-key", node.folder / "node.key.pub")]
        lower = ("--lower-key", self.server.folder / "lower.key.pub")
        place = ("--out", owner / "sealed", "--owner-key", owner / "owner.key")
        call(BIN / "psl", "ingest", dataset, *place, *keys, *lower, *arguments, PSL_STATE=str(owner))
        for m in range(len(self.nodes)):
            shutil.move(store_folder(owner / "sealed", m), self.store(m))
        # What is left: the signed manifest, and the labels, which only the Lower can read.
        shutil.move(owner / "sealed", self.dataset)
        for host in (self.server, *self.nodes):
            shutil.copy(owner / "owner.key.pub", host.folder)

    def store(self, n: int) -> Path:
        """Return the folder of a node's store."""
        return self.nodes[n].folder / "store"

    def node_config(self, n: int) -> dict[str, str | bool]:
        """Return a node's configuration: places on its host."""
        places = {name: str(self.nodes[n].folder / file) for name, file in _NODE_CONFIG.items()}
        return {**places, "store": str(self.store(n))}

    def start_superlink(self) -> None:
        """Start the SuperLink and wait until it answers."""
        self.server.start(self.superlink_command(), "superlink.log")
        home = Path(self.server.environment["FLWR_HOME"])
        home.mkdir(exist_ok=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "lower"\n\n[superlink.lower]\naddress = "{self.server.address}:{FLEET_PORT}"\n'
            f'root-certificates = "{self.server.folder / "ca.crt"}"\n'
        )
        wait_until(lambda: self.flwr("list", "lower").returncode == 0, 60, "the SuperLink")

    def superlink_command(self) -> list[str | Path]:
        """Return the command that starts the SuperLink."""
        made = self.server.folder / "certificates"
        every = "0.0.0.0"  # nosec B104 # behind the firewall of a network namespace, as docs/deploy.md has it
        return [
            BIN / "psl-superlink", "--host", every, "--port", str(FLEET_PORT),
            "--ssl-ca-certfile", made / "ca.crt", "--ssl-certfile", made / "server.pem",
            "--ssl-keyfile", made / "server.key", "--enable-supernode-auth",
            "--disable-runtime-dependency-installation", "--database", self.server.folder / "superlink.db",
        ]  # fmt: skip

    def register(self) -> None:
        """Register all nodes' keys, by the operator."""
        for n, node in enumerate(self.nodes):
            self.node_ids.append(self.register_host(node, f"patch-{n}"))

    def register_host(self, host: Host, name: str) -> str:
        """Register the key of a node's host; return its id."""
        done = self.flwr(
            "supernode", "register", str(host.folder / "auth.pub"), "lower", "--name", name, "--format", "json"
        )
        if done.returncode != 0:
            raise RunError(f"{name} could not be registered: {last_line(done.stdout + done.stderr)}")
        return str(json.loads(done.stdout)["node-id"])

    def start_node(self, n: int) -> None:
        """Start a node's SuperNode."""
        self.start_supernode(self.nodes[n], self.node_config(n))

    def start_supernode(self, host: Host, node_config: Mapping[str, str | bool]) -> None:
        """Start a SuperNode on a host."""
        host.start(self.supernode_command(host, node_config), "supernode.log")

    def supernode_command(self, host: Host, node_config: Mapping[str, str | bool]) -> list[str | Path]:
        """Return the command that starts a SuperNode."""
        return [
            BIN / "psl-supernode", "--root-certificates", host.folder / "ca.crt",
            "--superlink", f"{self.server.address}:{FLEET_PORT}",
            "--auth-supernode-private-key", host.folder / "auth",
            "--node-config", " ".join(f"{name}={_toml(value)}" for name, value in node_config.items()),
        ]  # fmt: skip

    def start(self) -> None:
        """Start everything and wait until all nodes are registered and online."""
        self.start_superlink()
        self.register()
        for n in range(len(self.nodes)):
            self.start_node(n)
        self.wait_for_nodes(len(self.nodes))

    def wait_for_nodes(self, count: int, timeout_s: float = 90.0) -> None:
        """Wait until this number of nodes is online."""
        wait_until(lambda: self.online() == count, timeout_s, f"{count} nodes online")

    def online(self) -> int:
        """Return the number of nodes that the SuperLink counts as online."""
        listed = self.flwr("supernode", "list", "lower", "--format", "json")
        nodes = json.loads(listed.stdout).get("nodes", []) if listed.returncode == 0 else []
        return sum(node["status"] == "online" for node in nodes)

    def flwr(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Call `flwr` as the operator does, on the server's host."""
        return self.server.call([BIN / "flwr", *arguments], timeout)

    def train(self, *settings: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Call `flwr run` and return when the run is over; its status is in the run's folder."""
        return self.server.call(self._run_command(settings), timeout)

    @contextlib.contextmanager
    def training(self, *settings: str) -> Iterator[subprocess.Popen[bytes]]:
        """Start `flwr run` in the background."""
        process = self.submit(*settings)
        try:
            yield process
        finally:
            process.kill()

    def submit(self, *settings: str) -> subprocess.Popen[bytes]:
        """Start `flwr run`, which ends when the run does."""
        return self.server.start(self._run_command(settings), "run.log")

    def _run_command(self, settings: Sequence[str]) -> list[str | Path]:
        made = self.server.folder / "certificates"
        exchange = (
            f"exchange-host={self.server.address}", f"exchange-port={EXCHANGE_PORT}",
            f"exchange-cert={made / 'server.pem'}", f"exchange-key={made / 'server.key'}",
            f"exchange-client-ca={made / 'ca.crt'}",
        )  # fmt: skip
        # A run that is resumed, asked for predictions, lightened or audited has its settings.
        begun = any(setting.startswith(("resume=", "predict=", "lighten=", "audit=")) for setting in settings)
        given: dict[str, object] = {}
        for part in ([] if begun else self._settings, exchange, settings):
            given |= parse_settings(list(part))
        pairs = " ".join(f"{key}={json.dumps(value)}" for key, value in given.items())
        return [BIN / "flwr", "run", app_folder(), "lower", "--stream", "--run-config", pairs]

    def run(self, name: str) -> RunFolder:
        """Return the folder of a run, on the server."""
        return RunFolder(self._workspace / "runs" / name)

    def status(self, name: str) -> Status:
        """Return a run's status."""
        status = self.run(name).read_status()
        if status is None:
            raise RunError(f"run {name} has not begun: {self.logs()}")
        return status

    def logs(self) -> str:
        """Return the ends of all logs, for the message of a failure."""
        hosts = (self.server, self.network.patch_server, *self.nodes, self.network.guest)
        logs = [log for host in hosts for log in sorted(host.folder.glob("*.log"))]
        return "\n".join(f"--- {log}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)

    def one_process(self, name: str) -> OneProcessTrainer:
        """Return the network of a run before its first step, in this process, with the nodes' stores."""
        from psl_flower.engine.one_process import OneProcessTrainer  # loads torch, which takes seconds

        config = self.run(name).read_config().replace(workspace=str(self._workspace))
        stores = prepare_stores(config)
        opened = [self.open_store(n) for n in range(len(self.nodes))]
        return OneProcessTrainer(config, stores.description, stores.labels, opened)

    def open_store(self, n: int) -> PatchStore:
        """Open a node's store with its key."""
        return open_store(self.store(n), KeyRing(self.nodes[n].folder / "node.key"))


def started_again(command: Sequence[str | Path]) -> list[str | Path]:
    """Return a command that starts a program, and again whenever it ends, as the systemd units do."""
    return ["sh", "-c", 'while :; do "$@"; sleep 5; done', "sh", *command]


def _toml(value: str | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else f"'{value}'"


def _certificates_script() -> Path:
    return app_folder() / "deploy" / "make-certificates.sh"
