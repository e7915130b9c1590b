"""The throughput benchmark as a user calls it: all three modes for real, on a few digits."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.paths import ROOT

BATCH, STEPS, WARMUP = 16, 3, 1
# 2x2 patches of 8x8 pixels; layer1 keeps their size and has 64 channels.
ELEMENTS = 4 * 64 * 8 * 8


@pytest.fixture
def temporary():
    # Not pytest's own, whose name is too long for Ray's sockets.
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.mark.parametrize(("wire", "element_bytes", "threads"), [("float32", 4, 1), ("bfloat16", 2, 2)])
def test_all_modes_side_by_side(tmp_path, temporary, wire, element_bytes, threads):
    out = tmp_path / "throughput-digits.json"
    arguments = [
        "--batch-size", str(BATCH), "--steps", str(STEPS), "--warmup", str(WARMUP), "--repetitions", "1", "--wire", wire,
        "--threads", str(threads), "--json", "--out", str(out), "max-train=80", "node-timeout-s=200",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "simulations.throughput", *arguments],
        cwd=ROOT, env={**os.environ, "TMPDIR": str(temporary)}, capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads(out.read_text("utf-8"))
    assert "stream: starting" in done.stderr
    # Ray keeps its own logs in its own folder; of ours nothing stays.
    assert not [path.name for path in temporary.iterdir() if path.name.startswith("psl-")]

    assert [m["mode"] for m in report["measurements"]] == ["one-process", "stream", "flower"]
    assert report["settings"]["config"]["wire-activations"] == wire
    assert {"cpu", "cores", "memory_bytes"} <= report["machine"].keys()
    assert {"python", "torch", "flwr", "ray", "psl-flower"} <= report["versions"].keys()
    alone, *federated = report["measurements"]
    for trial in report["measurements"]:
        assert trial["batch_sizes"] == [BATCH] * (STEPS + WARMUP)
        assert len(trial["step_s"]) == STEPS + WARMUP
        assert min(trial["step_s"][WARMUP:]) > 0
        rates = sorted(BATCH / seconds for seconds in trial["step_s"][WARMUP:])
        assert trial["images_per_s"] == pytest.approx(rates[len(rates) // 2])
        assert min(trial["startup_s"].values()) >= 0
        # The same training. With one thread each nothing sets them apart; else sums in another order, and the wire's
        # rounding, which a few steps from random weights amplify.
        assert trial["loss"] == pytest.approx(alone["loss"], rel=1e-12 if wire == "float32" else 2e-2)
    for trial in federated:
        computed = ELEMENTS * element_bytes * BATCH * (STEPS + WARMUP)
        assert computed <= trial["bytes_up"] <= 1.02 * computed
        assert computed <= trial["bytes_down"] <= 1.02 * computed
        roles = [process["role"] for process in trial["processes"]]
        assert roles.count("Lower") == 1
        assert roles.count("Upper") == report["settings"]["nodes"] == 4
        assert all(process["peak_bytes"] > 50e6 for process in trial["processes"] if process["role"] != "Flower")
        assert set(trial["parts_s"]) == {"upper", "lower", "wire"}
    assert alone["bytes_up"] == 0
    for summary, trial in zip(report["summaries"], report["measurements"], strict=True):
        ratio = trial["images_per_s"] / alone["images_per_s"]
        assert summary["ratio"] is None if trial is alone else summary["ratio"]["median"] == pytest.approx(ratio)


def test_a_failing_run_ends_with_1_and_its_reason(temporary):
    done = subprocess.run(
        [sys.executable, "-m", "simulations.throughput", "--steps", "2", "--warmup", "1", "max-train=8", "lr=1e30"],
        cwd=ROOT, env={**os.environ, "TMPDIR": str(temporary)}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: the one process failed: the loss of step ")
    assert not list(temporary.glob("psl-*"))
