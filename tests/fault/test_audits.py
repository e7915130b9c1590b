"""Audits of a federation's run: the real apps in one process, each node with a store and a configuration of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from clients.auditing import LOG
from psl_flower.errors import DataError, NodeError, RunError
from psl_flower.inference.evaluation import other_test_images
from psl_flower.inference.trained_model import load_trained_model
from psl_flower.leakage.elsewhere import audit_elsewhere
from psl_flower.leakage.images import AuditSettings
from psl_flower.runs.folder import RunFolder
from psl_flower.stores.prepare import prepare_stores
from tests.in_process import InProcessGrid, config_in

TRAINING = {
    "dataset": "digits", "max_train": 24, "max_test": 12, "stores": "plain", "patch_size": "8x8", "uppers": 2,
    "cut": "stem", "batch_size": 8, "rounds": 1, "steps_per_round": 2, "evaluate_batch_size": 5, "lower_threads": 1,
    "upper_threads": 1, "device": "cpu", "run_name": "trained",
}  # fmt: skip
ASKED = {"audit": "trained", "audit_victims": 12, "audit_auxiliary": 40, "audit_epochs": 1, "node_timeout_s": 60.0}
SETTINGS = AuditSettings(victims=12, auxiliary=40, epochs=1)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of images of the auditor's own: shades of two classes."""
    root, drawn = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 1), ("test", 30)):
        for name in "01":
            (root / split / name).mkdir(parents=True)
            for n in range(count):
                pixels = drawn.integers(256, size=(16, 16), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{n}.png")
    return root


def trained(root: Path, **changes: Any) -> InProcessGrid:
    """Train over two nodes; both then allow audits."""
    stores = prepare_stores(config_in(root / "workspace", TRAINING | changes))
    nodes = InProcessGrid(stores.folder, root / "state", 2)
    nodes.serve(**TRAINING | changes, workspace=str(root / "workspace"))
    nodes.allowed["audit"] = True
    return nodes


def audit(nodes: InProcessGrid, root: Path, images: Path, **settings: Any) -> dict[str, Any]:
    nodes.serve(**ASKED | settings, audit_images=str(images), workspace=str(root / "workspace"))
    return json.loads((root / "workspace" / "runs" / "trained" / "leak" / "report.json").read_text())


def logs(root: Path) -> list[list[int]]:
    """Return how many images each Upper has noted that it answered for."""
    found = sorted((root / "state").rglob(LOG))
    return [[json.loads(line)["images"] for line in path.read_text().splitlines()] for path in found]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"margin": 2, "context": 1},
        {"protection": "code", "code_size": 8, "assignment": "round-robin"},
    ],
    ids=["feature maps", "context", "codes"],
)
def test_nodes_answer_as_the_collected_model_does(changes: dict[str, Any], images: Path, tmp_path: Path) -> None:
    nodes = trained(tmp_path, **changes)
    found = audit(nodes, tmp_path, images)
    model = load_trained_model(RunFolder(tmp_path / "workspace" / "runs" / "trained"))
    torch.set_num_threads(1)
    batches = other_test_images(model, str(images)).batches
    report, _ = audit_elsewhere(
        model.net, model.config, model.description, (str(images), batches), SETTINGS, run="trained"
    )
    # Others train or compute on smashed data whose place in memory differs, so that last bits do.
    here = [one for one in msgspec.to_builtins(report)["findings"] if one["level"] == "query"]
    assert [one for one in found["findings"] if one["level"] == "query"] == json.loads(json.dumps(here))
    assert {one["level"] for one in found["findings"]} == {"query", "unpaired", ""}
    assert (found["dataset"], found["victims"], found["auxiliary"]) == (str(images), 12, 40)
    assert logs(tmp_path) == [[40, 12], [40, 12]]


def test_a_model_that_stays_on_the_nodes_is_audited(images: Path, tmp_path: Path) -> None:
    nodes = trained(tmp_path, collect_model=False, protection="narrow", code_size=4, code_noise=0.5)
    first = audit(nodes, tmp_path, images)
    # Noise is drawn anew, so nothing of another draw can be subtracted.
    assert audit(nodes, tmp_path, images)["findings"] != first["findings"]
    assert logs(tmp_path) == [[40, 12, 40, 12]] * 2


@pytest.mark.parametrize("allowed", [False, None], ids=["forbidden", "not said"])
def test_a_node_whose_operator_has_not_allowed_it_answers_nothing(
    allowed: bool | None, images: Path, tmp_path: Path
) -> None:
    nodes = trained(tmp_path)
    del nodes.allowed["audit"]
    nodes.config[100]["audit"] = True
    if allowed is not None:
        nodes.config[101]["audit"] = allowed
    with pytest.raises(NodeError, match=r"node 101: this node answers no audit: .*--node-config \"audit=true\""):
        audit(nodes, tmp_path, images)
    assert not list((tmp_path / "state" / "node-1").rglob(LOG))
    nodes.config[101]["audit"] = "true"
    with pytest.raises(NodeError, match="node-config audit: expected true or false, got 'true'"):
        audit(nodes, tmp_path, images)


def test_a_node_answers_for_so_many_images_and_no_more(images: Path, tmp_path: Path) -> None:
    nodes = trained(tmp_path)
    nodes.config[101]["audit-images"] = 60
    audit(nodes, tmp_path, images)
    with pytest.raises(NodeError, match=r"node 101: this node has answered audits of this run for 52 images, 52 more"):
        audit(nodes, tmp_path, images)
    assert logs(tmp_path)[1] == [40, 12]
    damaged = next((tmp_path / "state" / "node-1").rglob(LOG))
    damaged.write_text('{"when": "", "images": -500}\n')
    with pytest.raises(NodeError, match="is damaged"):
        audit(nodes, tmp_path, images)
    nodes.config[101]["audit-images"] = 0
    with pytest.raises(NodeError, match="node-config audit-images: expected a whole number of 1 or more"):
        audit(nodes, tmp_path, images)


def test_a_run_that_is_not_there_and_images_of_other_classes(images: Path, tmp_path: Path) -> None:
    nodes = trained(tmp_path)
    with pytest.raises(RunError, match="no such run"):
        audit(nodes, tmp_path, images, audit="other")
    (images / "test" / "horse").mkdir()
    try:
        Image.fromarray(np.zeros((16, 16), np.uint8)).save(images / "test" / "horse" / "0.png")
        with pytest.raises(DataError, match="horse"):
            audit(nodes, tmp_path, images)
    finally:
        (images / "test" / "horse" / "0.png").unlink()
        (images / "test" / "horse").rmdir()
