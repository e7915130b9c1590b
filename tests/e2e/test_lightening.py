"""`psl lighten` as a user calls it, on a run of the embedded digits that `psl train` trained."""

import json
import signal
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.e2e.conftest import last_json, wait_until

# 8x8 pixels: seconds a model on one core.
TRAINED = (
    "max-train=320", "max-test=100", "image-size=8x8", "batch-size=32", "rounds=6", "lr=0.02", "alpha=0.0",
    "run-name=digits", "uppers=2", "upper-threads=1", "lower-threads=1",
)  # fmt: skip
SETTINGS = ("--local", "--epochs", "2", "--degrees", "3", "--threads", "1", "--json")


@pytest.fixture
def trained(place):
    ended = place.psl("train", *TRAINED)
    assert ended.returncode == 0, ended.stderr
    return place


def lighten(place, *arguments):
    return place.psl("lighten", "digits", *arguments, *SETTINGS, timeout=600)


@pytest.mark.slow
def test_a_light_model_is_found_and_what_was_judged_is_used_again(trained):
    # The run's own model in int8 will do, in seconds; the loop is asked for by name.
    ended = lighten(trained, "--max-drop", "0.5", "--min-speed", "100")
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert report["choice"]["what"] in ("first", "first-int8")
    assert {entry["what"] for entry in report["judged"]} == {"first", "first-int8"}
    assert "goals: accuracy at least" in ended.stderr

    loop = ("--method", "loop")
    ended = lighten(trained, "--max-drop", "0.5", "--min-speed", "100", *loop)
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    by_name = {entry["what"]: entry["judged"] for entry in report["judged"]}
    assert {"first", "first-int8", "second"} < by_name.keys()
    first, third = by_name["first"], by_name[report["choice"]["what"]]
    assert first["accuracy"] > 0.7
    assert third["accuracy"] >= first["accuracy"] - 0.5
    assert by_name["second"]["multiply_adds"] == pytest.approx(2 * first["multiply_adds"], rel=0.2)
    assert by_name["first-int8"]["num_bytes"] < first["num_bytes"] / 3.5

    # The shipped files: the whole gives the accuracy that was logged of it, in the runtime alone.
    files = trained.workspace.parent / report["third"]
    assert sorted(path.name for path in files.iterdir()) == [
        "lower.onnx", "model.onnx", "upper-000.onnx", "upper-001.onnx",
    ]  # fmt: skip
    assert (files / "model.onnx").stat().st_size == third["num_bytes"]
    for path in files.iterdir():
        onnx.checker.check_model(onnx.load(path))
    session = onnxruntime.InferenceSession(files / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {"images": np.zeros((3, 1, 8, 8), np.float32)})[0].shape == (3, 10)

    folder = trained.workspace.parent / report["folder"]
    assert "degree" in (folder / "report.md").read_text()
    assert (folder / "pareto.png").read_bytes()[:4] == b"\x89PNG"
    assert (folder / "pareto.svg").read_bytes()[:5] == b"<?xml"

    # Nothing is trained or judged again for what is known, and impossible conditions say which one fails.
    log = (folder / "log.jsonl").read_bytes()
    again = lighten(trained, "--max-drop", "0.5", "--min-speed", "100", *loop)
    assert again.returncode == 0
    assert (folder / "log.jsonl").read_bytes() == log
    assert json.loads(again.stdout)["choice"]["what"] == report["choice"]["what"]
    impossible = lighten(trained, "--min-accuracy", "0", "--min-speed", "1e9")
    assert impossible.returncode == 1
    assert "speed fails even at degree 3, the most lightened; closest: third, degree 3, " in impossible.stderr
    assert json.loads(impossible.stdout)["third"] is None


@pytest.mark.slow
def test_a_light_model_is_found_over_the_federation_and_put_in_place(trained):
    """Interrupted by Ctrl-C in the midst of a training, it goes on; nodes then predict with their light Uppers."""
    asked = ("lighten", "digits", "--max-drop", "0.9", "--min-speed", "100", "--epochs", "10", "--degrees", "3")
    asked = (*asked, "--threads", "1", "--second-ratio", "1.3", "--method", "loop", "--json")
    process = trained.start_psl(*asked)
    light = trained.run("digits").path / "light"
    # Nine rounds of ten are left then: seconds, in which the stop arrives.
    wait_until(lambda: any("round 1/10 done" in path.read_text() for path in light.glob("*/log.txt")), 300, "a round")
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT, said
    assert "continue with: the same command" in said

    ended = trained.psl(*asked, timeout=900)
    assert ended.returncode == 0, ended.stderr
    assert "continuing after step" in ended.stderr
    report = last_json(ended.stdout)
    judged = {entry["what"]: entry["judged"] for entry in report["judged"]}
    third = judged[report["choice"]["what"]]

    ended = trained.psl("predict", "--in-place", "digits", "--light", "--json")
    assert ended.returncode == 0, ended.stderr
    answer = last_json(ended.stdout)
    assert answer["light"]
    assert answer["accuracy"] == pytest.approx((third["accuracy"] + third["test_accuracy"]) / 2)  # halves of the images

    # The same from whole images, and the very same files; with as many threads as the parties had.
    trained.environment["OMP_NUM_THREADS"] = "1"
    files = Path(report["third"])
    arguments = [word for word in asked if word not in ("lighten", "digits")]
    local = trained.psl("lighten", "digits", "--local", *arguments, timeout=900)
    assert local.returncode == 0, local.stderr
    for path in Path(last_json(local.stdout)["third"]).iterdir():
        assert path.read_bytes() == (files / path.name).read_bytes(), path.name
