"""What sealed stores are for: wrong images come back to people, their labels are corrected, and nobody else sees them."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from psl_flower.config import RunConfig
from psl_flower.data.sources import open_dataset
from psl_flower.kinds import parse_settings
from psl_flower.runs.folder import RunFolder
from psl_flower.sealed import authorisation
from psl_flower.stores.prepare import prepare_stores
from tests.e2e.conftest import Place, differing, last_json, model, oracle, wait_until

TRAIN, TEST = 128, 48
SETTINGS = (
    f"max-train={TRAIN}", f"max-test={TEST}", "batch-size=32", "rounds=1", "lr=0.02", "upper-threads=1", "lower-threads=1",
)  # fmt: skip
STEPS = 4
RESTORERS = ("restorer-1", "restorer-2")
START_S = 180


@pytest.fixture
def people(place: Place) -> list[str]:
    """Give the restorers' programs a memory of their own; return the arguments that name both."""
    place.environment["PSL_STATE"] = str(place.workspace / "memory")
    return [word for name in RESTORERS for word in ("--identity", key(place, name))]


def key(place: Place, name: str) -> str:
    return str(place.workspace / "keys" / f"{name}.key")


def done(place: Place, *arguments: str | Path) -> str:
    """Run a command that should succeed; return all that it said."""
    result = place.psl(*map(str, arguments))
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def refused(place: Place, *arguments: str | Path) -> str:
    """Run a command that should be refused; return its one error."""
    result = place.psl(*map(str, arguments))
    assert result.returncode == 1, result.stdout
    assert "Traceback" not in result.stderr, result.stderr
    return " ".join(result.stderr.replace("│", " ").split())


def pixels() -> np.ndarray:
    """Return the digits that the runs use (N, H, W), in the order of their global indices."""
    source = open_dataset("digits", max_train=TRAIN, max_test=TEST)
    return np.stack([image[:, :, 0] for split in ("train", "test") for image, _ in source.samples(split)])


def labels() -> np.ndarray:
    source = open_dataset("digits", max_train=TRAIN, max_test=TEST)
    return np.array([label for split in ("train", "test") for _, label in source.samples(split)])


def stop_after_a_step(place: Place, name: str) -> RunFolder:
    process = place.start_psl(
        "train", *(s for s in SETTINGS if s != "rounds=1"), "rounds=2", "evaluate-every=0", f"run-name={name}"
    )
    run = place.run(name)
    wait_until(lambda: (status := run.read_status()) is not None and status.step >= 1, START_S, "the first step")
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    status = run.read_status()
    assert status is not None and status.state == "stopped", output
    assert status.step < 2 * STEPS
    return run


@pytest.mark.timeout(600)
def test_wrong_images_are_restored_and_their_labels_corrected(place: Place, people: list[str], tmp_path: Path) -> None:
    said = done(place, "train", *SETTINGS, "run-name=first")
    assert "relabelled" not in said
    first = place.run("first")
    (manifest,) = (place.workspace / "stores").glob("*/manifest.psl")

    out = tmp_path / "wrong"
    done(place, "restore", "--manifest", manifest, "--wrong-only", first.path, *people, "--out", out, "--why", "a look")
    answers = np.load(first.path / "predictions.npz")
    wrong = np.flatnonzero(answers["label"] != answers["predicted"])
    worst = wrong[np.argsort(-answers["confidence"][wrong].astype(np.float64), kind="stable")]
    with (out / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["image"]) for row in rows] == answers["sample"][worst].tolist() != []
    originals = pixels()
    for row in rows:
        np.testing.assert_array_equal(np.asarray(Image.open(out / row["file"])), originals[int(row["image"])])
        assert row["predicted"] != row["label"] == str(labels()[int(row["image"])])
    assert (out / "sheet-0001.png").stat().st_size > 1000

    stopped = stop_after_a_step(place, "stopped")
    images = [k for k, label in enumerate(labels()[:TRAIN]) if label == 3][:8]
    named = [word for image in images for word in ("--image", f"train:{image}")]
    done(place, "relabel", "--manifest", manifest, "--identity", people[1], *named, "--label", "8", "--why", "misread")

    said = done(place, "train", *SETTINGS, "run-name=second")
    assert f"labels: version 1, {len(images)} images relabelled in all, last by restorer-1" in said
    second = place.run("second")
    assert (first.read_description().labels_version, second.read_description().labels_version) == (0, 1)
    corrected = oracle(second, STEPS)
    assert differing(model(second), corrected) == []
    assert differing(model(first), corrected) != []

    said = done(place, "train", "resume=stopped")
    assert "relabelled" not in said
    assert stopped.read_description().labels_version == 0
    assert differing(model(stopped), oracle(stopped, 2 * STEPS)) == []


