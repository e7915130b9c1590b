"""What is known of a run's predictions without its images: the table of the CSV, and `psl evaluate` on a server."""

import csv
import json
import shutil

import numpy as np
import pytest
from tiny_run import make_run

from psl_flower.cli.main import main
from psl_flower.config import RunConfig
from psl_flower.engine.build import Blueprint
from psl_flower.engine.rounds import Predictions
from psl_flower.errors import ConfigError, DatasetNotFound
from psl_flower.inference.trained_model import save_trained_model
from psl_flower.kinds import Train, kind_of
from psl_flower.runs.folder import create_run
from psl_flower.runs.predictions import write_table
from psl_flower.sealed import keyfile
from psl_flower.stores.prepare import prepare_stores, stores_are_here
from tests.vectors.sealed_support import ArraySource, World


def predictions(sample, label, predicted):
    confidence = np.linspace(0.5, 0.9, len(sample), dtype=np.float32)
    return Predictions(
        sample=np.array(sample), label=np.array(label), predicted=np.array(predicted), confidence=confidence, loss=0.5
    )


def test_the_table_has_names_of_images_and_classes(tmp_path):
    run, _ = make_run(tmp_path)
    run.write_predictions(predictions([40, 59, 3], [1, 0, 7], [1, 2, 7]), ["test", "test", "train"])
    write_table(run, run.read_description())
    with (run.path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], row["number"], row["label"], row["predicted"], row["right"]) for row in rows] == [
        ("test:0", "40", "1", "1", "yes"), ("test:19", "59", "0", "2", "no"), ("train:3", "3", "7", "7", "yes")
    ]  # fmt: skip
    assert rows[0]["confidence"] == "0.5000"


@pytest.fixture
def deployed(tmp_path, monkeypatch):
    """Return a run as it lies on a server: sealed stores elsewhere, their manifest and the Lower's key here."""
    monkeypatch.setenv("PSL_WORKSPACE", str(tmp_path / "workspace"))
    world = World(tmp_path / "sealed")
    world.seal(ArraySource())
    keys = tmp_path / "keys"
    for identity in (world.lower, *world.nodes):
        keyfile.save(identity, keys / f"{identity.name}.key")
    config = RunConfig.of(dataset=str(world.out), keys=str(keys), workspace=str(tmp_path / "workspace"))
    description = prepare_stores(config).description
    run = create_run(config.workspace_path(), "far", config.data.dataset)
    run.write_config(config)
    run.write_description(description)
    test = description.samples_of("test").tolist()
    run.write_predictions(predictions(test, [0] * len(test), [0, 1] + [0] * (len(test) - 2)))
    return run, config, world, keys


def test_an_audit_on_a_server_says_where_it_can_be_done(deployed, capsys):
    run, config, world, keys = deployed
    net = Blueprint(config, run.read_description()).network()
    save_trained_model(run.model, net.state_dict())
    for identity in world.nodes:
        (keys / f"{identity.name}.key").unlink()
    assert main(["leak", "far"]) == 1
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert not out and "far: its images are on the nodes, and an audit needs some" in line
    assert f"psl train --config {run.path / 'config.toml'} dataset=IMAGES" in line


def test_evaluate_on_a_server_shows_what_the_nodes_answered(deployed, capsys):
    _, config, world, keys = deployed
    assert stores_are_here(config)
    for identity in world.nodes:
        (keys / f"{identity.name}.key").unlink()
    assert not stores_are_here(config)
    assert main(["evaluate", "far", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    count = report["images"]
    assert report["accuracy"] == pytest.approx((count - 1) / count) and report["in_place"] is True
    assert report["classes"][0]["images"] == count
    assert main(["evaluate"]) == 0
    out = capsys.readouterr().out
    assert "predicted by the nodes and the server" in out and 'predict="far"' in out
    for store in world.out.glob("store-*"):
        shutil.rmtree(store)
    assert main(["evaluate", "--run", "far"]) == 0


def test_a_run_whose_patches_are_here_is_evaluated_by_its_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PSL_WORKSPACE", str(tmp_path))
    run, _ = make_run(tmp_path)
    run.write_predictions(predictions([40, 41], [1, 0], [1, 0]))
    assert main(["evaluate", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 20


def test_a_mistyped_dataset_leaves_no_folder(tmp_path):
    config = RunConfig.of(dataset="/data/mistpyed", workspace=str(tmp_path / "workspace"))
    with pytest.raises(DatasetNotFound, match="mistpyed"):
        Train(config=config).begin()
    assert not (tmp_path / "workspace" / "runs").exists()


def test_a_gpu_that_is_not_there_is_refused_before_anything_starts(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("psl_flower.launch.superlink.LocalSuperLink.__init__", lambda self: pytest.fail("it started"))
    assert main(["train", "device=cuda:99", "--workspace", str(tmp_path / "workspace")]) == 1
    err = capsys.readouterr().err
    assert "cuda:99 was asked for" in err and "device=cpu" in err
    assert not (tmp_path / "workspace").exists()
    with pytest.raises(ConfigError):
        kind_of({"device": "gpu"})


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_tracker_that_is_not_installed_is_refused_before_anything_starts(tmp_path, capsys, monkeypatch, options):
    monkeypatch.setattr("psl_flower.launch.superlink.LocalSuperLink.__init__", lambda self: pytest.fail("it started"))
    monkeypatch.setattr("psl_flower.runs.tracking.importlib.util.find_spec", lambda name: None)
    assert main(["train", "tracker=mlflow", *options, "--workspace", str(tmp_path / "workspace")]) == 1
    err = capsys.readouterr().err
    assert "tracker=mlflow needs mlflow, which is not installed: pip install 'psl-flower[mlflow]'" in err
    assert not (tmp_path / "workspace").exists()
