"""Links with delay and loss between real hosts: that they are so, and that a run over one ends with the right weights."""

from __future__ import annotations

from simulations.separate_hosts.links import round_trip_s, slowed
from simulations.separate_hosts.network import Host
from tests.e2e.conftest import differing, model
from tests.e2e.watched import Deployment

STEPS = 2
DELAY_S = 0.1  # one way


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
