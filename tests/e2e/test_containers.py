"""The containers of deploy/, used as docs/deploy.md says: a server and four nodes, each a compose project of its own.

Every project has a network of its own, so a node reaches the server at the ports that it publishes, and nothing reaches a
node. Needs a Docker engine with compose, and the image.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from psl_flower.engine.one_process import OneProcessTrainer
from psl_flower.errors import RunError
from psl_flower.kinds import parse_settings
from psl_flower.launch.running import app_folder
from psl_flower.patches.store import store_folder
from psl_flower.runs.folder import RunFolder
from psl_flower.sealed.keyring import KeyRing
from psl_flower.stores.opening import open_store
from psl_flower.stores.prepare import prepare_stores
from simulations.child import call
from simulations.separate_hosts.deployment import BIN
from tests.e2e.conftest import differing, model, wait_until
from tests.e2e.watched import DATASET, INGEST

pytestmark = pytest.mark.slow

IMAGE = "psl-flower"
USER = 10001  # of the image
NUM_NODES = 4
STEPS = 12
APP = "/opt/psl-flower"
SETTINGS = (
    "dataset=/srv/psl/dataset", "keys=/etc/psl/lower.key", "owner=/etc/psl/owner.key.pub", "batch-size=32", "lr=0.02",
    "rounds=1", f"steps-per-round={STEPS}", "checkpoint-every=1", "evaluate-every=0", "upper-threads=1",
    "lower-threads=1", "exchange-host=0.0.0.0", "exchange-port=9444",
)  # fmt: skip


def _why_not() -> str:
    if os.geteuid() != 0:
        return "files for the image's user need root"
    for command in (["info"], ["compose", "version"]):
        if (
            not shutil.which("docker")
            or subprocess.run(["docker", *command], capture_output=True, check=False).returncode
        ):
            return f"no Docker engine: docker {' '.join(command)} fails"
    if subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, check=False).returncode:
        return f"no image {IMAGE}: docker build -f deploy/Dockerfile -t {IMAGE} ."
    return ""


@dataclass
class Place:
    """A host of one compose project: its folder, and what its containers know from the environment."""

    name: str
    profile: str
    folder: Path
    environment: tuple[str, ...] = ()

    @property
    def etc(self) -> Path:
        return self.folder / "etc"

    def psl(self, *arguments: str) -> None:
        """Call `psl` in a container that may write /etc/psl, as whoever sets the host up does."""
        call("docker", "run", "--rm", "--volume", f"{self.etc}:/etc/psl", IMAGE, "psl", *arguments)

    def command(self, *arguments: str | Path) -> list[str]:
        """Return the command that calls `docker compose` on this host."""
        file = app_folder() / "deploy" / "compose.yaml"
        project = ("--project-name", f"psl-{self.name}", "--file", file, "--profile", self.profile)
        return ["env", f"PSL_ETC={self.etc}", *self.environment, "docker", "compose", *map(str, (*project, *arguments))]

    def compose(self, *arguments: str | Path) -> str:
        """Call `docker compose` on this host; return what it prints."""
        return call(*self.command(*arguments))

    def process(self) -> int:
        """Return the process, as this machine numbers it, of the program that the container runs beneath its init."""
        container = self.compose("ps", "--quiet").strip()
        init = call("docker", "inspect", "--format", "{{.State.Pid}}", container).strip()
        return int(Path(f"/proc/{init}/task/{init}/children").read_text().split()[0])


class Containers:
    """The server's and the nodes' containers, and what their owner and operator did for them."""

    def __init__(self, folder: Path) -> None:
        gateway = call("docker", "network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}")
        self.address = gateway.strip()
        self.owner = folder / "owner"
        self.server = Place("server", "server", folder / "server")
        self.nodes = [Place(f"node{n}", "node", folder / f"node{n}") for n in range(NUM_NODES)]
        self.server.environment = (f"PSL_DATASET={self.server.folder / 'dataset'}",)
        for place in (self.server, *self.nodes):
            place.etc.mkdir(parents=True)
            os.chown(place.etc, USER, USER)
        for node in self.nodes:
            node.environment = (f"PSL_STORE={node.folder / 'store'}", f"PSL_SUPERLINK={self.address}:9092")
        self._set_up()

    def _set_up(self) -> None:
        script, made = app_folder() / "deploy" / "make-certificates.sh", self.owner / "certificates"
        self.owner.mkdir()
        call(script, made, self.address)
        self.server.psl("keygen", "lower", "--out", "/etc/psl/lower.key")
        for name in ("server.pem", "server.key"):
            shutil.copy(made / name, self.server.etc)
        for node in self.nodes:
            node.psl("keygen", "node", "--out", "/etc/psl/node.key")
            call("ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-C", "", "-f", node.etc / "auth")
            shutil.copy(node.etc / "auth.pub", self.server.etc / f"auth-of-{node.name}.pub")
        call(BIN / "psl", "keygen", "owner", "--out", self.owner / "owner.key")
        keys = [argument for node in self.nodes for argument in ("--node-key", node.etc / "node.key.pub")]
        sealed = self.owner / "sealed"
        call(
            BIN / "psl", "ingest", DATASET, "--out", sealed, "--owner-key", self.owner / "owner.key", *keys,
            "--lower-key", self.server.etc / "lower.key.pub", *INGEST, PSL_STATE=str(self.owner),
        )  # fmt: skip
        for n, node in enumerate(self.nodes):
            shutil.move(store_folder(sealed, n), node.folder / "store")
        shutil.move(sealed, self.server.folder / "dataset")
        for place in (self.server, *self.nodes):
            for file in (made / "ca.crt", self.owner / "owner.key.pub"):
                shutil.copy(file, place.etc)
            call("chown", "--recursive", f"{USER}:{USER}", place.folder)

    def start(self) -> None:
        self.server.compose("up", "--detach", "--no-build")
        wait_until(lambda: self.asked("flwr", "list", "lower") != "", 90, "the SuperLink")
        for node in self.nodes:
            self.flwr("supernode", "register", f"/etc/psl/auth-of-{node.name}.pub", "lower", "--name", node.name)
            node.compose("up", "--detach", "--no-build")
        wait_until(lambda: self.online() == NUM_NODES, 120, "four nodes online")

    def stop(self) -> None:
        for place in (self.server, *self.nodes):
            subprocess.run(place.command("down", "--volumes", "--timeout", "5"), capture_output=True, check=False)

    def flwr(self, *arguments: str) -> str:
        return self.server.compose("exec", "-T", "superlink", "flwr", *arguments)

    def asked(self, *command: str) -> str:
        """Return what a program in the server's container prints; nothing if it fails."""
        try:
            return self.server.compose("exec", "-T", "superlink", *command)
        except RunError:
            return ""

    def online(self) -> int:
        listed = json.loads(self.flwr("supernode", "list", "lower", "--format", "json"))
        return sum(node["status"] == "online" for node in listed["nodes"])

    def train(self, *settings: str) -> subprocess.Popen[bytes]:
        pairs = parse_settings([*SETTINGS, f"exchange-advertise={self.address}", *settings])
        written = " ".join(f"{key}={json.dumps(value)}" for key, value in pairs.items())
        run = ("flwr", "run", APP, "lower", "--stream", "--run-config", written)
        command = self.server.command("exec", "-T", "superlink", *run)
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command, **quiet)

    def run(self, name: str, into: Path) -> RunFolder:
        """Copy a run out of the server's container."""
        self.server.compose("cp", f"superlink:/data/workspace/runs/{name}", into)
        return RunFolder(into)

    def logs(self) -> str:
        return "\n".join(place.compose("logs", "--tail", "30") for place in (self.server, *self.nodes))

    def oracle(self, run: RunFolder, num_steps: int) -> dict[str, torch.Tensor]:
        """Return the weights of the same network trained in this process on the nodes' stores."""
        config = run.read_config().replace(
            workspace=str(run.path.parent), dataset=str(self.server.folder / "dataset"),
            keys=str(self.server.etc / "lower.key"), owner=str(self.owner / "owner.key.pub"),
        )  # fmt: skip
        stores = prepare_stores(config)
        opened = [open_store(node.folder / "store", KeyRing(node.etc / "node.key")) for node in self.nodes]
        one_process = OneProcessTrainer(config, stores.description, stores.labels, opened)
        one_process.train(num_steps)
        return one_process.net.state_dict()


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    reason = _why_not()
    if reason:
        pytest.skip(reason)
    made = Containers(tmp_path_factory.mktemp("containers"))
    made.stop()  # what a session that was cut off left
    try:
        made.start()
        yield made
    finally:
        made.stop()


