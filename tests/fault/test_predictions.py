"""Predictions in place with nodes that are not there, get lost, or keep no weights: the real apps, in one process.

Every Upper is on a node with a store and a state of its own, as in a deployment.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from psl_flower.engine.inputs import normalise
from psl_flower.engine.rounds import predictions as predictions_from
from psl_flower.errors import (
    ConfigError,
    NoCheckpoint,
    NodeError,
    OtherDataset,
    PeerLost,
    PositionMissing,
    PredictionStopped,
    RunError,
)
from psl_flower.inference.evaluation import evaluate, own_test_images
from psl_flower.inference.trained_model import load_trained_model
from psl_flower.patches.store import read_all_positions
from psl_flower.runs.folder import RunFolder
from psl_flower.runs.predictions import FOLDER, Absent, load_result
from psl_flower.stores.prepare import prepare_stores
from tests.in_process import InProcessGrid, config_in

TRAINING = {
    "dataset": "digits", "max_train": 24, "max_test": 12, "stores": "plain", "patch_size": "8x8", "uppers": 2,
    "cut": "stem", "batch_size": 8, "rounds": 1, "steps_per_round": 2, "evaluate_batch_size": 5, "lower_threads": 1,
    "upper_threads": 1, "device": "cpu", "run_name": "trained", "average_every": 1,
}  # fmt: skip
COLUMNS = ("sample", "label", "predicted", "confidence", "split")
# Where all nodes are there nothing is waited for; where one is not, this long, and then again without it.
TIMEOUT_S = 60.0
ABSENT_TIMEOUT_S = 3.0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a workspace, in which a run was trained over the nodes, and the nodes' states."""
    root = tmp_path_factory.mktemp("trained")
    nodes = grid(root)
    nodes.allowed["average"] = True  # in training; not asked for afterwards, when nothing is averaged
    nodes.serve(**TRAINING, workspace=str(root / "workspace"))
    return root


def grid(root: Path) -> InProcessGrid:
    stores = prepare_stores(config_in(root / "workspace", TRAINING))
    return InProcessGrid(stores.folder, root / "state", 2)


def run_of(root: Path) -> RunFolder:
    return RunFolder(root / "workspace" / "runs" / "trained")


def predict(nodes: InProcessGrid, root: Path, **settings: Any) -> RunFolder:
    """Predict; return the folder of what came out."""
    asked = {"predict": "trained", "run_name": "asked", "node_timeout_s": TIMEOUT_S}
    nodes.serve(**(asked | settings), workspace=str(root / "workspace"))
    return RunFolder(run_of(root).path / FOLDER / "asked")


def columns(folder: RunFolder) -> dict[str, np.ndarray]:
    with np.load(folder.path / "predictions.npz", allow_pickle=False) as file:
        return {name: file[name] for name in COLUMNS}


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    assert left.keys() == right.keys()
    return all(np.array_equal(left[name], right[name]) for name in left)


