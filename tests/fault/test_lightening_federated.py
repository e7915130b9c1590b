"""Lightening over the federation: the real apps, in one process, every Upper on a node with a state of its own.

"resnet18" is a narrow one here, so that a lightening takes seconds.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from onnx import TensorProto, helper

from psl_flower.config import RunConfig
from psl_flower.engine.checkpoints import load_state
from psl_flower.errors import (
    ConfigError,
    LighteningError,
    NodeError,
    NodeLost,
    OtherDataset,
    PositionMissing,
    RunError,
    TrainingStopped,
)
from psl_flower.inference.evaluation import images_in
from psl_flower.inference.onnx_files import open_session
from psl_flower.lightening import on_node
from psl_flower.lightening.folder import LighteningFolder
from psl_flower.lightening.judging import answers
from psl_flower.lightening.local import lighten as lighten_locally
from psl_flower.lightening.report import read_result
from psl_flower.lightening.settings import parse_request
from psl_flower.models import architectures
from psl_flower.runs.folder import RunFolder
from psl_flower.runs.predictions import FOLDER, load_result
from psl_flower.stores.prepare import prepare_stores
from tests.in_process import InProcessGrid

TRAINING = {
    "dataset": "digits", "max_train": 64, "max_test": 60, "stores": "plain", "image_size": "8x8", "uppers": 2,
    "batch_size": 16, "rounds": 2, "evaluate_batch_size": 8, "lower_threads": 1, "upper_threads": 1, "device": "cpu",
    "run_name": "trained", "progress_every_s": 0.0, "average_every": 2, "backbone_width": 8,
}  # fmt: skip
# The third is at degree 1: pruned, taught by the second, rounded.
WITH = "method=loop min-accuracy=0 min-speed=1e-3 degrees=1 epochs=2 max-pruned=0.5 threads=1 batch=2"
IMPOSSIBLE = WITH.replace("min-speed=1e-3", "min-speed=1e12")
TIMEOUT_S = 60.0
ABSENT_TIMEOUT_S = 3.0
SHORT_TIMEOUT_S = 10.0


@pytest.fixture(scope="module", autouse=True)
def narrow() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(architectures, "_DEPTHS", {"resnet18": (1, 1, 1, 1)})
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, narrow: None) -> Path:
    """Return a folder with a workspace, in which a run was trained over the nodes, and the nodes' states."""
    root = tmp_path_factory.mktemp("trained")
    nodes = grid(root)
    nodes.allowed["average"] = True  # in training; not asked for afterwards, when nothing is averaged
    nodes.serve(**TRAINING, workspace=str(root / "workspace"))
    return root


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "place")
    return tmp_path / "place"