def test_trains_exactly(containers: Containers, tmp_path: Path) -> None:
    assert containers.train("run-name=plain").wait(timeout=600) == 0
    run = containers.run("plain", tmp_path / "plain")
    status = run.read_status()
    assert status is not None
    assert status.state == "completed", status.message + containers.logs()
    assert differing(model(run), containers.oracle(run, STEPS)) == []
    assert differing(model(run), containers.oracle(run, STEPS - 1)) != []


def test_a_node_that_dies_is_started_again(containers: Containers, tmp_path: Path) -> None:
    """Compose starts it until the SuperLink lets it in; the run goes back, waits, and ends with the same weights."""
    training = containers.train("run-name=killed", "step-timeout-s=20")

    checkpoints = "/data/workspace/runs/killed/checkpoints"
    # Not of step 0, which is written before the nodes are told to begin.
    committed = re.compile("step-0*[1-9]")
    wait_until(
        lambda: committed.search(containers.asked("find", checkpoints)) is not None, 300, "the checkpoint of a step"
    )
    os.kill(containers.nodes[1].process(), signal.SIGKILL)
    assert training.wait(timeout=900) == 0
    run = containers.run("killed", tmp_path / "killed")
    status = run.read_status()
    assert status is not None
    assert status.state == "completed", status.message + containers.logs()
    assert "go back to step" in (run.path / "log.txt").read_text()
    assert differing(model(run), containers.oracle(run, STEPS)) == []
