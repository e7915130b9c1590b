"""Nodes with a wrong store, and a patch server that goes and comes back: the real apps, in one process.

Every Upper is on a node with a sealed store, a key and a state of its own, as in a deployment.
"""

from __future__ import annotations

import io
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from flwr.app import Message
from safetensors.torch import load_file

from clients import upper_app
from psl_flower.engine.upper import claim_of
from psl_flower.errors import NodeError, PositionError
from psl_flower.patches.store import PatchStore
from psl_flower.runs.folder import RunFolder
from psl_flower.sealed import keyfile
from psl_flower.sealed.rotate import Changes, rotate
from psl_flower.stores.store_set import StoreSet
from psl_flower.wire.node_messages import Inventory
from tests.fault.sealed_run import exact, log_of, other, train
from tests.in_process import InProcessGrid
from tests.web_server import Ranges, server


def test_a_node_that_cannot_open_its_store_is_refused_by_name_and_the_others_train(
    nodes: InProcessGrid, stores: StoreSet, tmp_path: Path
) -> None:
    other(nodes, tmp_path, key=str(tmp_path / "keys" / "node-001.key"))
    run = train(nodes, tmp_path)
    (told,) = (line for line in log_of(tmp_path).splitlines() if "it is left out" in line)
    assert " node 102: " in told and "is a segment of another store (Upper 0, expected 1) (WrongStore)" in told
    assert exact(run, stores)


def test_a_node_that_is_needed_and_cannot_open_its_store_ends_the_run(nodes: InProcessGrid, tmp_path: Path) -> None:
    nodes.config[101]["store"] = nodes.config[100]["store"]
    with pytest.raises(NodeError, match=r"node 101: .*store-000/.* is a segment of another store .*\(WrongStore\)"):
        train(nodes, tmp_path)
    assert "error: node 101: " in log_of(tmp_path)


def test_all_nodes_that_are_refused_are_named_and_what_is_missing(nodes: InProcessGrid, tmp_path: Path) -> None:
    for node in (100, 101):
        nodes.config[node]["key"] = str(tmp_path / "keys" / "owner.key")
    with pytest.raises(NodeError, match=r"^node 100: .*; node 101: .*; no node holds a position"):
        train(nodes, tmp_path)


