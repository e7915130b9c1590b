"""Lightening over the federation for tests: a run, its nodes, and what they end with.

"resnet18" is a narrow one here, so that a lightening takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from flwr.app import Message

from psl_flower.engine.checkpoints import load_state
from psl_flower.lightening.folder import LighteningFolder
from psl_flower.lightening.report import read_result
from psl_flower.lightening.settings import parse_request
from psl_flower.runs.folder import RunFolder
from psl_flower.stores.prepare import prepare_stores
from tests.in_process import InProcessGrid, config_in

TRAINING = {
    "dataset": "digits", "max_train": 64, "max_test": 60, "stores": "plain", "image_size": "8x8", "uppers": 2,
    "batch_size": 16, "rounds": 2, "evaluate_batch_size": 8, "lower_threads": 1, "upper_threads": 1, "device": "cpu",
    "run_name": "trained", "progress_every_s": 0.0, "average_every": 2, "backbone_width": 8,
    "margin": 2, "context": 1,
}  # fmt: skip
# The third is at degree 1: pruned, taught by the second, rounded.
WITH = "method=loop min-accuracy=0 min-speed=1e-3 degrees=1 epochs=2 max-pruned=0.5 threads=1 batch=2"
IMPOSSIBLE = WITH.replace("min-speed=1e-3", "min-speed=1e12")
TIMEOUT_S = 60.0
ABSENT_TIMEOUT_S = 3.0
SHORT_TIMEOUT_S = 10.0


def grid(root: Path) -> InProcessGrid:
    stores = prepare_stores(config_in(root / "workspace", TRAINING))
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


def at(kind: str, count: int, act: Callable[[], None]) -> Callable[[Message], None]:
    """Return a watcher that acts when so many messages of a kind have been sent to the first node."""
    seen = []

    def watch(message: Message) -> None:
        if message.metadata.message_type == kind and message.metadata.dst_node_id == 100:
            seen.append(message)
            if len(seen) == count:
                act()

    return watch