def holders(texts: list[bytes], *folders: Path) -> list[Path]:
    """Return the files that hold any of these bytes."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if any(text in path.read_bytes() for text in texts)]


def rows_of(images: list[int]) -> list[bytes]:
    """Return the rows of these images' patches that are like no other bytes: six levels of grey or more."""
    rows = [row.tobytes() for image in pixels()[images] for row in image.reshape(-1, 8) if len(set(row.tolist())) > 5]
    assert len(rows) > 10
    return rows


@pytest.mark.slow  # make e2e has it between separate hosts
def test_images_from_afar(place: Place, people: list[str], tmp_path: Path) -> None:
    config = RunConfig.from_mapping(parse_settings(list(SETTINGS))).replace(workspace=str(place.workspace))
    stores = prepare_stores(config)
    asked, manifest = [3, 17, TRAIN + 5], stores.folder
    request, signed = tmp_path / "request.psl", tmp_path / "signed.psl"
    done(
        place, "authorise", "--manifest", manifest, *people[:2], "--image", "3,17,test:5", "--why", "complaint 4711",
        "--out", request,
    )  # fmt: skip
    said = refused(place, "train", *SETTINGS, f"restore={request}", "run-name=early")
    assert "2 restorers must sign, 1 did" in said
    assert not (place.run("early").path / "answers").exists()
    logs = [stores.folder / "restorations" / f"node-{m:03d}.log" for m in range(4)]
    assert not any(log.exists() for log in logs)

    done(place, "authorise", "--manifest", manifest, *people[2:], "--co-sign", request, "--out", signed)
    assert authorisation.describe(signed.read_bytes())[1] == 2
    said = done(place, "train", *SETTINGS, f"restore={signed}", "run-name=answered")
    assert "4 answers for 3 images" in said
    answers = place.run("answered").path / "answers"
    assert len(list(answers.glob("*.psl"))) == 4
    assert place.processes() == []

    opening = ["restore", "--manifest", manifest, "--request", signed, "--answers", answers, "--out", tmp_path / "out"]
    assert "is not sealed to restorer 'restorer-2'" in refused(place, *opening, *people[2:])
    assert not (tmp_path / "out").exists()
    done(place, *opening, *people[:2])
    for image, name in zip(asked, ("train-000003", "train-000017", "test-000005"), strict=True):
        restored = np.asarray(Image.open(tmp_path / "out" / f"{name}.png"))
        np.testing.assert_array_equal(restored, pixels()[image])

    for m, log in enumerate(logs):
        told = last_json(place.psl("audit-log", "--manifest", str(manifest), str(log), "--json").stdout)
        (entry,) = told["entries"]
        assert (entry["action"], entry["images"], entry["why"]) == ("answer", asked, "complaint 4711")
        assert entry["who"][0].startswith(f"node-{m:03d} (node ")

    rows = rows_of(asked)
    plain = prepare_stores(config.replace(stores="plain", workspace=str(tmp_path / "plain")))
    assert {path.name for path in holders(rows, plain.folder)} == {"patches.u8"}
    assert holders(rows, place.workspace, place.flower_home) == []
