"""`psl lighten --local` as a user calls it, on a run of the embedded digits that `psl train` trained."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest

# 8x8 pixels: seconds a model on one core.
TRAINED = (
    "max-train=320", "max-test=100", "image-size=8x8", "batch-size=32", "rounds=6", "lr=0.02", "alpha=0.0",
    "run-name=digits", "uppers=2",
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
    ended = lighten(trained, "--max-drop", "0.5", "--min-speed", "100")
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    by_name = {entry["what"]: entry["judged"] for entry in report["judged"]}
    assert {"first", "first-int8", "second"} < by_name.keys()
    first, third = by_name["first"], by_name[f"degree-{report['best_degree']:03d}"]
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
    again = lighten(trained, "--max-drop", "0.5", "--min-speed", "100")
    assert again.returncode == 0
    assert (folder / "log.jsonl").read_bytes() == log
    assert json.loads(again.stdout)["best_degree"] == report["best_degree"]
    impossible = lighten(trained, "--min-accuracy", "0", "--min-speed", "1e9")
    assert impossible.returncode == 1
    assert "speed fails even at degree 3, the most lightened; best found: degree 3" in impossible.stderr
    assert json.loads(impossible.stdout)["third"] is None
