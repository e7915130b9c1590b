"""Lightening over the federation that cannot be done: nodes that are gone, or refuse; other stores; no model."""

from __future__ import annotations

import dataclasses
import shutil
from contextlib import closing
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from clients.host import build_engine
from psl_flower.engine.build import Blueprint, CompressionTraining, OnnxInference
from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.errors import (
    ConfigError,
    LighteningError,
    NodeError,
    NodeLost,
    OtherDataset,
    PositionMissing,
    RunError,
)
from psl_flower.lightening import on_node
from psl_flower.stores.prepare import prepare_stores
from tests.fault.lightening_support import (
    ABSENT_TIMEOUT_S,
    TRAINING,
    WITH,
    at,
    folder_of,
    grid,
    run_of,
    serve,
)
from tests.in_process import config_in


@pytest.mark.parametrize("kind", ["query.lighten_keep", pytest.param("train.stream", marks=pytest.mark.slow)])
def test_a_node_that_is_gone_is_named(kind: str, place: Path) -> None:
    nodes = grid(place)
    nodes.on_message = at(kind, 1, lambda: nodes.gone.add(101))
    with pytest.raises((NodeLost, PositionMissing), match="101|of Upper 1"):
        serve(nodes, place, node_timeout_s=ABSENT_TIMEOUT_S, on_missing_node="continue")


def test_no_such_node(place: Path) -> None:
    with pytest.raises(NodeError, match=r"target: no node 'attic' \(there: node 100, node 101\)"):
        serve(grid(place), place, f"{WITH} target=attic")
    assert not (folder_of(place, f"{WITH} target=attic") / "first").exists()


def test_a_node_without_the_runtime(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ConfigError(
            "light models need onnxruntime, which is not installed here: pip install 'psl-flower[lighten]'"
        )

    monkeypatch.setattr(on_node, "check_runtime", missing)
    with pytest.raises(NodeError, match=r"node 10[01]: light models need onnxruntime, .*\[lighten\]"):
        serve(grid(place), place)


def test_a_node_whose_operator_has_not_allowed_it(place: Path) -> None:
    nodes = grid(place)
    nodes.allowed = {}
    with pytest.raises(NodeError, match=r"node 10[01]: this node takes no models from the server; .* \"lighten=true\""):
        serve(nodes, place)
    nodes.allowed = {"lighten": "yes"}  # type: ignore[dict-item]
    with pytest.raises(NodeError, match="node-config lighten: expected true or false, got 'yes'"):
        serve(nodes, place)


def test_a_run_with_noise_has_no_light_uppers_on_nodes(place: Path) -> None:
    """They would add none, and what teaches them would send its codes as they are."""
    noisy = {"protection": "code", "code_noise": 0.5}
    stores = prepare_stores(config_in(place / "workspace", TRAINING | noisy))
    blueprint = Blueprint(config_in(place / "workspace", TRAINING | noisy), stores.description)
    size = blueprint.config.network.size
    for override in (OnnxInference(digests={0: ""}), CompressionTraining(size=size, teacher=size)):
        asked = dataclasses.replace(blueprint, override=override)
        with closing(stores.open(0)) as store, pytest.raises(ConfigError, match="noise to its codes"):
            build_engine(asked.encode(), 0, store, Checkpoints(place / "state"))
    folder = run_of(place)
    folder.write_config(folder.read_config().replace(**noisy))
    with pytest.raises(ConfigError, match="psl lighten RUN"):
        serve(grid(place), place)


@pytest.mark.parametrize("protection", ["narrow", "code"])
def test_a_network_that_cannot_be_pruned_is_refused_before_any_node_is_asked(place: Path, protection: str) -> None:
    folder, nodes, asked = run_of(place), grid(place), []
    folder.write_config(folder.read_config().replace(protection=protection))
    nodes.on_message = asked.append
    with pytest.raises(ConfigError, match="its channels cannot be pruned"):
        serve(nodes, place)
    assert asked == []


def test_a_file_that_reads_other_files_is_refused(tmp_path: Path) -> None:
    """Weights beside the model could be any file of the node."""
    model = helper.make_model(helper.make_graph([], "empty", [], []))
    tensor = model.graph.initializer.add(
        name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL
    )
    tensor.external_data.add(key="location", value="secret.bin")
    with pytest.raises(LighteningError, match="refers to other files"):
        on_node.keep_file(tmp_path / "0a" / "first", model.SerializeToString())
    inner = helper.make_node("Constant", [], ["w"], value=tensor)
    within = helper.make_node("If", ["c"], ["w"], then_branch=helper.make_graph([inner], "inner", [], []))
    nested = helper.make_model(helper.make_graph([within], "outer", [], []))
    with pytest.raises(LighteningError, match="refers to other files"):
        on_node.keep_file(tmp_path / "0a" / "first", nested.SerializeToString())
    body = helper.make_function("own", "body", [], ["w"], [inner], [helper.make_opsetid("", 17)])
    called = helper.make_model(helper.make_graph([], "outer", [], []), functions=[body])
    with pytest.raises(LighteningError, match="refers to other files"):
        on_node.keep_file(tmp_path / "0a" / "first", called.SerializeToString())
    sparse = helper.make_model(helper.make_graph([], "sparse", [], []))
    sparse.graph.sparse_initializer.add().values.CopyFrom(tensor)
    with pytest.raises(LighteningError, match="refers to other files"):
        on_node.keep_file(tmp_path / "0a" / "first", sparse.SerializeToString())
    with pytest.raises(LighteningError, match="no ONNX model"):
        on_node.keep_file(tmp_path / "0a" / "first", b"no model")


@pytest.mark.slow
def test_a_node_that_lost_its_weights_says_so(place: Path) -> None:
    nodes = grid(place)
    nodes.on_message = at("train.stream", 4, lambda: shutil.rmtree(next(nodes.state[101].glob("*/upper-001/light"))))
    with pytest.raises(NodeError, match="no weights of this training are in place here"):
        serve(nodes, place)


def test_other_stores_are_refused(place: Path) -> None:
    run = run_of(place)
    description = run.read_description()
    run.write_description(
        type(description)(
            **{f: getattr(description, f) for f in description.__struct_fields__} | {"fingerprint": "ab" * 8}
        )
    )
    with pytest.raises(OtherDataset, match="not those that run trained was trained on"):
        serve(grid(place), place)


def test_a_run_without_a_model(place: Path) -> None:
    shutil.rmtree(run_of(place).model)
    with pytest.raises(RunError, match=r"model\.safetensors"):
        serve(grid(place), place)
