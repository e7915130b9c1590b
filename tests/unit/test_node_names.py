"""Nodes are called as they were registered, and by Flower's id where they were not, or twice by one name."""

from flwr.proto.node_pb2 import NodeInfo

from psl_flower.flower.placement import node_names
from tests.in_process import InProcessGrid


def test_nodes_are_called_as_they_were_registered(tmp_path):
    class Registered(InProcessGrid):
        def get_nodes(self):
            names = {100: "attic", 101: "cellar", 102: "cellar"}
            return [NodeInfo(node_id=node, name=names.get(node, "")) for node in (100, 101, 102, 103)]

    grid = Registered(tmp_path, tmp_path, 2)
    assert node_names(grid, [100, 101, 103]) == {100: "node attic", 101: "node cellar", 103: "node 103"}
    assert node_names(grid, [101, 102]) == {101: "node cellar (101)", 102: "node cellar (102)"}
    assert node_names(InProcessGrid(tmp_path, tmp_path, 1), [100]) == {100: "node 100"}
