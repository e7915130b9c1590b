"""Links with delay and loss between real hosts: that they are so, and that a run over one ends with the right weights.

And a link that is cut with data under way: that the stream over it ends soon, by itself.
"""

from __future__ import annotations

import sys

import pytest

from simulations.separate_hosts.links import round_trip_s, slowed
from simulations.separate_hosts.network import Host, ip
from tests.e2e.conftest import differing, model, wait_until
from tests.e2e.watched import Deployment

STEPS = 2
DELAY_S = 0.1  # one way

# Accepts a connection; once the file is there, sends on it and waits for an answer.
_LISTEN = """
import socket, sys, time
from pathlib import Path
from psl_flower.errors import PeerLost
from psl_flower.wire.connection import Connection
from psl_flower.wire.frames import Expectation, Frame, Limits
from psl_flower.wire.messages import Finish, Saved
with socket.create_server((sys.argv[1], 9445)) as listener:
    print("listening", flush=True)
    accepted, _ = listener.accept()
print("connected", flush=True)
connection = Connection(accepted, "the node", Limits())
while not Path(sys.argv[2]).exists():
    time.sleep(0.1)
began = time.monotonic()
connection.send(Frame(Finish()), began + 10)
try:
    connection.receive(Expectation(Saved), began + 600)
except PeerLost as error:
    print(f"after {time.monotonic() - began:.0f} s: {error}", flush=True)
"""
_CONNECT = "import socket, sys, time; held = socket.create_connection((sys.argv[1], 9445)); time.sleep(1000)"


def sent_again(host: Host) -> int:
    """Return how many TCP segments a host has sent again so far."""
    names, values = (line.split() for line in host.call(["grep", "^Tcp:", "/proc/net/snmp"]).stdout.splitlines())
    return int(values[names.index("RetransSegs")])


def test_a_run_over_a_slow_link_that_loses_frames(deployed: Deployment) -> None:
    slow, other = 0, 1
    deployed.wait_for_nodes(4)
    usual_s, before = round_trip_s(deployed.network, slow), sent_again(deployed.nodes[slow])
    # Frames that wait for the slow link's program: this machine's own delay, when busy, comes on top.
    with slowed(deployed.network, [slow], DELAY_S):
        assert 2 * DELAY_S <= round_trip_s(deployed.network, slow) - usual_s < 2 * DELAY_S + 0.04
        assert round_trip_s(deployed.network, other) < 0.03
    with slowed(deployed.network, [slow], DELAY_S, loss=0.01):
        done = deployed.train("run-name=slow-link", "rounds=1", f"steps-per-round={STEPS}")
    status = deployed.status("slow-link")
    assert status.state == "completed", status.message + done.stdout + done.stderr + deployed.logs()
    assert differing(model(deployed.run("slow-link")), deployed.oracle("slow-link", STEPS)) == []
    assert sent_again(deployed.nodes[slow]) > before
    assert round_trip_s(deployed.network, slow) < 0.03


@pytest.mark.slow
def test_a_stream_ends_when_its_link_is_cut_with_data_under_way(deployed: Deployment) -> None:
    """TCP's keepalive says nothing then, and the system itself would try for a quarter of an hour."""
    server, guest = deployed.server, deployed.network.guest
    said, cut = server.folder / "cut.log", server.folder / "cut"
    listening = server.start([sys.executable, "-c", _LISTEN, server.address, cut], said.name)
    try:
        wait_until(lambda: "listening" in said.read_text(), 60, "the listener")
        guest.start([sys.executable, "-S", "-c", _CONNECT, server.address], "connect.log")
        wait_until(lambda: "connected" in said.read_text(), 60, "the connection")
        ip("-n", guest.namespace, "link", "set", "eth0", "down")
        cut.touch()
        assert listening.wait(timeout=75) == 0
    finally:
        listening.kill()
        guest.kill_all()
        ip("-n", guest.namespace, "link", "set", "eth0", "up")
    assert "the node: its machine acknowledges nothing for 30 s" in said.read_text()