def test_a_node_that_claims_another_upper_too_ends_the_run(
    nodes: InProcessGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take the place of the honest node, or have its own weights collected as that node's."""

    def claiming_both(stores: Iterable[PatchStore]) -> Inventory:
        own = [claim_of(store) for store in stores]
        return Inventory(claims=(*own, *(msgspec.structs.replace(c, upper=0, positions=()) for c in own if c.upper)))

    monkeypatch.setattr(upper_app, "_inventory_of", claiming_both)
    with pytest.raises(PositionError, match="node 101 claims Upper 0, and no position of it"):
        train(nodes, tmp_path)


def test_a_node_that_keeps_its_weights_refuses_runs_that_collect_them(
    nodes: InProcessGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes.config[101]["collect"] = False
    began = time.monotonic()
    with pytest.raises(NodeError, match=r"node 101: this node never sends its weights \(collect=false"):
        train(nodes, tmp_path, node_timeout_s=60.0, transport="stream")
    assert time.monotonic() - began < 30, "the node's refusal was heard, and the stream waited for all the same"
    train(nodes, tmp_path, run_name="kept", collect_model=False)
    status = RunFolder(tmp_path / "runs" / "kept").read_status()
    assert status is not None and status.state == "completed"
    # A server that cheats asks for them all the same.
    monkeypatch.setattr("server.training._collected", lambda run, strategy, lower: str(strategy.collect(run.grid)))
    nodes.config[101]["collect"] = True
    with pytest.raises(NodeError, match="this run leaves its model on the nodes"):
        train(nodes, tmp_path, run_name="robbed", collect_model=False)


def test_a_second_node_with_a_position_ends_the_run_and_both_are_named(nodes: InProcessGrid, tmp_path: Path) -> None:
    other(nodes, tmp_path)
    with pytest.raises(PositionError, match="node 102 holds position 0, which node 100 holds already"):
        train(nodes, tmp_path)
    assert "error: node 102 holds position 0, which node 100 holds already" in log_of(tmp_path)


def rotated(stores: StoreSet, tmp_path: Path) -> Path:
    """Rotate all keys; return a copy of store 0 as it was before."""
    old = tmp_path / "old"
    shutil.copytree(stores.store_path(0), old)
    owner = keyfile.load(tmp_path / "keys" / "owner.key")
    rotate(stores.folder, owner, [stores.store_path(m) for m in range(2)], Changes())
    return old


def test_a_node_with_a_store_from_before_a_rotation_is_refused_by_name_and_the_others_train(
    nodes: InProcessGrid, stores: StoreSet, tmp_path: Path
) -> None:
    """Such as one that was lost with its key, and replaced."""
    other(nodes, tmp_path, store=str(rotated(stores, tmp_path)))
    run = train(nodes, tmp_path)
    (told,) = (line for line in log_of(tmp_path).splitlines() if "it is left out" in line)
    assert " node 102: its store of Upper 0 has keys of epoch 1, the run's dataset those of epoch 2; carry " in told
    assert exact(run, stores)


def test_a_node_whose_new_store_has_not_come_yet_ends_the_run(
    nodes: InProcessGrid, stores: StoreSet, tmp_path: Path
) -> None:
    nodes.config[100]["store"] = str(rotated(stores, tmp_path))
    with pytest.raises(
        NodeError, match="node 100: its store of Upper 0 has keys of epoch 1, .* the store to that node"
    ):
        train(nodes, tmp_path)


class _Going(Ranges):
    """Answers so many requests, and then none until it is told."""

    left = 0

    def send_head(self) -> io.BytesIO | Any:
        type(self).left -= 1
        if self.left < 0:
            self.close_connection = True
            return None
        return super().send_head()


@pytest.mark.parametrize("when", ["before it opens its streams", "when the round is over"])
def test_a_node_that_is_started_again_at_once_never_answers_and_is_not_waited_for(
    nodes: InProcessGrid, stores: StoreSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Flower takes the message for delivered and the node, which is back, for online: it would wait without end."""
    monkeypatch.setattr("psl_flower.flower.messages.ANSWER_TIMEOUT_S", 3.0)
    unanswered: list[str] = []

    def lose_the_first(message: Message) -> None:
        nodes.silent.clear()
        if (message.metadata.dst_node_id, message.metadata.message_type) == (101, "train.stream") and not unanswered:
            unanswered.append(message.metadata.message_id)
            if when == "before it opens its streams":
                nodes.silent.add(101)

    pull = nodes.pull_messages
    nodes.on_message = lose_the_first
    nodes.pull_messages = lambda names: pull(name for name in names if name not in unanswered)  # type: ignore[method-assign]
    run = train(nodes, tmp_path, transport="stream", node_timeout_s=5)
    early = "Upper 1 did not connect to", "all go back to step 0, the last that all have saved"
    late = "no answer from node 101", "after the round was over"
    words = late if "over" in when else early
    assert any(all(word in line for word in words) for line in log_of(tmp_path).splitlines()), log_of(tmp_path)
    assert exact(run, stores)


@pytest.fixture
def patch_server(stores: StoreSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the URL of a copy of store 1 on a web server that goes after the first step's records."""
    shutil.copytree(stores.store_path(1), tmp_path / "srv" / "store")
    monkeypatch.setattr("tests.web_server.Ranges", _Going)
    with server("127.0.0.1", 0, str(tmp_path / "srv")) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{web.server_address[1]}/store"
        web.shutdown()
        thread.join()


@pytest.mark.parametrize("transport", ["stream", "flower"])
def test_a_patch_server_that_goes_is_waited_for(
    transport: str, patch_server: str, nodes: InProcessGrid, stores: StoreSet, tmp_path: Path
) -> None:
    nodes.config[101]["store"] = patch_server
    _Going.left = 10_000
    run = RunFolder(tmp_path / "runs" / "run")

    def go_and_come_back() -> None:
        while not any(run.checkpoints.steps()):
            time.sleep(0.001)
        _Going.left = 0
        deadline = time.monotonic() + 60
        while "waiting for it" not in log_of(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.05)
        _Going.left = 10_000

    disturbing = threading.Thread(target=go_and_come_back)
    disturbing.start()
    train(nodes, tmp_path, transport=transport)
    disturbing.join()
    assert "PatchServerLost" in log_of(tmp_path)
    assert "go back to step" in log_of(tmp_path)
    assert exact(run, stores)


def test_a_patch_server_that_does_not_come_back_ends_the_run(
    patch_server: str, nodes: InProcessGrid, tmp_path: Path
) -> None:
    nodes.config[101]["store"] = patch_server
    _Going.left = 0
    with pytest.raises(NodeError, match=r"node 101: http://127.0.0.1:\d+/store.* \(PatchServerLost\)"):
        train(nodes, tmp_path, node_timeout_s=3.0)


@pytest.mark.parametrize("transport", ["stream", "flower"])
def test_uppers_are_averaged_where_all_operators_allow_it(
    nodes: InProcessGrid, stores: StoreSet, tmp_path: Path, transport: str
) -> None:
    nodes.allowed = {"average": True}
    run = train(nodes, tmp_path, average_every=2, transport=transport)
    assert exact(run, stores)
    found = load_file(run.model / "model.safetensors")
    assert torch.equal(found["uppers.0.conv1.weight"], found["uppers.1.conv1.weight"])


def test_a_node_whose_operator_has_not_allowed_averaging_ends_the_run(nodes: InProcessGrid, tmp_path: Path) -> None:
    nodes.allowed = {}
    nodes.config[100]["average"] = True
    began = time.monotonic()
    with pytest.raises(NodeError, match=r'node 101\) failed: .*this run averages the Uppers .* "average=true"'):
        train(nodes, tmp_path, average_every=2, node_timeout_s=100.0)
    # The node says so at once: nobody waits for it.
    assert time.monotonic() - began < 60


CODE = {"protection": "code", "code_size": 3, "cut": "layer4", "backbone_width": 8}
TOO_MUCH = [
    (CODE | {"code_size": 4}, "this run asks for 8 bits"),
    (CODE | {"code_levels": 3}, "this run asks for 12 bits"),
    (CODE | {"protection": "narrow"}, "this run asks for numbers"),
    ({}, "this run asks for numbers"),
]


def test_a_node_sends_codes_of_the_bits_that_its_operator_allows(
    nodes: InProcessGrid, stores: StoreSet, tmp_path: Path
) -> None:
    nodes.config[101]["most-bits"] = 6  # two positions of three signs
    assert exact(train(nodes, tmp_path, **CODE), stores)


@pytest.mark.parametrize(("settings", "words"), TOO_MUCH)
def test_a_node_whose_operator_allows_fewer_bits_ends_the_run(
    nodes: InProcessGrid, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    nodes.config[101]["most-bits"] = 6
    with pytest.raises(NodeError, match=rf"node 101: .* at most 6 bits of an image in a look \(most-bits\), {words}"):
        train(nodes, tmp_path, node_timeout_s=3.0, **settings)


@pytest.mark.parametrize("value", [0, True, "6"])
def test_a_limit_that_is_none_is_refused(nodes: InProcessGrid, tmp_path: Path, value: Any) -> None:
    nodes.config[101]["most-bits"] = value
    with pytest.raises(NodeError, match="node-config most-bits: expected a whole number of 1 or more"):
        train(nodes, tmp_path, node_timeout_s=3.0, **CODE)


NOISY = CODE | {"code_noise": 0.5}


def test_a_node_adds_the_noise_that_its_operator_asks_for(
    nodes: InProcessGrid, stores: StoreSet, tmp_path: Path
) -> None:
    nodes.config[101]["least-noise"] = 0.5
    assert exact(train(nodes, tmp_path, **NOISY), stores)


@pytest.mark.parametrize(("settings", "asked"), [(CODE, "0"), (CODE | {"code_noise": 0.4}, "0.4"), ({}, "0")])
def test_a_node_whose_operator_asks_for_more_noise_ends_the_run(
    nodes: InProcessGrid, tmp_path: Path, settings: dict[str, Any], asked: str
) -> None:
    nodes.config[101]["least-noise"] = 0.5
    words = rf"node 101: .*noise of 0.5 or more \(least-noise\), this run asks for {asked};"
    with pytest.raises(NodeError, match=words):
        train(nodes, tmp_path, node_timeout_s=3.0, **settings)


@pytest.mark.parametrize("value", [0, True, "0.5", float("nan")])
def test_a_least_that_is_none_is_refused(nodes: InProcessGrid, tmp_path: Path, value: Any) -> None:
    nodes.config[101]["least-noise"] = value
    with pytest.raises(NodeError, match="node-config least-noise: expected a number above 0"):
        train(nodes, tmp_path, node_timeout_s=3.0, **NOISY)
