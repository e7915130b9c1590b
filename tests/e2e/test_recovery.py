"""Separate hosts that die, hang, are cut off or come back: what the run does, and with which weights it ends."""

from __future__ import annotations

import datetime
import re
import signal
import subprocess
import time
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from psl_flower.runs.folder import RunFolder
from simulations.separate_hosts.deployment import CLIENT_APP_PROGRAM
from simulations.separate_hosts.network import Host
from tests.authority import Authority
from tests.e2e.conftest import differing, model, wait_until
from tests.e2e.watched import Deployment

STEPS = 4
PATIENCE_S = 300.0  # on a machine that has much else to do
SOON = datetime.timedelta(seconds=5)
LATER = datetime.timedelta(seconds=110)
SHORT = (
    "rounds=1", f"steps-per-round={STEPS}", "checkpoint-every=1", "step-timeout-s=20", "node-timeout-s=150",
    "average-every=2",
)  # fmt: skip


def log_of(run: RunFolder) -> str:
    return (run.path / "log.txt").read_text()


def signalled(host: Host, program: str, number: signal.Signals) -> int:
    """Send a signal to all processes of a program on a host; return how many there were."""
    found = host.running(program)
    for process in found:
        process.send_signal(number)
    return len(found)


def restart(deployed: Deployment, n: int) -> None:
    """Kill a node's programs and start them again."""
    deployed.nodes[n].kill_all()
    deployed.start_node(n)


def train_disturbed(deployed: Deployment, name: str, disturb: Callable[[RunFolder], None], *settings: str) -> RunFolder:
    """Start a run, disturb it once a step is committed, and wait for its end."""
    deployed.wait_for_nodes(4)
    run = deployed.run(name)
    with deployed.training(f"run-name={name}", *(settings or SHORT)) as process:
        wait_until(lambda: any(run.checkpoints.steps()), PATIENCE_S, "the checkpoint of a step")
        disturb(run)
        process.communicate(timeout=2 * PATIENCE_S)
    return run


def ends_exactly(deployed: Deployment, run: RunFolder, steps: int = STEPS) -> None:
    status = deployed.status(run.name)
    assert status.state == "completed", status.message + deployed.logs()
    assert differing(model(run), deployed.oracle(run.name, steps)) == []


def gone_back(run: RunFolder) -> None:
    wait_until(lambda: "go back to step" in log_of(run), PATIENCE_S, "the loss to be noticed")


def test_host_dies_and_comes_back(deployed: Deployment) -> None:
    """The run goes back to the last step that all have saved, and ends with the weights of an undisturbed one."""

    def disturb(run: RunFolder) -> None:
        deployed.nodes[1].kill_all()
        gone_back(run)
        deployed.start_node(1)

    run = train_disturbed(deployed, "host-dies", disturb)
    # By its registered name, and Flower's id.
    assert re.search(r"node patch-1 \(id \d+\)(: | last held Upper 1 )", log_of(run))
    ends_exactly(deployed, run)


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(3))
def test_host_is_started_again_at_once(deployed: Deployment, turn: int) -> None:
    """It is back before Flower notices, or in the moment in which it could: the message that it had stays unanswered."""
    run = train_disturbed(deployed, f"host-reboots-{turn}", lambda run: restart(deployed, 1))
    assert "go back to step" in log_of(run)
    ends_exactly(deployed, run)


@pytest.mark.slow
def test_client_app_dies(deployed: Deployment) -> None:
    """Its SuperNode lives, and takes the next message."""

    def disturb(run: RunFolder) -> None:
        assert signalled(deployed.nodes[2], CLIENT_APP_PROGRAM, signal.SIGKILL)
        gone_back(run)

    ends_exactly(deployed, train_disturbed(deployed, "client-dies", disturb))


@pytest.mark.slow
def test_super_node_dies(deployed: Deployment) -> None:
    """Its ClientApp trains on over its stream; the next round waits until Flower has let the node in again."""

    def disturb(run: RunFolder) -> None:
        assert signalled(deployed.nodes[1], "flower-supernode", signal.SIGKILL)

    settings = ("rounds=2", f"steps-per-round={STEPS // 2}", *SHORT[2:])
    run = train_disturbed(deployed, "supernode-dies", disturb, *settings)
    ends_exactly(deployed, run)


@pytest.mark.slow
def test_patch_server_dies(deployed: Deployment) -> None:
    """The node that reads its store there says so; the run goes back, waits for the store, and goes on."""

    def disturb(run: RunFolder) -> None:
        deployed.network.patch_server.kill_all()
        try:
            gone_back(run)
            wait_until(lambda: "waiting for it" in log_of(run), PATIENCE_S, "the store to be waited for")
        finally:
            deployed.start_patch_server()

    run = train_disturbed(deployed, "patch-server-dies", disturb)
    assert "PatchServerLost" in log_of(run)
    ends_exactly(deployed, run)


