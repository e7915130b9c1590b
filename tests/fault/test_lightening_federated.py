"""Lightening over the federation: the real apps, in one process, every Upper on a node with a state of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message

from psl_flower.errors import (
    NodeError,
    RunError,
    TrainingStopped,
)
from psl_flower.inference.evaluation import images_in
from psl_flower.inference.onnx_files import open_session
from psl_flower.lightening.judging import answers
from psl_flower.lightening.local import lighten as lighten_locally
from psl_flower.lightening.report import read_result
from psl_flower.lightening.settings import parse_request
from psl_flower.runs.folder import RunFolder
from psl_flower.runs.predictions import FOLDER, load_result
from psl_flower.stores.prepare import prepare_stores
from tests.fault.lightening_support import (
    IMPOSSIBLE,
    SHORT_TIMEOUT_S,
    TIMEOUT_S,
    WITH,
    at,
    files,
    folder,
    folder_of,
    grid,
    lighten,
    run_of,
    same_weights,
    serve,
    weights,
)


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