def expected_without(root: Path, upper: int, batches: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Return what the assembled network says with zeros in place of an Upper's smashed data."""
    trained, nodes = load_trained_model(run_of(root)), grid(root)
    stores = prepare_stores(config_in(root / "workspace", TRAINING))
    description, logits = stores.description, []
    opened = [stores.open(m) for m in range(len(nodes.state))]
    for samples_B in batches:
        patches = read_all_positions(opened, samples_B)
        flat = normalise(
            torch.from_numpy(patches).flatten(0, 1), description.mean, description.std, torch.device("cpu")
        )
        with torch.no_grad():
            smashed = trained.net.smash_patches(flat.reshape(patches.shape))
            smashed[:, list(description.positions_of(upper))] = 0
            logits.append(trained.net.join(smashed))
    found = predictions_from(torch.cat(logits), np.concatenate(batches), stores.labels)
    return {name: getattr(found, name) for name in ("sample", "label", "predicted", "confidence")}


@pytest.mark.parametrize("transport", ["stream", "flower"])
def test_all_nodes_predict_what_the_run_itself_did(trained: Path, place: Path, transport: str) -> None:
    run = run_of(place)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    folder = predict(grid(place), place, transport=transport)
    assert same(columns(folder), columns(run))
    result, metrics = load_result(folder.path), run.read_metrics()[-1]
    assert result is not None and result.whole
    assert (result.run, result.step, result.split, result.images) == ("trained", 2, "test", 12)
    assert (result.accuracy, result.loss) == (metrics["accuracy"], metrics["test_loss"])
    status = folder.read_status()
    assert status is not None and (status.state, status.accuracy) == ("completed", result.accuracy)
    assert (status.images, status.total_images) == (12, 12)
    # The run and the nodes' states are as they were: nothing of it is trained, collected or overwritten.
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(p.relative_to(place) for p in (place / "state").rglob("*")) == sorted(
        p.relative_to(trained) for p in (trained / "state").rglob("*")
    )


def test_the_assembled_model_agrees(place: Path) -> None:
    found = columns(predict(grid(place), place))
    trained = load_trained_model(run_of(place))
    answers = evaluate(trained, own_test_images(run_of(place), trained))
    np.testing.assert_array_equal(found["predicted"], answers.predicted)
    np.testing.assert_allclose(found["confidence"], answers.confidence, atol=1e-5)


def test_the_wire_of_the_run_is_used(place: Path) -> None:
    """The frames are of the run's own codecs: another one, put into its settings, gives other numbers."""
    run = run_of(place)
    run.write_config(run.read_config().replace(wire_activations="int8"))
    assert not same(columns(predict(grid(place), place)), columns(run))


def test_named_images_and_the_train_split(place: Path) -> None:
    (place / "ids.txt").write_text("35\ntest:0, 3\n")
    folder = predict(grid(place), place, predict_images=str(place / "ids.txt"))
    assert columns(folder)["sample"].tolist() == [35, 24, 3]
    assert columns(folder)["split"].tolist() == ["test", "test", "train"]
    result = load_result(folder.path)
    assert result is not None and not result.whole
    both = predict(grid(place), place, predict_images=f"{place / 'ids.txt'},test:1", run_name="both")
    assert columns(RunFolder(both.path.parent / "both"))["sample"].tolist() == [35, 24, 3, 25]
    predict(grid(place), place, predict_split="train", run_name="train")
    train = columns(RunFolder(folder.path.parent / "train"))
    assert train["sample"].tolist() == list(range(24))
    assert set(train["split"].tolist()) == {"train"}


def check_without(folder: RunFolder, root: Path, upper: int) -> None:
    result, found = load_result(folder.path), columns(folder)
    assert result is not None and not result.whole
    assert result.absent == (Absent(upper=upper, positions=run_of(root).read_description().positions_of(upper)),)
    expected = expected_without(root, upper, [found["sample"][k : k + 5] for k in range(0, 12, 5)])
    np.testing.assert_array_equal(found["predicted"], expected["predicted"])
    np.testing.assert_allclose(found["confidence"], expected["confidence"], atol=1e-5)
    np.testing.assert_array_equal(found["label"], expected["label"])
    assert not same(found, columns(run_of(root)))
    assert f"without Upper {upper} (position " in (folder.path / "log.txt").read_text()


def test_left_out_on_purpose(place: Path) -> None:
    check_without(predict(grid(place), place, predict_without="0"), place, 0)


def test_a_node_that_is_not_there_is_refused_by_default(place: Path) -> None:
    nodes = grid(place)
    nodes.gone.add(101)
    positions = ", ".join(map(str, run_of(place).read_description().positions_of(1)))
    with pytest.raises(PositionMissing, match=rf"no node holds position {positions} of Upper 1 \(asked: node 100\)"):
        predict(nodes, place, node_timeout_s=ABSENT_TIMEOUT_S)
    folder = RunFolder(run_of(place).path / FOLDER / "asked")
    assert load_result(folder.path) is None
    status = folder.read_status()
    assert status is not None and status.state == "failed" and "of Upper 1" in status.message


@pytest.mark.parametrize("transport", ["stream", "flower"])
@pytest.mark.parametrize("how", ["gone", "unreachable", "silent"])
def test_a_node_that_is_not_there(place: Path, how: str, transport: str) -> None:
    nodes = grid(place)
    getattr(nodes, how).add(101)
    check_without(
        predict(nodes, place, node_timeout_s=ABSENT_TIMEOUT_S, on_missing_node="continue", transport=transport),
        place,
        1,
    )


def test_a_node_lost_on_the_way(place: Path) -> None:
    """All images are predicted again without it, so that one statement holds for all of them."""
    nodes = grid(place)

    def lose(message: Any) -> None:
        sent.append(message.metadata.message_type)
        if sent.count("query.step") == 4:  # both nodes in the second batch
            nodes.gone.add(101)

    sent: list[str] = []
    nodes.on_message = lose
    check_without(
        predict(nodes, place, node_timeout_s=ABSENT_TIMEOUT_S, on_missing_node="continue", transport="flower"), place, 1
    )
    # All three batches again with the node that is left; a slow machine may try once more with both.
    assert sent.count("query.step") >= 4 + 3


def test_a_node_lost_before_it_opens_its_stream(place: Path) -> None:
    nodes = grid(place)
    nodes.on_message = lambda message: nodes.gone.add(101) if message.metadata.message_type == "train.stream" else None
    check_without(
        predict(nodes, place, node_timeout_s=ABSENT_TIMEOUT_S, on_missing_node="continue", transport="stream"), place, 1
    )


def test_a_lost_node_is_named_and_nothing_is_written(place: Path) -> None:
    nodes = grid(place)
    nodes.on_message = lambda message: nodes.gone.add(101) if message.metadata.message_type == "train.stream" else None
    with pytest.raises(PositionMissing, match="of Upper 1"):
        predict(nodes, place, node_timeout_s=ABSENT_TIMEOUT_S)
    folder = run_of(place).path / FOLDER / "asked"
    assert "node 101: the node is gone" in (folder / "log.txt").read_text()
    assert not (folder / "predictions.npz").exists()


@pytest.mark.parametrize("transport", ["stream", "flower"])
def test_a_node_without_the_runs_weights(place: Path, transport: str) -> None:
    """Also with zeros allowed: the node is there, and somebody should know that it lost its state."""
    shutil.rmtree(place / "state" / "node-1" / run_of(place).identity)
    with pytest.raises(NodeError, match=r"101.*upper-001: no checkpoint of step 2 \(there: none\)"):
        predict(grid(place), place, transport=transport, node_timeout_s=ABSENT_TIMEOUT_S, on_missing_node="continue")


def test_every_node_is_absent(place: Path) -> None:
    nodes = grid(place)
    nodes.gone |= {100, 101}
    with pytest.raises(PeerLost, match="no node has come up within 3 s"):
        predict(nodes, place, node_timeout_s=ABSENT_TIMEOUT_S, on_missing_node="continue")


def test_a_stop(place: Path) -> None:
    nodes, folder = grid(place), RunFolder(run_of(place).path / FOLDER / "asked")
    nodes.on_message = lambda message: folder.request_stop()
    with pytest.raises(PredictionStopped, match="stopped after 5 of 12 images"):
        predict(nodes, place)
    status = folder.read_status()
    assert status is not None and status.state == "stopped"
    assert load_result(folder.path) is None


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"predict": "never"}, RunError, r"never: no such run \(there: trained\)"),
    ({"predict_without": "0,1"}, ConfigError, "but not all, got 0,1"),
    ({"predict_without": "7"}, ConfigError, "some of Uppers 0 to 1"),
    ({"predict_images": "99"}, ConfigError, "there is no image 99; the dataset has images 0 to 35"),
    ({"predict_images": "test:12"}, ConfigError, "there is no image test:12"),
    ({"predict_images": ",".join(f"test:{n}" for n in range(60))}, ConfigError, "is no image test:12"),
    ({"predict_images": "/no/such/file"}, ConfigError, "or a file of them, got '/no/such/file'"),
    ({"max_train": 12}, ConfigError, "max-train: run trained began with 24, predict was given 12"),
]


@pytest.mark.parametrize(("settings", "error", "words"), REFUSED)
def test_refused(trained: Path, settings: dict[str, Any], error: type[Exception], words: str, request: Any) -> None:
    assert REFUSED
    with pytest.raises(error, match=words):
        predict(grid(trained), trained, run_name=f"refused-{abs(hash(words))}", **settings)


def test_a_name_is_taken_once(place: Path) -> None:
    predict(grid(place), place)
    with pytest.raises(RunError, match="predictions/asked: there is a prediction of this name already"):
        predict(grid(place), place)


def test_a_run_that_has_trained_nothing(place: Path) -> None:
    for path in run_of(place).checkpoints.folder.iterdir():
        path.unlink()
    with pytest.raises(NoCheckpoint, match="no checkpoint of a step yet"):
        predict(grid(place), place)


def test_another_dataset(place: Path) -> None:
    run = run_of(place)
    description = run.read_description()
    run.write_description(msgspec.structs.replace(description, fingerprint="ab" * 8))
    with pytest.raises(OtherDataset, match="not those that run trained was trained on"):
        predict(grid(place), place)