@pytest.mark.slow
def test_certificate_expires(deployed: Deployment) -> None:
    """A round that begins with an expired certificate ends the run, which names it; renewed, `resume` goes on."""
    authority = Authority.made(deployed.server.folder / "certificates")
    key = ec.generate_private_key(ec.SECP256R1())
    hosts, rounds = (deployed.server.address,), STEPS + 2
    files = authority.issue("short", hosts=hosts, key=key)

    def disturb(run: RunFolder) -> None:
        authority.issue("short", hosts=hosts, key=key, end=datetime.datetime.now(datetime.UTC) + SOON)

    settings = (f"rounds={rounds}", "steps-per-round=1", "step-timeout-s=20", "node-timeout-s=150")
    own = (f"exchange-cert={files[0]}", f"exchange-key={files[1]}")
    run = train_disturbed(deployed, "certificate-expires", disturb, *settings, *own)
    status = deployed.status(run.name)
    assert status.state == "failed"
    assert f"exchange-cert: {files[0]}: expired on" in status.message
    assert 0 < run.checkpoints.steps()[-1] < rounds
    authority.issue("short", hosts=hosts, key=key)
    deployed.train(f"resume={run.name}", *own)
    ends_exactly(deployed, run, rounds)


@pytest.mark.slow
def test_certificate_of_the_superlink_expires(deployed: Deployment) -> None:
    """Flower connects anew for every message, so the run ends at once; renewed, and all restarted, `resume` goes on."""
    authority = Authority.made(deployed.server.folder / "certificates")
    hosts = (deployed.server.address, "127.0.0.1")
    kept = {path: path.read_bytes() for path in authority.folder.glob("server.*")}

    def restart_superlink() -> None:
        deployed.server.kill_all()
        deployed.start_superlink()

    rounds, at_expiry = 8, []
    end = datetime.datetime.now(datetime.UTC) + LATER
    authority.issue("server", hosts=hosts, end=end)
    restart_superlink()

    def disturb(run: RunFolder) -> None:
        wait_until(lambda: datetime.datetime.now(datetime.UTC) > end, PATIENCE_S, "the certificate's last second")
        at_expiry.append(run.checkpoints.steps()[-1])
        # `flwr run` may end before the run does: it connects to the SuperLink too.
        wait_until(lambda: (status := run.read_status()) is not None and status.ended, PATIENCE_S, "the run's end")

    settings = (f"rounds={rounds}", "steps-per-round=1", "step-timeout-s=20", "node-timeout-s=150")
    try:
        run = train_disturbed(deployed, "superlink-expires", disturb, *settings)
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
        restart_superlink()
        for n in range(4):
            restart(deployed, n)
        deployed.wait_for_nodes(4)
    status = deployed.status(run.name)
    assert status.state == "failed"
    assert "the SuperLink's certificate is refused: certificate has expired; make a new one" in status.message
    assert 0 < at_expiry[0] <= run.checkpoints.steps()[-1] < rounds
    deployed.train(f"resume={run.name}")
    ends_exactly(deployed, run, rounds)


@pytest.mark.slow
def test_host_hangs(deployed: Deployment) -> None:
    """Stopped for longer than an exchange may take, and than Flower's heartbeats; then it goes on where it was."""

    def disturb(run: RunFolder) -> None:
        for process in deployed.nodes[3].processes():
            process.send_signal(signal.SIGSTOP)
        try:
            gone_back(run)
            time.sleep(10)
        finally:
            for process in deployed.nodes[3].processes():
                process.send_signal(signal.SIGCONT)

    ends_exactly(deployed, train_disturbed(deployed, "host-hangs", disturb))


@pytest.mark.slow
def test_cable_is_cut(deployed: Deployment) -> None:
    """With data under way, which hides the loss from TCP's keepalive, long before an exchange's deadline."""

    def disturb(run: RunFolder) -> None:
        deployed.network.unplug(deployed.network.nodes[0])
        try:
            gone_back(run)
        finally:
            deployed.network.plug_in(deployed.network.nodes[0])

    settings = [setting for setting in SHORT if not setting.startswith("step-timeout")]
    ends_exactly(
        deployed, train_disturbed(deployed, "cable-cut", disturb, *settings, f"step-timeout-s={2 * PATIENCE_S}")
    )


@pytest.mark.slow
def test_server_app_dies(deployed: Deployment) -> None:
    """The run is over; `resume` brings it to the same weights."""

    def disturb(run: RunFolder) -> None:
        assert signalled(deployed.server, "flwr-serverapp", signal.SIGKILL)

    run = train_disturbed(deployed, "server-dies", disturb)
    assert run.checkpoints.steps()[-1] < STEPS
    deployed.train(f"resume={run.name}")
    ends_exactly(deployed, run)


