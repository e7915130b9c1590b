"""Real runs: `psl train` and `flwr run` as a user calls them, and the oracle that their weights must equal."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from psl_flower.engine.one_process import OneProcessTrainer
from psl_flower.runs.folder import RunFolder
from psl_flower.stores.prepare import prepare_stores
from tests.paths import ROOT

BIN = Path(sys.executable).parent
# Small enough for seconds a step, one thread everywhere: the oracle's kernels sum in the same order.
TINY = ("max-train=96", "max-test=32", "batch-size=16", "lr=0.02", "upper-threads=1", "lower-threads=1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(item.fspath).parent == Path(__file__).parent and not item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.e2e)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass
class Place:
    """A workspace, and the environment in which a user calls programs on it."""

    workspace: Path
    flower_home: Path
    environment: dict[str, str] = field(default_factory=dict)

    def psl(self, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / "psl"), *arguments], env=self.environment, cwd=ROOT, capture_output=True, text=True,
            timeout=timeout, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip

    def start_psl(self, *arguments: str, cwd: Path = ROOT) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(BIN / "psl"), *arguments], env=self.environment, cwd=cwd, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            # A shell that runs the tests in the background ignores SIGINT, and so would all that they start.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def flwr(self, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        path = f"{BIN}{os.pathsep}{self.environment['PATH']}"
        return subprocess.run(
            [str(BIN / "flwr"), *arguments], env={**self.environment, "PATH": path}, cwd=ROOT, capture_output=True, text=True,
            timeout=timeout, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip

    def run(self, name: str) -> RunFolder:
        return RunFolder(self.workspace / "runs" / name)

    def processes(self) -> list[psutil.Process]:
        """Return the processes that were started in this environment and still run."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("PSL_TEST_PLACE") == str(self.workspace) and process.status() != "zombie":
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kill_all(self) -> None:
        for process in self.processes():
            process.send_signal(signal.SIGKILL)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path / "workspace", tmp_path / "flwr")
    made.environment = {
        **os.environ,
        "PSL_WORKSPACE": str(made.workspace),
        "PSL_STATE": str(tmp_path / "user-state"),
        "PSL_TEST_PLACE": str(made.workspace),
        "FLWR_HOME": str(made.flower_home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
        "FLWR_LOCAL_CONTROL_API_PORT": str(free_port()),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Without the folder of our programs: whoever calls .venv/bin/psl need not have activated anything.
        "PATH": os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if Path(part) != BIN),
    }
    yield made
    made.kill_all()


@contextlib.contextmanager
def hosts(folder: Path, num_nodes: int) -> Iterator[Any]:
    """Give hosts of their own on this machine, a `simulations.separate_hosts.network.Network`; skip where it has none."""
    from simulations.separate_hosts.network import Network, NotAllowed, why_not

    reason = why_not()
    if reason:
        pytest.skip(reason)
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    try:
        network = Network(folder, num_nodes, environment)
    except NotAllowed as error:
        pytest.skip(f"this machine does not allow separate hosts: {error}")
    try:
        yield network
    finally:
        network.close()


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return a `watched.Deployment` in operation, one for all tests: to start it takes a minute."""
    from tests.e2e.watched import Deployment  # which itself takes the tools below

    with hosts(tmp_path_factory.mktemp("hosts"), 4) as network:
        made = Deployment(network)
        made.start()
        yield made


def oracle(run: RunFolder, num_steps: int) -> dict[str, torch.Tensor]:
    """Return the weights of the same network trained in this process on the run's own batches."""
    config = run.read_config()
    stores = prepare_stores(
        config.replace(workspace=str(run.path.parents[1])), labels_version=run.read_description().labels_version
    )
    assert not stores.created
    opened = [stores.open(m) for m in range(stores.description.num_uppers)]
    one_process = OneProcessTrainer(config, stores.description, stores.labels, opened)
    one_process.train(num_steps)
    return one_process.net.state_dict()


def model(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(run.model / "model.safetensors")


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    assert len(a) > 90  # a ResNet18 Lower alone has 92
    return [name for name in a if not torch.equal(a[name], b[name])]


def last_json(text: str) -> dict[str, Any]:
    answer = json.loads(text.strip().splitlines()[-1])
    assert isinstance(answer, dict)
    return answer


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.1)
