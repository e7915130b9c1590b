"""Pixels and labels are in none of the files that a run on sealed stores makes, while it runs and afterwards."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest
from PIL import Image

from psl_flower.config import RunConfig
from psl_flower.kinds import parse_settings
from psl_flower.stores.prepare import prepare_stores
from tests.e2e.conftest import Place, wait_until

TRAIN, TEST, SIZE, CLASSES = 48, 24, 32, 3
SETTINGS = (
    "patch-size=16x16", "batch-size=16", "rounds=2", "steps-per-round=2", "lr=0.02", "checkpoint-every=1", "upper-threads=1",
    "lower-threads=1",
)  # fmt: skip
RUN_PIXELS = 8  # of noise: never the same by chance


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Return a folder of noise, TRAIN and TEST images of classes in random order."""
    noise = np.random.default_rng(5)
    for split, count in (("train", TRAIN), ("test", TEST)):
        for n in range(count):
            folder = tmp_path / "pictures" / split / f"class-{noise.integers(CLASSES)}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels_HW = noise.integers(0, 256, (SIZE, SIZE), np.uint8)
            Image.fromarray(pixels_HW).save(folder / f"{n:03d}-{noise.integers(10**9)}.png")
    return tmp_path / "pictures"


def spelled(pixels: np.ndarray) -> Iterator[bytes]:
    """Yield pixels as bytes, and as the numbers that they are on the way to a network."""
    for dtype in ("<u1", "<f4", "<f8", "<i8"):
        yield pixels.astype(dtype).tobytes()
    yield (pixels.astype(np.float32) / np.float32(255)).tobytes()
    yield json.dumps(pixels.tolist()).encode()
    yield msgspec.msgpack.encode(pixels.tolist())


def secrets_of(patches_NPChw: list[np.ndarray], labels_N: np.ndarray) -> dict[str, list[bytes]]:
    """Return what must not be found: of each image a run of pixels of each patch, and of all labels two dozen."""
    return {
        "pixels": [
            text
            for patches_Chw in patches_NPChw
            for text in (*spelled(patches_Chw[0, 3, :RUN_PIXELS]), *spelled(patches_Chw[0, :RUN_PIXELS, 5]))
        ],
        "labels of training": [text for start in (0, TRAIN - 24) for text in spelled(labels_N[start : start + 24])],
        "labels of test": list(spelled(labels_N[TRAIN : TRAIN + 24])),
    }


def found(secrets: dict[str, list[bytes]], *folders: Path) -> set[tuple[str, str]]:
    """Return the kinds of secrets found, each with the name of a file that holds it."""
    seen, count = set(), 0
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        with contextlib.suppress(FileNotFoundError):  # a file of a run that goes on
            content, count = path.read_bytes(), count + 1
            seen |= {(kind, path.name) for kind, texts in secrets.items() if any(text in content for text in texts)}
    assert count > 1
    return seen


def flower_home(place: Place) -> Path | None:
    """Return the folder of the SuperLink that a `psl train` has started, with Ray's session in it."""
    for process in place.processes():
        with contextlib.suppress(psutil.Error):
            home = Path(process.environ().get("RAY_TMPDIR", ""))
            if home.name and list(home.glob("ray/session_*/logs/*")):
                return home
    return None


@pytest.mark.timeout(600)
def test_of_a_run_on_sealed_stores(place: Place, pictures: Path, tmp_path: Path) -> None:
    given = (f"dataset={pictures}", *SETTINGS)
    config = RunConfig.from_mapping(parse_settings(given))
    plain = prepare_stores(config.replace(stores="plain", workspace=str(tmp_path / "plain")))
    uppers = [plain.open(m) for m in range(4)]
    samples = np.arange(0, TRAIN + TEST, 3)
    patches = [records for upper in uppers for records in upper.read(samples)[:, 0]]
    labels_N = plain.labels
    assert len(labels_N) == TRAIN + TEST and len(set(labels_N.tolist())) == CLASSES
    secrets = secrets_of(patches, labels_N)

    # The search finds all of it where it is: in stores that are not sealed, and planted deep in other files.
    assert ("pixels", "patches.u8") in found(secrets, plain.folder)
    for kind, texts in secrets.items():
        for text in texts[:: max(1, len(texts) // 20)]:
            (tmp_path / "control").mkdir(exist_ok=True)
            (tmp_path / "control" / "planted").write_bytes(bytes(100_001) + text + bytes(99))
            (tmp_path / "control" / "nothing").write_bytes(bytes(200_000))
            assert (kind, "planted") in found({kind: [text]}, tmp_path / "control")

    process = place.start_psl("train", *given, "run-name=sealed")
    run, seen, looks = place.run("sealed"), set(), 0
    wait_until(lambda: (status := run.read_status()) is not None and status.step >= 1, 240, "the first step")
    home = flower_home(place)
    assert home is not None
    while process.poll() is None:
        with contextlib.suppress(AssertionError):  # nothing is left to look at when it ends
            seen |= found(secrets, home, place.workspace, place.flower_home.parent / "user-state")
            looks += 1
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert looks >= 1
    seen |= found(secrets, place.workspace)
    assert len(list((run.path / "checkpoints").iterdir())) > 1 and (run.model / "model.safetensors").exists()
    # What the Lower is trusted with: the classes of the test images, beside its answers.
    assert seen - {("labels of test", "predictions.npz")} == set()
    assert ("labels of test", "predictions.npz") in seen