@pytest.mark.slow
def test_disk_of_a_node_is_full(deployed: Deployment) -> None:
    """One error that names node and file; with more room `resume` goes on."""
    state = deployed.nodes[0].folder / "state"
    state.mkdir(exist_ok=True)
    # Room for the states of two steps.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "psl-test", state], check=True)
    try:
        restart(deployed, 0)
        run = train_disturbed(deployed, "disk-full", lambda run: None)
        assert deployed.status(run.name).state == "failed"
        message = deployed.status(run.name).message
        assert "node patch-0" in message
        assert "No space left on device; free some space" in message
        assert 0 < run.checkpoints.steps()[-1] < STEPS
        subprocess.run(["mount", "-o", "remount,size=100m", state], check=True)
        deployed.train(f"resume={run.name}")
        ends_exactly(deployed, run)
    finally:
        deployed.nodes[0].kill_all()
        subprocess.run(["umount", "-l", state], check=True)
        restart(deployed, 0)


@pytest.mark.slow
@pytest.mark.parametrize("left", ["an older state", "no state"])
def test_node_comes_back_without_its_state(deployed: Deployment, left: str) -> None:
    """It cannot go on; the run ends and says so, and goes on when the state is there again."""
    states = deployed.nodes[2].folder / "state"
    taken = deployed.nodes[2].folder / "taken"

    def disturb(run: RunFolder) -> None:
        deployed.nodes[2].kill_all()
        committed = run.checkpoints.steps()[-1]
        for path in states.rglob("step-*.pt"):
            if run.name in str(path) and (left == "no state" or int(path.stem.removeprefix("step-")) >= committed):
                path.rename(taken / path.name)
        gone_back(run)
        deployed.start_node(2)

    taken.mkdir()
    name = "without-" + left.replace(" ", "-")
    run = train_disturbed(deployed, name, disturb)
    status = deployed.status(name)
    assert status.state == "failed"
    assert "node patch-2" in status.message
    assert "no checkpoint of step" in status.message
    folder = next(path for path in states.rglob("upper-002") if name in str(path))
    for path in taken.iterdir():
        path.rename(folder / path.name)
    taken.rmdir()
    deployed.wait_for_nodes(4)
    deployed.train(f"resume={name}")
    ends_exactly(deployed, run)


@pytest.mark.slow
def test_superlink_dies(deployed: Deployment) -> None:
    """With all that it started; started again on the same database, it knows the nodes, and they come back to it."""

    def disturb(run: RunFolder) -> None:
        deployed.server.kill_all()

    run = train_disturbed(deployed, "superlink-dies", disturb)
    assert run.checkpoints.steps()[-1] < STEPS
    deployed.start_superlink()
    deployed.wait_for_nodes(4)
    deployed.train(f"resume={run.name}")
    ends_exactly(deployed, run)


@pytest.mark.slow
def test_goes_on_without_a_node_and_takes_it_back(deployed: Deployment) -> None:
    """Every round says which Uppers were absent; the Lower ends with the weights of one process that left them out."""
    deployed.wait_for_nodes(4)
    name, longest = "without", 40
    run = deployed.run(name)
    settings = (f"rounds={longest}", "steps-per-round=1", "on-missing-node=continue", "node-timeout-s=60")
    with deployed.training(f"run-name={name}", "collect-model=false", *settings) as process:
        wait_until(lambda: any(run.checkpoints.steps()), PATIENCE_S, "the checkpoint of a step")
        deployed.nodes[1].kill_all()
        wait_until(lambda: "continuing without: Upper 1 (position 1)" in log_of(run), 400, "going on without the node")
        wait_until(lambda: [1] in absences(run), 240, "a round without the node")
        deployed.start_node(1)
        wait_until(lambda: [1] in absences(run) and absences(run)[-1] == [], 240, "the node to be taken back")
        (run.path / "stop").touch()
        process.communicate(timeout=120)
    # The round that the stop ended has no metrics; everybody was there.
    rounds = absences(run) + [[]] * (run.checkpoints.steps()[-1] - len(absences(run)))
    assert len(rounds) < longest
    assert deployed.status(name).state == "stopped"
    assert differing_lower(run, deployed, rounds) == []
    assert differing_lower(run, deployed, [[]] * len(rounds)) != []


def absences(run: RunFolder) -> list[list[int]]:
    return [metrics["absent_uppers"] for metrics in run.read_metrics()]


def differing_lower(run: RunFolder, deployed: Deployment, rounds: list[list[int]]) -> list[str]:
    """Return the names of the Lower's weights that differ from one process that leaves these Uppers out of the steps."""
    found = run.checkpoints.load(run.checkpoints.steps()[-1])["lower"]
    one_process = deployed.one_process(run.name)
    for absent in rounds:
        one_process.train(1, absent=absent)
    wanted = one_process.net.lower.state_dict()
    return differing(found, wanted)
