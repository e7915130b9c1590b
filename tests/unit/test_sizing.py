"""The settings of Flower's simulation: as many nodes as can be of use and can run at once."""

import pytest

from psl_flower.launch import sizing
from psl_flower.launch.sizing import simulation

NODES = [
    # Uppers, cores, nodes wanted, whether the Adaptation Net needs one; nodes.
    ((4, 2, 0, False), 4),
    ((4, 2, 0, True), 5),
    ((2, 2, 0, False), 2),
    ((2, 2, 0, True), 3),
    ((49, 2, 0, False), 4),
    ((49, 2, 0, True), 5),
    ((49, 6, 0, True), 7),
    ((49, 64, 0, True), 10),
    ((4, 2, 2, True), 2),
    ((4, 2, 9, True), 5),
]


@pytest.mark.parametrize(("asked", "nodes"), NODES)
def test_nodes_and_slots(asked, nodes, monkeypatch):
    assert NODES
    monkeypatch.setattr(sizing, "POOL_SIZE", 10)
    num_uppers, num_cores, num_nodes, adaptation = asked
    config = simulation(num_uppers, num_cores, 0, num_nodes, adaptation=adaptation)
    assert config == {"num-supernodes": nodes, "client-resources-num-cpus": 1, "init-args-num-cpus": nodes}
