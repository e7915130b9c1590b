"""Trials without Flower: every engine trains the same, and costs are counted."""

import os
import subprocess
import sys

import msgspec
import pytest

from psl_flower.baselines.whole_image import whole_image_config
from psl_flower.errors import RunError
from simulations.compare import worker
from simulations.compare.costs import cost
from simulations.compare.methods import Grid, Options, plan
from tests.engines import settings
from tests.paths import ROOT
from tests.unit.tiny_pictures import colour, encode

TINY = {"max_train": 16, "max_test": 6, "batch_size": 4, "rounds": 2, "steps_per_round": 2, "alpha": 1.0}

RUN = """
import sys
import msgspec
from simulations.compare import worker
if __name__ == "__main__":
    print(len(worker.run(msgspec.json.decode(sys.argv[1], type=worker.Job), lambda steps: None).label))
"""


def job(tmp_path, kind, config):
    workspaced = config.replace(workspace=str(tmp_path / "workspace"))
    return worker.Job(kind=kind, config=workspaced.to_mapping(), threads=1, folder=str(tmp_path / kind))


def test_one_graph_and_all_parties_in_one_process_answer_alike(tmp_path, one_thread):
    config = settings(**TINY)
    told = []
    parties = worker.work(job(tmp_path, "in-process", config), told.append)
    graph = worker.work(job(tmp_path, "one-graph", config))
    assert told == [1, 2, 3, 4]
    assert (parties.predicted, parties.label) == (graph.predicted, graph.label)
    assert [(p.epoch, p.accuracy, p.test_loss) for p in parties.points] == [
        (p.epoch, p.accuracy, p.test_loss) for p in graph.points
    ]
    assert [p.epoch for p in graph.points] == [0.5, 1.0]
    assert 0 < graph.points[0].train_s < graph.points[1].train_s
    # Two steps of four images a round and the six test images, 64 maps of 8x8 float32 each, of four Uppers.
    maps = 64 * 8 * 8 * 4
    assert 0 < parties.points[0].bytes_up - 4 * maps * (8 + 6) < 4000
    assert parties.points[1].bytes_up == sum(parties.up.values())
    assert (graph.up, graph.points[1].bytes_up) == ({}, 0)
    assert graph.peak_bytes["one process"] > 50e6


@pytest.mark.parametrize("at", [2, 4])
def test_a_graph_that_was_interrupted_goes_on(tmp_path, one_thread, monkeypatch, at):
    """After the first round, and between the last one's end and the answer: the numbers of an undisturbed one."""
    config = settings(**TINY, flip=True)
    whole = worker.work(msgspec.structs.replace(job(tmp_path, "one-graph", config), folder=str(tmp_path / "other")))
    monkeypatch.setattr(worker, "_SAVE_EVERY_S", 0.0)

    def die(*_):
        raise KeyboardInterrupt

    def told(step):
        if step > at:
            die()

    given = msgspec.structs.replace(job(tmp_path, "one-graph", config), absent=at == 4)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(worker, "_absent", die)
        worker.work(given, told)
    told = []
    again = worker.work(msgspec.structs.replace(given, absent=False), told.append)
    assert told == list(range(at + 1, 5))
    assert (again.predicted, again.label) == (whole.predicted, whole.label)
    assert [(p.epoch, p.accuracy, p.test_loss) for p in again.points] == [
        (p.epoch, p.accuracy, p.test_loss) for p in whole.points
    ]
    assert not list((tmp_path / "one-graph").iterdir())


def test_accuracy_without_some_uppers(tmp_path, one_thread):
    config = settings(**TINY, flip=True)
    given = msgspec.structs.replace(job(tmp_path, "one-graph", config), absent=True)
    found = worker.work(given)
    assert [(point.absent, point.possible) for point in found.absent] == [(0, 1), (1, 4), (2, 6), (3, 4)]
    everyone = found.absent[0].accuracy
    assert everyone.mean == everyone.low == everyone.high == pytest.approx(found.points[-1].accuracy)
    assert worker.work(job(tmp_path, "one-graph", config)).absent == ()


def test_whole_images_in_a_process_of_their_own(tmp_path):
    config = whole_image_config(settings(**TINY))
    told = []
    found = worker.run(job(tmp_path, "whole", config), told.append)
    assert told == [1, 2, 3, 4]
    assert len(found.label) == 6
    with pytest.raises(RunError, match="no such folder"):
        worker.run(job(tmp_path, "whole", config.replace(dataset=str(tmp_path / "absent"))), told.append)


def test_a_process_that_is_done_leaves_nothing_behind(tmp_path, datasets, monkeypatch):
    """Reading a hub dataset makes semaphores, which Python warns of, at the user, if their process was killed."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "tables").mkdir()
    for split, shades in (("train", range(16)), ("test", range(16, 32))):
        pictures = datasets.Dataset.from_dict(
            {"img": [{"bytes": encode(colour(v)), "path": None} for v in shades], "label": [0, 1] * 8},
            features=datasets.Features(img=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"])),
        )
        pictures.to_parquet(tmp_path / "tables" / f"{split}-00000-of-00001.parquet")
    config = whole_image_config(settings(**TINY, dataset=str(tmp_path / "tables"), shift=0))
    done = subprocess.run(
        [sys.executable, "-c", RUN, msgspec.json.encode(job(tmp_path, "whole", config))],
        cwd=ROOT, env=os.environ | {"HF_HOME": str(tmp_path)}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "6\n"), done.stderr
    assert "leaked" not in done.stderr


def test_costs(stores_for):
    options = Options(methods=("whole", "patch-split"), grids=(Grid((8, 8), (8, 8)), Grid((8, 8), (4, 4))))
    config = settings(max_train=16, max_test=6)
    whole, merged, split, adapted, overlapping, _ = methods = plan(config, options, (16, 16))
    given = whole_image_config(config)
    costs = {whole.name: cost(whole, given, stores_for(given)), merged.name: cost(merged, given, stores_for(given))}
    for method in methods[2:]:
        stride = (4, 4) if "stride" in method.name else (8, 8)
        cut = settings(max_train=16, max_test=6, stride=stride, alpha=method.config["alpha"])
        costs[method.name] = cost(method, cut, stores_for(cut))
    alone, parties = costs[whole.name], costs[split.name]
    assert costs[merged.name] == alone
    # ResNet18 on 32x32 takes 0.56 GMAC forward; 16x16 a quarter, and the backward pass twice as much again.
    assert alone.node_flops == pytest.approx(2 * 0.556e9 / 4 * 3, rel=0.02)
    assert alone.weights == alone.node_weights == pytest.approx(11.17e6, rel=1e-3)
    # Four Uppers and the Lower do what the whole network does, but for the gradient at the cut.
    assert 4 * parties.node_flops + parties.server_flops == pytest.approx(alone.node_flops, rel=0.02)
    assert parties.weights - alone.weights == 3 * parties.node_weights
    assert costs[adapted.name].server_flops > parties.server_flops
    assert costs[adapted.name].weights == parties.weights
    assert costs[overlapping.name].server_flops == pytest.approx(9 / 4 * parties.server_flops, rel=0.05)
    assert (alone.node_images, parties.node_images) == (16, 16)
