"""The throughput benchmark as a user calls it: both transports in turns with one process, for real, on a few digits."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.paths import ROOT

BATCH, STEPS, TURNS, WARMUP = 16, 16, 2, 1
TOTAL = STEPS + TURNS + WARMUP
# 2x2 patches of 8x8 pixels; layer1 keeps their size and has 64 channels.
ELEMENTS = 4 * 64 * 8 * 8


@pytest.fixture
def temporary():
    # Not pytest's own, whose name is too long for Ray's sockets.
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.mark.parametrize(
    ("wire", "element_bytes", "threads"), [("float32", 4, 1), pytest.param("bfloat16", 2, 2, marks=pytest.mark.slow)]
)
def test_all_modes_side_by_side(tmp_path, temporary, wire, element_bytes, threads):
    out = tmp_path / "throughput-digits.json"
    arguments = [
        "--batch-size", str(BATCH), "--steps", str(STEPS), "--turns", str(TURNS), "--warmup", str(WARMUP), "--repetitions", "1", "--wire", wire,
        "--threads", str(threads), "--json", "--out", str(out), "max-train=80", "node-timeout-s=200",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "simulations.throughput", *arguments],
        cwd=ROOT, env={**os.environ, "TMPDIR": str(temporary)}, capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads(out.read_text("utf-8"))
    assert "stream and one process: starting" in done.stderr
    # Ray keeps its own logs in its own folder; of ours nothing stays.
    assert not [path.name for path in temporary.iterdir() if path.name.startswith("psl-")]

    sessions = [(m["repetition"], m["mode"]) for m in report["measurements"]]
    assert sessions == [(1, "one-process"), (1, "stream"), (2, "one-process"), (2, "flower")]
    assert report["settings"]["config"]["wire-activations"] == wire
    assert {"cpu", "cores", "memory_bytes"} <= report["machine"].keys()
    assert {"python", "torch", "flwr", "ray", "psl-flower"} <= report["versions"].keys()
    alone = {m["repetition"]: m for m in report["measurements"] if m["mode"] == "one-process"}
    federated = [m for m in report["measurements"] if m["mode"] != "one-process"]
    for trial in report["measurements"]:
        assert trial["batch_sizes"] == [BATCH] * TOTAL
        assert len(trial["step_s"]) == TOTAL
        whole = [seconds for i, seconds in enumerate(trial["step_s"]) if i >= WARMUP and i not in trial["cut"]]
        assert min(whole) > 0
        rates = [BATCH / seconds for seconds in whole]
        assert trial["images_per_s"] == pytest.approx(statistics.median(rates))
        assert min(trial["startup_s"].values()) >= 0
        # The same training. With one thread each nothing sets them apart; else sums in another order, and the wire's
        # rounding, which a few steps from random weights amplify.
        expected = alone[trial["repetition"]]["loss"]
        assert trial["loss"] == pytest.approx(expected, rel=1e-12 if wire == "float32" else 2e-2)
    for trial in federated:
        # Held while the federated run started, for many steps' time: only the step in which it was stopped shows it.
        opponent = alone[trial["repetition"]]
        assert max(opponent["step_s"][i] for i in opponent["cut"]) > 5 * BATCH / opponent["images_per_s"]
        whole = [seconds for i, seconds in enumerate(trial["step_s"]) if i >= WARMUP and i not in trial["cut"]]
        assert sum(trial["parts_s"].values()) == pytest.approx(statistics.mean(whole), rel=0.1)
    # A run that is looked at once a second may be over before its turn comes, but hardly all of them.
    assert any(trial["cut"] for trial in federated)
    for trial in federated:
        computed = ELEMENTS * element_bytes * BATCH * TOTAL
        assert computed <= trial["bytes_up"] <= 1.02 * computed
        assert computed <= trial["bytes_down"] <= 1.02 * computed
        roles = [process["role"] for process in trial["processes"]]
        assert roles.count("Lower") == 1
        assert roles.count("Upper") == report["settings"]["nodes"] == 4
        assert all(process["peak_bytes"] > 50e6 for process in trial["processes"] if process["role"] != "Flower")
        assert set(trial["parts_s"]) == {"upper", "lower", "wire"}
    assert {trial["bytes_up"] for trial in alone.values()} == {0}
    of_one, *of_federated = report["summaries"]
    assert of_one["ratio"] is None
    for summary, trial in zip(of_federated, federated, strict=True):
        ratio = trial["images_per_s"] / alone[trial["repetition"]]["images_per_s"]
        assert summary["ratio"]["median"] == pytest.approx(ratio)


@pytest.mark.parametrize(
    # The second step meets the weights that the first one spoilt; one process is held after its warm-up.
    ("warmup", "reason"),
    [("2", "the one process failed: the loss of step "), ("1", "the federated run failed: step 1: the loss is ")],
)
def test_a_failing_run_ends_with_1_and_its_reason(temporary, warmup, reason):
    arguments = ["--steps", "2", "--warmup", warmup, "--transports", "stream", "max-train=8", "lr=1e30"]
    done = subprocess.run(
        [sys.executable, "-m", "simulations.throughput", *arguments],
        cwd=ROOT, env={**os.environ, "TMPDIR": str(temporary)}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {reason}")
    assert not list(temporary.glob("psl-*"))
