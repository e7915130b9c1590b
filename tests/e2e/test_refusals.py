"""Bad input meets one clear error, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.e2e.conftest import TINY, Place


@pytest.mark.parametrize(
    ("settings", "status", "words"),
    [
        (["dataset=/no/such/folder"], 1, "/no/such/folder"),
        (["lerning-rate=1"], 2, "unknown setting lerning-rate"),
        (["rounds=many"], 2, "rounds: expected a whole number"),
        (["batch-size=1"], 2, "batch-size: BatchNorm needs 2 or more images"),
        (["patch-size=7x7"], 1, "do not tile an image of 16x16"),
        (["patch-size=32x32"], 1, "larger than the image"),
        (["patch-size=0x0", "stride=4x4"], 2, "patch-size"),
        (["uppers=5"], 1, "5 Upper nodes cannot share 4 patches"),
        (["workspace=/proc/nowhere"], 1, "/proc/nowhere"),
        (["resume=never"], 1, "no such run"),
    ],
)
def test_refused_at_start(place: Place, settings: list[str], status: int, words: str) -> None:
    done = place.psl("train", *settings)
    assert done.returncode == status, done.stderr
    assert words in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_one_class(place: Place, tmp_path: Path) -> None:
    (tmp_path / "data" / "only").mkdir(parents=True)
    for n in range(4):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "data" / "only" / f"{n}.png")
    done = place.psl("train", f"dataset={tmp_path / 'data'}")
    assert done.returncode == 1
    assert "class" in done.stderr


def test_loss_that_is_not_finite_keeps_the_last_checkpoint(place: Place) -> None:
    settings = [s for s in TINY if not s.startswith("lr=")]
    done = place.psl(
        "train", *settings, "lr=1e30", "schedule=constant", "rounds=1", "steps-per-round=8", "checkpoint-every=1",
        "run-name=nan",
    )  # fmt: skip
    assert done.returncode == 1, done.stdout
    assert "the loss is" in done.stderr and "step " in done.stderr
    assert place.run("nan").checkpoints.steps()
    status = place.run("nan").read_status()
    assert status is not None and status.state == "failed"


def test_damaged_store_names_the_node(place: Place) -> None:
    assert place.psl("train", *TINY, "rounds=1", "steps-per-round=1", "run-name=good").returncode == 0
    (segment,) = (place.workspace / "stores").glob("*/store-002/epoch-*-segment-*.psl")
    data = segment.read_bytes()
    # Half of the records, so that the first batch meets one.
    half = len(data) // 2
    segment.write_bytes(data[:half] + bytes(byte ^ 1 for byte in data[half:]))
    done = place.psl("train", *TINY, "rounds=1", "steps-per-round=1", "run-name=bad")
    assert done.returncode == 1
    assert "store-002" in done.stderr
    assert "Traceback" not in done.stderr
