"""Nodes that are lost are waited for, whoever else is there and whatever the run does: the real apps, in one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import Message

from psl_flower.errors import NodeLost, PositionMissing
from psl_flower.flower import messages
from psl_flower.runs.folder import RunFolder
from psl_flower.sealed import authorisation, keyfile
from psl_flower.sealed import manifest as manifests
from psl_flower.stores.store_set import StoreSet
from tests.fault.sealed_run import exact, log_of, other, train
from tests.in_process import InProcessGrid

# Of a wait that is in vain.
SHORT_S = 5.0


def stranger(nodes: InProcessGrid, workspace: Path) -> None:
    """Let a node 102 come up whose key does not open its store."""
    other(nodes, workspace, key=str(workspace / "keys" / "node-001.key"))


def lose(
    nodes: InProcessGrid,
    workspace: Path,
    nth: tuple[str, int],
    going: Callable[[], None],
    coming: Callable[[], None] = lambda: None,
    told: str = "waiting for it",
) -> list[str]:
    """Let nodes go with the so many-th message of a kind, and come once the log says so; return messages' kinds."""
    sent: list[str] = []

    def disturb(message: Message) -> None:
        sent.append(message.metadata.message_type)
        if (sent[-1], sent.count(sent[-1])) == nth:
            going()
        elif told in log_of(workspace):
            coming()

    nodes.on_message = disturb
    return sent


@pytest.mark.parametrize("lost", [pytest.param({101}, marks=pytest.mark.slow), {100, 101}])
def test_a_lost_node_is_waited_for_beside_one_that_is_refused(
    lost: set[int], nodes: InProcessGrid, stores: StoreSet, tmp_path: Path
) -> None:
    stranger(nodes, tmp_path)
    lose(nodes, tmp_path, ("query.step", 6), lambda: nodes.gone.update(lost), nodes.gone.clear)
    run = train(nodes, tmp_path, transport="flower")
    (told,) = (line for line in log_of(tmp_path).splitlines() if "waiting for it" in line)
    assert "no node holds " in told and "(refused: node 102: " in told and "(WrongStore)); node " in told
    for node in lost:
        assert f"node {node} last held Upper {node - 100} (position " in told
    assert told.endswith("; waiting for it, up to 180 s")
    assert exact(run, stores)


def test_a_lost_node_is_done_without_beside_one_that_is_refused(nodes: InProcessGrid, tmp_path: Path) -> None:
    stranger(nodes, tmp_path)
    lose(nodes, tmp_path, ("query.step", 6), lambda: nodes.gone.add(101))
    train(nodes, tmp_path, transport="flower", node_timeout_s=SHORT_S, on_missing_node="continue")
    assert "continuing without: Upper 1 (position" in log_of(tmp_path)
    assert "completed" in log_of(tmp_path) and "no model collected: no node holds position" in log_of(tmp_path)


@pytest.mark.slow
def test_a_refused_node_that_is_needed_is_done_without(nodes: InProcessGrid, tmp_path: Path) -> None:
    nodes.config[101]["store"] = nodes.config[100]["store"]
    train(nodes, tmp_path, node_timeout_s=SHORT_S, on_missing_node="continue")
    lines = log_of(tmp_path).splitlines()
    assert any("(refused: node 101: " in line and "continuing without: Upper 1" in line for line in lines)
    assert not any("is not needed" in line for line in lines)
    assert "no model collected: no node holds position" in lines[-1] and "(refused: node 101: " in lines[-1]


@pytest.mark.parametrize(
    ("how", "on_missing_node"),
    [
        ("gone", "continue"),
        ("elsewhere", "wait"),
        *(pytest.param(how, "wait", marks=pytest.mark.slow) for how in ("gone", "unreachable", "silent")),
    ],
)
def test_a_node_lost_when_the_model_is_collected_is_waited_for(
    how: str, on_missing_node: str, nodes: InProcessGrid, stores: StoreSet, tmp_path: Path
) -> None:
    """A silent one has been started again at once: what it was sent before has no answer."""
    away = nodes.gone if how == "elsewhere" else getattr(nodes, how)

    def come() -> None:
        if how == "elsewhere":
            nodes.config[103] = nodes.config[101]
        else:
            away.clear()

    told, patience_s = ("asking again", SHORT_S) if how == "silent" else ("waiting for it", 60.0)
    sent = lose(nodes, tmp_path, ("query.collect", 2), lambda: away.add(101), come, told)
    run = train(nodes, tmp_path, node_timeout_s=patience_s, on_missing_node=on_missing_node)
    assert sent.count("query.collect") >= 4
    assert "asking again once all nodes are back" in log_of(tmp_path)
    assert exact(run, stores)


@pytest.mark.parametrize("transport", ["stream", "flower"])
def test_a_node_that_answers_late_is_reminded(
    transport: str, nodes: InProcessGrid, stores: StoreSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower's SuperNode makes a second answer where a ClientApp is killed as it ends; then each waits for the next."""
    monkeypatch.setattr(messages, "REMIND_AFTER_S", 1.0)
    nodes.late.add(101)
    run = train(nodes, tmp_path, transport=transport)
    assert exact(run, stores)
    assert "node 101 has not answered for 1 s" in log_of(tmp_path)


def test_a_node_that_does_not_come_back_when_the_model_is_collected(
    nodes: InProcessGrid, stores: StoreSet, tmp_path: Path
) -> None:
    lose(nodes, tmp_path, ("query.collect", 2), lambda: nodes.gone.add(101))
    with pytest.raises(PositionMissing, match="no node holds position .* of Upper 1 .*; node 101 last held Upper 1"):
        train(nodes, tmp_path, node_timeout_s=SHORT_S)
    # Nothing but the model is left to do, and its node is waited for, too, beside one that is refused.
    stranger(nodes, tmp_path)
    lose(nodes, tmp_path, ("query.inventory", 1), lambda: None, nodes.gone.clear, "(refused: node 102: ")
    nodes.serve(workspace=str(tmp_path), resume="run", node_timeout_s=60.0)
    assert exact(RunFolder(tmp_path / "runs" / "run"), stores)


def test_a_simulated_node_lost_when_the_model_is_collected_ends_the_run(
    nodes: InProcessGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody starts it again."""
    monkeypatch.setattr("psl_flower.flower.node_config.simulation_slots", lambda: 2)  # Flower's own, which asks Ray
    nodes.allowed = {}
    for m, node in enumerate(nodes.config):
        nodes.config[node] = {"partition-id": m, "num-partitions": 2}
    sent = lose(nodes, tmp_path, ("query.collect", 2), lambda: nodes.unreachable.add(101))
    with pytest.raises(NodeLost, match="node 1: the node is gone"):
        train(nodes, tmp_path)
    assert sent.count("query.collect") == 2


def test_a_run_that_restores_waits_for_its_nodes(nodes: InProcessGrid, stores: StoreSet, tmp_path: Path) -> None:
    restorers = [keyfile.load(tmp_path / "keys" / f"restorer-{number}.key") for number in (1, 2)]
    request = tmp_path / "request.psl"
    request.write_bytes(authorisation.authorise(manifests.load(stores.folder), restorers, [3, 17], why="a look"))
    nodes.gone.add(101)
    lose(nodes, tmp_path, ("query.inventory", 1), lambda: None, nodes.gone.clear)
    run = train(nodes, tmp_path, restore=str(request))
    assert "no node holds position" in log_of(tmp_path)
    assert [path.name for path in sorted((run.path / "answers").iterdir())] == ["upper-000.psl", "upper-001.psl"]
