"""A newcomer's path: train, look, evaluate, predict, export; and exactness through real `flwr run`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.e2e.conftest import TINY, Place, differing, last_json, model, oracle
from tests.paths import DATA

CIFAR10 = DATA / "cifar10"
METRICS = {
    "round", "step", "loss", "lower_loss", "upper_loss", "accuracy", "images_per_s", "bytes_up", "bytes_down",
    "seconds", "upper_s", "lower_s", "wire_s", "bytes_up_by_upper", "bytes_down_by_upper",
}  # fmt: skip


def test_train_then_use_the_model(place: Place) -> None:
    done = place.psl("train", *TINY, "rounds=2", "steps-per-round=3", "run-name=first", "--json")
    assert done.returncode == 0, done.stderr
    answer = last_json(done.stdout)
    run = place.run("first")
    assert (answer["run"], answer["state"], answer["step"]) == ("first", "completed", 6)

    metrics = run.read_metrics()
    assert [m["step"] for m in metrics] == [3, 6]
    assert all(set(m) >= METRICS for m in metrics)
    # Four Uppers, three steps and a test split of 32: float32 maps of 64 x 8 x 8, gradients for the steps only.
    maps = 4 * 64 * 8 * 8 * 4
    assert 0 < metrics[0]["bytes_up"] - maps * (3 * 16 + 32) < 0.01 * metrics[0]["bytes_up"]
    assert 0 < metrics[0]["bytes_down"] - maps * 3 * 16 < 0.01 * metrics[0]["bytes_down"] + 4000
    assert set(metrics[0]["bytes_up_by_upper"]) == {"0", "1", "2", "3"}
    assert list(run.tensorboard.glob("events.out.tfevents.*"))
    assert "step 6/6" in (run.path / "log.txt").read_text()
    assert place.processes() == []

    assert differing(model(run), oracle(run, 6)) == []
    # A stale weight would be seen: the same comparison one step earlier.
    assert differing(model(run), oracle(run, 5)) != []

    evaluated = place.psl("evaluate", "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    assert last_json(evaluated.stdout)["accuracy"] == pytest.approx(metrics[-1]["accuracy"])
    assert np.load(run.path / "predictions.npz")["predicted"].shape == (32,)

    picture = place.workspace / "digit.png"
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(picture)
    assert place.psl("predict", str(picture)).returncode == 0
    exported = place.psl("export", "--format", "onnx", "--out", str(place.workspace / "digits.onnx"))
    assert exported.returncode == 0, exported.stderr
    assert (place.workspace / "digits.onnx").stat().st_size > 1_000_000

    leaked = place.psl("leak", "--victims", "4", "--auxiliary", "20", "--epochs", "1", "--json")
    assert leaked.returncode == 0, leaked.stderr
    assert last_json(leaked.stdout)["replayed"]["exact"], "trained again, the weights are not those of the run"


def test_plain_flwr_run_with_flowers_defaults(place: Place) -> None:
    """Two nodes and one slot: one node with a stream for all Uppers, a line that names psl train, the oracle's weights."""
    config = " ".join([*TINY, "rounds=1", "steps-per-round=3", "run-name='plain'"])
    done = place.flwr("run", ".", "--stream", "--run-config", config)
    log = (place.run("plain").path / "log.txt").read_text()
    assert "1 simulated node hosts 4 Uppers, stream transport" in log, done.stdout + done.stderr
    assert "deprecat" not in (done.stdout + done.stderr).lower()
    named = [line for line in log.splitlines() if "psl train" in line]
    assert ["slot" in line for line in named].count(True) == 1
    # The other one says who can reach such a simulation.
    assert ["warning: " in line for line in named].count(True) == len(named) - 1 == 1
    assert differing(model(place.run("plain")), oracle(place.run("plain"), 3)) == []


@pytest.mark.parametrize("transport", ["stream", "flower"])
def test_uppers_are_averaged(place: Place, transport: str) -> None:
    settings = ("rounds=1", "steps-per-round=4", "average-every=2", f"transport={transport}", "run-name=averaged")
    done = place.psl("train", *TINY, *settings)
    assert done.returncode == 0, done.stderr
    run = place.run("averaged")
    assert differing(model(run), oracle(run, 4)) == []
    found = model(run)
    names = [name for name in found if name.startswith("uppers.0.") and found[name].is_floating_point()]
    assert names
    assert [name for name in names if not torch.equal(found[name], found[name.replace("uppers.0.", "uppers.3.")])] == []
    # Between two averagings they are not alike, so what was compared is the work of the second.
    between = oracle(run, 3)
    assert not torch.equal(between["uppers.0.conv1.weight"], between["uppers.3.conv1.weight"])


