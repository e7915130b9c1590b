"""Two groups of owners on separate hosts: examples/groups as its README says it, with a SuperLink and four SuperNodes.

Mutual TLS, node keys and firewalls; the key of the ids is on the nodes alone, and the server has pseudonyms.
"""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from psl_flower.flower import pseudonyms
from simulations.separate_hosts import deployment
from simulations.separate_hosts.deployment import BIN, EXCHANGE_PORT, started_again
from simulations.separate_hosts.network import Host, Network
from tests import plain_split as plain
from tests.e2e.conftest import hosts, wait_until
from tests.plain_examples import EXAMPLES, example, expected, rounds, weights

pytestmark = pytest.mark.usefixtures("one_thread")

# What its README says of nodes of their own, and what the server is given in place of the key.
CHANGES = {
    "import torch\n": "from pathlib import Path\n\nimport torch\n",
    'ID_KEY = b"only for this simulation"\n': "",
    "id_key=ID_KEY": 'id_key=Path(context.node_config["id-key"]).read_bytes()',
    "pseudonyms(IDS, ID_KEY)": 'Path(context.run_config["pseudonyms"]).read_text().split()',
    'given = {key: context.run_config[key] for key in ("epochs", "workdir", "transport")}':
        'given = {key.replace("-", "_"): value for key, value in context.run_config.items() if key != "pseudonyms"}',
}  # fmt: skip
# Settings that only a deployment has, in the app's configuration.
OWN = ("pseudonyms", "exchange-host", "exchange-cert", "exchange-key", "exchange-client-ca")


class Owners(deployment.Deployment):
    """One host for each department of each group; nodes of the north run installed code alone."""

    def __init__(self, network: Network, parties: Sequence[str]) -> None:
        super().__init__(network, "")
        self.parties = dict(zip(parties, network.nodes, strict=True))
        self.app = self._made(network.server.folder / "app")
        key = secrets.token_bytes(32)
        for node in network.nodes:
            (node.folder / "ids.key").write_bytes(key)
            shutil.copytree(self.app, node.folder / "app")
        self.pseudonyms = network.server.folder / "pseudonyms"
        self.pseudonyms.write_text("\n".join(pseudonyms(example("groups").IDS, key)))

    def _ingest(self, dataset: str, arguments: Sequence[str]) -> None:
        """There are no stores: each owner has a table."""

    def _made(self, app: Path) -> Path:
        shutil.copytree(EXAMPLES / "groups", app, ignore=shutil.ignore_patterns("__pycache__"))
        text = (app / "groups.py").read_text("utf-8")
        for before, after in CHANGES.items():
            assert text.count(before) == 1, before
            text = text.replace(before, after)
        (app / "groups.py").write_text(text, "utf-8")
        with (app / "pyproject.toml").open("a", encoding="utf-8") as file:
            file.writelines(f'{name} = ""\n' for name in OWN)
            file.write("exchange-port = 0\n")
        return app

    def node_config(self, n: int) -> dict[str, str | bool]:
        host, party = self.nodes[n], list(self.parties)[n]
        places = {"id-key": "ids.key", "state": "state", "exchange-ca": "ca.crt", "exchange-cert": "exchange.pem"}
        places["exchange-key"] = "exchange.key"
        return {"party": party, **{name: str(host.folder / file) for name, file in places.items()}}

    def start_supernode(self, host: Host, node_config: Mapping[str, str | bool]) -> None:
        """Start it again whenever it ends, as the systemd unit does: for a minute it may be turned away."""
        host.start(started_again(self.supernode_command(host, node_config)), "supernode.log")

    def supernode_command(self, host: Host, node_config: Mapping[str, str | bool]) -> list[str | Path]:
        command = super().supernode_command(host, node_config)
        if str(node_config["party"]).endswith("@north"):
            return [*command, "--app", host.folder / "app"]
        return [BIN / "flower-supernode", *command[1:]]

    def run_app(self, workdir: str, **settings: Any) -> subprocess.Popen[bytes]:
        """Start `flwr run`, which ends when the run does."""
        made = self.server.folder / "certificates"
        config = {
            "workdir": str(self.server.folder / workdir), "pseudonyms": str(self.pseudonyms),
            "exchange-host": self.server.address, "exchange-port": EXCHANGE_PORT,
            "exchange-cert": str(made / "server.pem"), "exchange-key": str(made / "server.key"),
            "exchange-client-ca": str(made / "ca.crt"), **settings,
        }  # fmt: skip
        pairs = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
        command = [BIN / "flwr", "run", self.app, "lower", "--stream", "--run-config", pairs]
        return self.server.start(command, "run.log")

    def weights(self, workdir: str) -> dict[str, torch.Tensor]:
        """Return all weights after the last step; other runs have left states of other runs on the nodes."""
        found = weights(self.server.folder / workdir, *(node.folder / "state" for node in self.nodes))
        for node in self.nodes:
            shutil.rmtree(node.folder / "state")
        return found

    def log(self) -> str:
        return (self.server.folder / "run.log").read_text(errors="replace") + self.logs()


@pytest.fixture(scope="module")
def owners(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Owners]:
    """Return the owners' hosts in operation."""
    parties = list(example("groups").PARTIES)
    with hosts(tmp_path_factory.mktemp("owners"), len(parties)) as network:
        made = Owners(network, parties)
        made.start()
        yield made


def ended(process: subprocess.Popen[bytes], owners: Owners, timeout_s: float = 1500) -> None:
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        pytest.fail(owners.log())


@pytest.mark.parametrize("transport", ["stream", pytest.param("flower", marks=pytest.mark.slow)])
def test_groups_train_exactly(owners: Owners, transport: str) -> None:
    epochs = {"stream": 2, "flower": 1}[transport]
    ended(owners.run_app(transport, transport=transport, epochs=epochs), owners)
    records = rounds(owners.server.folder / transport)
    assert [record["round"] for record in records] == list(range(1, epochs + 1)), owners.log()
    found, module = owners.weights(transport), example("groups")
    assert {name.partition(".")[0] for name in found} == {"top", *module.PARTIES}
    assert plain.differing(found, expected(module, epochs)) == []
    assert plain.differing(found, expected(module, epochs, steps=13 * epochs - 1)) != []
    kind = {"stream": "train.stream", "flower": "query.step"}[transport]
    for node in owners.nodes:
        assert f"Receiving: {kind} message" in (node.folder / "supernode.log").read_text(errors="replace")


@pytest.mark.slow
def test_a_node_and_the_server_are_killed(owners: Owners) -> None:
    """The SuperNode of one department dies and comes back; later the ServerApp is killed, and the run begun again."""
    workdir = owners.server.folder / "killed"
    process = owners.run_app("killed", transport="stream", epochs=6)

    def trained(count: int) -> None:
        over = lambda: len(rounds(workdir)) >= count or process.poll() is not None  # noqa: E731
        wait_until(over, 400, f"round {count}: {owners.log()}")
        assert process.poll() is None, owners.log()

    trained(1)
    owners.nodes[2].kill_all()
    owners.start_node(2)
    trained(3)
    (server,) = (each for each in owners.server.processes() if "flwr-serverapp" in " ".join(each.cmdline()))
    server.send_signal(signal.SIGKILL)
    ended(process, owners)
    before = rounds(workdir)
    assert 3 <= len(before) < 6
    ended(owners.run_app("killed", transport="stream", epochs=6), owners)
    after = rounds(workdir)
    assert after[: len(before)] == before
    assert [record["round"] for record in after] == list(range(1, 7)), owners.log()
    assert plain.differing(owners.weights("killed"), expected(example("groups"), 6)) == []
