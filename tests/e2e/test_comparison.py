"""The comparison and the FedAvg app as a user calls them: real `flwr run`, on a few digits."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from clients.partitions import divide
from psl_flower.baselines.whole_image import LocalTraining
from psl_flower.config import RunConfig
from psl_flower.stores.prepare import prepare_stores
from simulations.compare.federated import averaging
from simulations.reports import Values
from tests.e2e.conftest import Place, model
from tests.paths import ROOT

pytest.importorskip("flwr_datasets", reason="extra compare is not installed")

CLIENTS, ROUNDS = 2, 2


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox"])
def test_federated_averaging_is_the_mean_of_its_clients(place: Place, strategy: str) -> None:
    """Two clients with unequal parts: after every round the weights are the mean of theirs, by images."""
    config = RunConfig.of(
        max_train=48, max_test=32, batch_size=16, lr=0.02, upper_threads=1, lower_threads=1, seed=3, rounds=ROUNDS,
        workspace=str(place.workspace), run_name="averaged", cutout=4, mixup=0.2, label_smoothing=0.1,
    )  # fmt: skip
    mu = 0.5 if strategy == "fedprox" else 0.0
    own: Values = {"strategy": strategy, "clients": CLIENTS, "partition": "dirichlet", "dirichlet-alpha": 0.5}
    own |= {"proximal-mu": mu} if mu else {}
    # `flwr run` on the app's folder, with a SuperLink that has more than Flower's 15 s to come up.
    outcome = averaging(config, own, lambda rounds: None)
    run = place.run("averaged")
    assert outcome.peak_bytes.keys() == {"node", "server"}
    assert [point.epoch for point in outcome.points] == [1.0, 2.0]

    config = run.read_config().replace(workspace=str(place.workspace))
    assert (config.training.cutout, config.training.mixup, config.training.label_smoothing) == (4, 0.2, 0.1)
    stores = prepare_stores(config)
    assert not stores.created
    manifest = stores.description
    pool = manifest.samples_of("train")
    parts = divide(pool, stores.labels[pool], num_clients=CLIENTS, kind="dirichlet", alpha=0.5, seed=3)
    assert len(parts[0]) != len(parts[1])
    store = stores.open(0)
    clients = [
        LocalTraining(config, manifest, stores.labels, store, part, total_epochs=ROUNDS, proximal=mu) for part in parts
    ]
    mean = {name: value.clone() for name, value in clients[0].net.state_dict().items()}
    for round_ in range(ROUNDS):
        for client in clients:
            client.net.load_state_dict(mean)
            client.train_epochs(round_, 1)
        states = [client.net.state_dict() for client in clients]
        shares = [len(part) / len(pool) for part in parts]
        mean = {
            name: like.copy_(
                sum(state[name] * share for state, share in zip(states, shares, strict=True)).add(
                    0.0 if like.is_floating_point() else 0.5
                )
            )
            for name, like in mean.items()
        }
    found = model(run)
    assert found.keys() == mean.keys()
    assert all(found[name].shape == mean[name].shape and found[name].dtype == mean[name].dtype for name in mean)
    # Flower sums the two parts in the order in which they come.
    assert all(torch.allclose(found[name].float(), mean[name].float(), rtol=1e-4, atol=1e-6) for name in mean)
    clients[0].net.load_state_dict(found)
    predictions = clients[0].evaluate()

    metrics = run.read_metrics()
    assert [m["round"] for m in metrics] == [1, 2]
    assert metrics[-1]["accuracy"] == pytest.approx(predictions.accuracy)
    assert (np.load(run.path / "predictions.npz")["predicted"] == predictions.predicted).all()
    weights = sum(value.numel() * value.element_size() for value in found.values())
    for m in metrics:
        # The whole network to and from each client in each round.
        assert weights * CLIENTS < m["bytes_up"] < 1.01 * weights * CLIENTS
        assert weights * CLIENTS < m["bytes_down"] < 1.01 * weights * CLIENTS
    assert metrics[-1]["bytes_up_by_client"].keys() == {"0", "1"}
    assert sum(metrics[-1]["bytes_up_by_client"].values()) == sum(m["bytes_up"] for m in metrics)
    # It is a model like any other.
    evaluated = place.psl("evaluate", "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["accuracy"] == pytest.approx(predictions.accuracy)


def compare(place: Place, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "simulations.compare", "--out", str(out), *arguments],
        cwd=ROOT, env={**os.environ, **place.environment}, capture_output=True, text=True, timeout=600, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_rows_through_flower_are_those_of_one_graph(place: Place, tmp_path: Path) -> None:
    """The study of docs/accuracy.md trains as one graph: each kind of its rows, tiny, is bit-equal through Flower."""
    rows = ["2x2 patches of 8x8", "2x2 patches of 8x8, average-every=2 alpha=0.25"]
    arguments = (
        "--methods", "patch-split", "--grids", "8x8", "--alphas", "0", "--variants", "average-every=2+alpha=0.25",
        "--max-train", "48", "--max-test", "32", "--epochs", "2", "batch-size=16", "lr=0.02", "backbone-width=4", "flip=true",
        "autocast=true", "upper-threads=1", "lower-threads=1",
    )  # fmt: skip
    found = {}
    for engine in ("flwr", "one-graph"):
        out = tmp_path / engine
        done = compare(place, out, "--engine", engine, *arguments)
        assert done.returncode == 0, done.stderr
        trials = json.loads((out / "report.json").read_text("utf-8"))["measurements"]
        found[engine] = {
            trial["method"]: [(point["accuracy"], point["test_loss"]) for point in trial["points"]] for trial in trials
        }
    assert list(found["flwr"]) == rows
    assert found["flwr"] == found["one-graph"]
    assert len({str(points) for points in found["flwr"].values()}) == len(rows), "no two rows are alike"


@pytest.mark.slow
def test_a_comparison_and_what_is_not_done_again(place: Place, tmp_path: Path) -> None:
    arguments = (
        "--methods", "patch-split,fedavg", "--grids", "8x8", "--alphas", "1", "--partitions", "iid", "--clients", "2",
        "--max-train", "48", "--max-test", "32", "--epochs", "1", "batch-size=16", "lr=0.02", "upper-threads=1",
        "lower-threads=1",
    )  # fmt: skip
    out = tmp_path / "study"
    done = compare(place, out, *arguments)
    assert done.returncode == 0, done.stderr
    assert "trial 2 of 2, FedAvg, 2 clients, IID, seed 0: accuracy" in done.stderr
    report = json.loads((out / "report.json").read_text("utf-8"))
    split, averaged = report["measurements"]
    for trial in (split, averaged):
        assert trial["engine"] == "flwr"
        assert [point["epoch"] for point in trial["points"]] == [1.0]
        assert sum(map(sum, trial["confusion"])) == 32
        correct = sum(trial["confusion"][k][k] for k in range(10))
        assert trial["points"][-1]["accuracy"] == pytest.approx(correct / 32)
        assert trial["peak_bytes"].keys() == {"node", "server"}
    maps = 64 * 8 * 8 * 4
    assert split["up"].keys() == {"0", "1", "2", "3"}
    assert all(0 < count - maps * (48 + 32) < 4000 for count in split["up"].values())
    patches, clients = (summary["cost"] for summary in report["summaries"])
    assert patches["weights"] > clients["weights"] > 50 * patches["node_weights"]
    assert clients["node_images"] == 24
    with (out / "methods.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2
    assert (out / "index.html").read_text("utf-8").count("<svg") == len(list(out.glob("*.png")))
    assert place.processes() == []

    done = compare(place, out, *arguments)
    assert done.returncode == 0, done.stderr
    assert "starting" not in done.stderr
    assert json.loads((out / "report.json").read_text("utf-8"))["measurements"] == report["measurements"]