def test_stream_asked_for_with_one_slot(place: Place) -> None:
    """The stream transport must not hang where nodes share a slot: fewer nodes then host all Uppers."""
    config = " ".join([*TINY, "rounds=1", "steps-per-round=2", "run-name='shared'", "transport='stream'"])
    done = place.flwr("run", ".", "--stream", "--run-config", config)
    run = place.run("shared")
    assert "1 simulated node hosts 4 Uppers, stream transport" in (run.path / "log.txt").read_text(), done.stdout
    assert differing(model(run), oracle(run, 2)) == []


@pytest.mark.slow
def test_the_adaptation_net_on_a_node_of_its_own(place: Place) -> None:
    done = place.psl("train", *TINY, "adaptation-server=true", "rounds=2", "steps-per-round=2", "run-name=five")
    assert done.returncode == 0, done.stderr
    run = place.run("five")
    assert (
        "5 simulated nodes host 4 Uppers and the Adaptation Net, stream transport" in (run.path / "log.txt").read_text()
    )
    assert differing(model(run), oracle(run, 4)) == []
    assert differing(model(run), oracle(run, 3)) != []
    # Two steps there and back in float32 for each round, nothing for the test split.
    maps = 2 * 16 * 4 * 64 * 8 * 8 * 4
    for n, metrics in enumerate(run.read_metrics(), 1):
        for way in ("up", "down"):
            assert 0 < metrics[f"bytes_{way}_adaptation"] - n * maps < 5000
            assert set(metrics[f"bytes_{way}_by_upper"]) == {"0", "1", "2", "3"}

    # It has no part in predictions.
    done = place.psl("predict", "--in-place", "five", "--json")
    assert done.returncode == 0, done.stderr
    assert last_json(done.stdout)["accuracy"] == run.read_metrics()[-1]["accuracy"]


@pytest.mark.slow
def test_the_adaptation_net_where_flower_has_one_slot(place: Place) -> None:
    """Over Flower messages it works; a stream, which needs two nodes at once, is refused and does not hang."""
    config = " ".join([*TINY, "adaptation-server=true", "rounds=1", "steps-per-round=2"])
    done = place.flwr("run", ".", "--stream", "--run-config", f"{config} run-name='two'")
    run = place.run("two")
    words = "2 simulated nodes host 4 Uppers and the Adaptation Net, flower transport"
    assert words in (run.path / "log.txt").read_text(), done.stdout + done.stderr
    assert differing(model(run), oracle(run, 2)) == []
    place.flwr("run", ".", "--stream", "--run-config", f"{config} run-name='refused' transport='stream'", timeout=180)
    status = place.run("refused").read_status()
    assert status is not None
    assert "Uppers and the Adaptation Net need 2 slots" in status.message


def test_nine_overlapping_patches_on_few_nodes(place: Place) -> None:
    done = place.psl(
        "train", *TINY, "patch-size=8x8", "stride=4x4", "flip=true", "rounds=1", "steps-per-round=2", "run-name=nine",
        "wire-activations=bfloat16", "wire-gradients=int8", "--nodes", "3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = place.run("nine")
    assert "3 simulated nodes host 9 Uppers, stream transport" in (run.path / "log.txt").read_text()
    assert differing(model(run), oracle(run, 2)) == []


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="no ../shared/data/cifar10 beside this checkout")
def test_cifar10(place: Place) -> None:
    done = place.psl(
        "train", f"dataset={CIFAR10}", "max-train=64", "max-test=32", "batch-size=32", "rounds=1", "flip=true",
        "shift=2", "lr=0.02", "upper-threads=1", "lower-threads=1", "uppers=2", "run-name=cifar",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = place.run("cifar")
    manifest = run.read_description()
    assert (manifest.image_size, manifest.channels, manifest.num_classes) == ((32, 32), 3, 10)
    assert differing(model(run), oracle(run, 2)) == []


def test_a_folder_of_images_by_class(place: Place, tmp_path: Path) -> None:
    """Colour, not square, of varying size, three classes, no test split."""
    noise = np.random.default_rng(0)
    for label in ("ant", "bee", "cat"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for n in range(12):
            size = (24 + n, 40 + n, 3)
            Image.fromarray(noise.integers(0, 255, size, np.uint8)).save(tmp_path / "pictures" / label / f"{n}.png")
    done = place.psl(
        "train", f"dataset={tmp_path / 'pictures'}", "image-size=24x36", "batch-size=8", "rounds=1",
        "steps-per-round=2", "run-name=pictures", "upper-threads=1", "lower-threads=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    manifest = place.run("pictures").read_description()
    assert (manifest.image_size, manifest.patch_size, manifest.class_names) == (
        (24, 36),
        (12, 18),
        ("ant", "bee", "cat"),
    )
    assert differing(model(place.run("pictures")), oracle(place.run("pictures"), 2)) == []
    assert "read as images by class" in done.stdout + done.stderr
    account = place.run("pictures").read_account()
    assert account is not None and sum(split.count for split in account.splits) == 36