@pytest.fixture(scope="module")
def lightened(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy in which a lightening has come to its end, undisturbed; all degrees are judged."""
    root = tmp_path_factory.mktemp("lightened") / "place"
    shutil.copytree(trained, root)
    result = lighten(grid(root), root, IMPOSSIBLE)
    assert (result["closest"], result["third"]) == ("degree-001", None)
    return root


def grid(root: Path) -> InProcessGrid:
    config = RunConfig.from_mapping({name.replace("_", "-"): value for name, value in TRAINING.items()})
    stores = prepare_stores(config.replace(workspace=str(root / "workspace")))
    return InProcessGrid(stores.folder, root / "state", 2)


def run_of(root: Path) -> RunFolder:
    return RunFolder(root / "workspace" / "runs" / "trained")


def folder(root: Path, asked: str = WITH) -> LighteningFolder:
    return LighteningFolder(run_of(root), parse_request(asked).settings, federated=True)


def folder_of(root: Path, asked: str = WITH) -> Path:
    return folder(root, asked).path


def serve(nodes: InProcessGrid, root: Path, asked: str = WITH, **settings: Any) -> None:
    told = {"lighten": "trained", "lighten_with": asked, "node_timeout_s": TIMEOUT_S}
    nodes.serve(**(told | settings), workspace=str(root / "workspace"))


def lighten(nodes: InProcessGrid, root: Path, asked: str = WITH, **settings: Any) -> dict[str, Any]:
    serve(nodes, root, asked, **settings)
    return read_result(folder(root, asked))


def files(folder: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in folder.glob("*.onnx")}
    assert len(found) == 4
    return found


def weights(folder: Path, name: str, of: str = "net") -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_state(folder / name)[of]
    return state


def same_weights(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    assert left.keys() == right.keys()
    return all(torch.equal(tensor, right[name]) for name, tensor in left.items())


def test_the_very_files_of_one_process(lightened: Path, tmp_path: Path) -> None:
    """Second and third, weights and int8 files: those of `--local`, from the same run and settings."""
    torch.set_num_threads(1)
    shutil.copytree(lightened, tmp_path / "place")
    run = run_of(tmp_path / "place")
    found = lighten_locally(run, parse_request(IMPOSSIBLE), lambda *_: None)
    federated, local = folder_of(tmp_path / "place", IMPOSSIBLE), found.folder.path
    assert federated != local
    for name in ("second/training.pt", "degree-001/training.pt", "degree-001/rounding.pt"):
        assert same_weights(weights(federated, name), weights(local, name)), name
    for name in ("first", "first-int8", "second", "degree-001"):
        assert files(federated / name) == files(local / name), name
    log = {entry.what: entry.judged.accuracy for entry in found.folder.entries}
    federated_log = {entry.what: entry.judged.accuracy for entry in folder(tmp_path / "place", IMPOSSIBLE).entries}
    assert federated_log == log


def test_a_light_model_in_place_answers_as_the_assembled_one(lightened: Path, tmp_path: Path) -> None:
    root = tmp_path / "place"
    shutil.copytree(lightened, root)
    predict = {"predict": "trained", "predict_light": True, "run_name": "light", "node_timeout_s": TIMEOUT_S}
    with pytest.raises(RunError, match="no light model is in place; find one with: psl lighten trained"):
        grid(root).serve(**predict | {"run_name": "early"}, workspace=str(root / "workspace"))
    # What was judged is judged under another condition, which it meets, and is not made again.
    judged = read_result(folder(root, IMPOSSIBLE))["judged"][-1]["judged"]
    nodes, sent = grid(root), set()
    nodes.on_message = lambda message: sent.add(message.metadata.message_type)
    result = lighten(nodes, root, IMPOSSIBLE.replace("1e12", str(0.99 * judged["images_per_s"])))
    assert result["folder"] == str(folder_of(root, IMPOSSIBLE))
    assert sent == {"query.inventory", "query.lighten_ready", "query.lighten_keep"}
    third = Path(result["third"])
    assert (third / "model.onnx").read_bytes() == (third.parent / "degree-001" / "model.onnx").read_bytes()

    for transport in ("stream", "flower"):
        nodes = grid(root)
        nodes.serve(**predict | {"run_name": transport, "transport": transport}, workspace=str(root / "workspace"))
        predictions = run_of(root).path / FOLDER / transport
        told = load_result(predictions)
        assert told is not None and told.light and not told.whole
        with np.load(predictions / "predictions.npz") as file:
            predicted = file["predicted"]
        stores = prepare_stores(run_of(root).read_config().replace(workspace=str(root / "workspace")))
        batches = [images for images, _ in images_in(stores, stores.description.samples_of("test"), 8)]
        np.testing.assert_array_equal(answers(open_session(third / "model.onnx", 1), batches), predicted)

    # Another file on a node than that of the Lower's light model is noticed; until then the Lower waits for that node.
    predict |= {"node_timeout_s": SHORT_TIMEOUT_S}
    (kept,) = (root / "state" / "node-1").glob("*/upper-001/light/*/third/upper.onnx")
    kept.write_bytes((third / "upper-000.onnx").read_bytes())
    with pytest.raises(NodeError, match="node 101: .* is another light Upper than the one expected"):
        grid(root).serve(**predict | {"run_name": "swapped"}, workspace=str(root / "workspace"))
    kept.unlink()
    with pytest.raises(NodeError, match="node 101: .* no light Upper was put in place here"):
        grid(root).serve(**predict | {"run_name": "gone"}, workspace=str(root / "workspace"))


def test_the_first_in_int8_is_handed_over_at_once_where_it_will_do(place: Path) -> None:
    """Without a training; the nodes then predict with it."""
    asked = WITH.replace("method=loop", "method=auto")
    nodes, sent = grid(place), list[str]()
    nodes.on_message = lambda message: sent.append(message.metadata.message_type)
    result = lighten(nodes, place, asked)
    assert result["choice"]["what"] in ("first", "first-int8")
    assert result["reason"] == "no model had to be trained for it"
    assert "query.lighten_place" not in sent
    third, what = Path(result["third"]), result["choice"]["what"]
    assert files(third) == files(third.parent / what)
    predict = {"predict": "trained", "predict_light": True, "run_name": "light", "node_timeout_s": TIMEOUT_S}
    grid(place).serve(**predict, workspace=str(place / "workspace"))
    told = load_result(run_of(place).path / FOLDER / "light")
    assert told is not None
    assert told.light
    (judged,) = (entry["judged"] for entry in result["judged"] if entry["what"] == what)
    assert told.accuracy == pytest.approx((judged["accuracy"] + judged["test_accuracy"]) / 2)  # two halves of 60 images


@pytest.mark.slow
def test_patches_do_not_travel(place: Path) -> None:
    """What nodes send in messages are weights, models and, to calibrate the Lower on, smashed data."""
    nodes = grid(place)
    sent = set()
    handle = nodes._handle

    def watch(message: Message) -> None:
        handle(message)
        reply = nodes._replies[message.metadata.message_id]
        records = {*reply.content.array_records, *reply.content.config_records.get("psl", {})}
        sent.update((message.metadata.message_type, name.rstrip("-01")) for name in records)

    nodes._handle = watch  # type: ignore[method-assign]
    lighten(nodes, place, WITH.replace("degrees=1 epochs=2", "degrees=1 epochs=1"))
    assert sent == {
        ("query.inventory", "record"), ("query.collect", "upper"), ("query.lighten_quantise", "party"),
        ("query.lighten_quantise", "smashed"),
    }  # fmt: skip


def at(kind: str, count: int, act: Callable[[], None]) -> Callable[[Message], None]:
    """Return a watcher that acts when so many messages of a kind have been sent to the first node."""
    seen = []

    def watch(message: Message) -> None:
        if message.metadata.message_type == kind and message.metadata.dst_node_id == 100:
            seen.append(message)
            if len(seen) == count:
                act()

    return watch


# When, by the messages to a node, and how many rounds and judgements, each a stream, are left then. Streams 1, 2 and 5
# judge the first, the first in int8, and the second, which trains in 3 and 4; the third trains in 6 and 7, under rounding
# in 8, and is judged in 9.
MOMENTS = {
    "while the second trains": ("train.stream", 4, 6),
    "before the third's weights are in place": ("query.lighten_place", 2, 4),
    "while the third trains": ("train.stream", 7, 3),
    "before the third is collected": ("query.collect", 2, 2),
    "under rounding": ("train.stream", 8, 2),
    "before the third is quantised": ("query.lighten_quantise", 2, 1),
    "before the third is in place to be judged": ("query.lighten_keep", 4, 1),
}
# One in every run of the tests, the others with `make slow`.
OFTEN = "while the third trains"


@pytest.mark.parametrize(
    "moment", [OFTEN, *(pytest.param(name, marks=pytest.mark.slow) for name in MOMENTS if name != OFTEN)]
)
def test_killed_and_called_again_it_ends_with_the_same_files(moment: str, place: Path, lightened: Path) -> None:
    kind, count, left = MOMENTS[moment]

    def die() -> None:
        raise KeyboardInterrupt

    nodes = grid(place)
    nodes.on_message = at(kind, count, die)
    with pytest.raises(KeyboardInterrupt):
        serve(nodes, place, IMPOSSIBLE)
    again = grid(place)
    sent: list[str] = []
    again.on_message = lambda message: sent.append(message.metadata.message_type)
    assert lighten(again, place, IMPOSSIBLE)["third"] is None
    found, undisturbed = folder_of(place, IMPOSSIBLE), folder_of(lightened, IMPOSSIBLE)
    assert files(found / "degree-001") == files(undisturbed / "degree-001")
    assert same_weights(weights(found, "degree-001/rounding.pt"), weights(undisturbed, "degree-001/rounding.pt"))
    # It went on where it was, with both nodes.
    assert sent.count("train.stream") == 2 * left


@pytest.mark.slow
def test_a_stop_as_asked(place: Path, lightened: Path) -> None:
    nodes, light = grid(place), RunFolder(folder_of(place, IMPOSSIBLE))
    nodes.on_message = at("train.stream", 4, light.request_stop)
    with pytest.raises(TrainingStopped):
        serve(nodes, place, IMPOSSIBLE)
    status = light.read_status()
    assert status is not None and status.state == "stopped"
    assert status.message.endswith("continue with: the same command")
    lighten(grid(place), place, IMPOSSIBLE)
    assert files(light.path / "degree-001") == files(folder_of(lightened, IMPOSSIBLE) / "degree-001")


@pytest.mark.slow
def test_a_node_that_comes_back_in_time_changes_nothing(place: Path, lightened: Path) -> None:
    nodes = grid(place)
    watch = [
        at("train.stream", 4, lambda: nodes.unreachable.add(101)),
        at("query.inventory", 12, nodes.unreachable.clear),
    ]

    def both(message: Message) -> None:
        for each in watch:
            each(message)

    nodes.on_message = both
    lighten(nodes, place, IMPOSSIBLE)
    assert "node 101: the node is gone" in (folder_of(place, IMPOSSIBLE) / "log.txt").read_text()
    assert files(folder_of(place, IMPOSSIBLE) / "degree-001") == files(folder_of(lightened, IMPOSSIBLE) / "degree-001")


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


@pytest.mark.slow
def test_the_speed_of_a_node(place: Path) -> None:
    nodes = grid(place)
    asked: list[int] = []
    nodes.on_message = lambda message: (
        asked.append(message.metadata.dst_node_id) if message.metadata.message_type == "query.lighten_measure" else None
    )
    result = lighten(nodes, place, f"{WITH} target=101")
    assert asked == [101] * 4
    assert {entry["judged"]["images_per_s"] > 0 for entry in result["judged"]} == {True}
    assert result["folder"] != str(folder_of(place))


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
