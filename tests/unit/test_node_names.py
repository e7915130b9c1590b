"""Nodes are called as they were registered, with Flower's id, which alone `flwr supernode list` knows."""

from flwr.proto.node_pb2 import NodeInfo

from psl_flower.errors import NodeLost, PeerLost, PositionMissing
from psl_flower.flower.node_names import last_holders, node_names
from psl_flower.wire.messages import ADAPTATION
from tests.in_process import InProcessGrid


def test_nodes_are_called_as_they_were_registered(tmp_path):
    class Registered(InProcessGrid):
        def get_nodes(self):
            names = {100: "attic", 101: "cellar", 102: "cellar"}
            return [NodeInfo(node_id=node, name=names.get(node, "")) for node in (100, 101, 102, 103)]

    grid = Registered(tmp_path, tmp_path, 2)
    assert node_names(grid, [100, 101, 103]) == {
        100: "node attic (id 100)",
        101: "node cellar (id 101)",
        103: "node 103",
    }
    assert node_names(grid, [101, 103], lambda node: ["image", "image"]) == {
        101: "node cellar (id 101, image)",
        103: "node 103 (image)",
    }
    assert node_names(InProcessGrid(tmp_path, tmp_path, 1), [100]) == {100: "node 100"}


def of(error, nodes):
    error.nodes = nodes
    return error


def test_who_last_held_what_is_missing():
    names = {100: "node attic (id 100)", 101: "node cellar (id 101)"}
    known = ({0: 100, 1: 101, ADAPTATION: 100}, names, (0, 1, 1, 0))
    cellar = "node cellar (id 101) last held Upper 1 (position 1, 2)"
    for error in (PositionMissing("", (1,)), of(NodeLost(), (101,)), of(PeerLost(), (101, 7))):
        assert last_holders(error, *known) == cellar
    assert last_holders(PositionMissing("", (ADAPTATION,)), *known).endswith("last held the Adaptation Net")
    attic = "node attic (id 100) last held Upper 0 (position 0, 3)"
    assert {attic, cellar} < set(last_holders(PeerLost("no node has come up"), *known).split("; "))
    # Of a node that was never placed nothing is known.
    assert last_holders(of(NodeLost(), (102,)), *known) == ""
    parties = ({0: 100}, names, (0,), ("image",))
    assert last_holders(PositionMissing(""), *parties) == "node attic (id 100) last held party 'image'"
