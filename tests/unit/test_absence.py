"""Accuracy without Uppers: against the network with those Uppers left out, and what is tried of many choices."""

import csv
import math

import pytest
import torch
from PIL import Image
from tiny_run import make_run

from psl_flower.engine.inputs import normalise
from psl_flower.errors import RunError
from psl_flower.inference.absence import (
    MAX_CHOICES,
    MAX_COUNTS,
    AbsencePoint,
    _choices,
    absence_curve,
    write_csv,
    write_png,
)
from psl_flower.inference.evaluation import own_test_images
from psl_flower.inference.trained_model import load_trained_model

POINTS = [
    AbsencePoint(absent=0, accuracy=0.75, lowest=0.75, highest=0.75, tried=1, possible=1),
    AbsencePoint(absent=1, accuracy=0.5, lowest=0.25, highest=0.625, tried=4, possible=4),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("workspace"), uppers=3, max_test=60)[0]


def test_each_point_is_the_network_without_these_uppers(run):
    trained = load_trained_model(run)
    points = absence_curve(trained, own_test_images(run, trained))
    assert [(p.absent, p.tried, p.possible) for p in points] == [(0, 1, 1), (1, 3, 3), (2, 3, 3)]
    net, description = trained.net, trained.description
    for point in points:
        found = []
        for absent in _choices(3)[point.absent]:
            right = 0
            for images, labels in own_test_images(run, trained).batches:
                patches = description.grid().split(normalise(images, description.mean, description.std))
                logits = net.join(net.smash_patches(patches, absent=absent))
                right += int((logits.argmax(1) == torch.from_numpy(labels)).sum())
            found.append(right / 60)
        assert point.lowest == min(found)
        assert point.highest == max(found)
        assert point.accuracy == pytest.approx(sum(found) / len(found))
    # Random weights; yet who is absent matters.
    assert len({p.accuracy for p in points}) > 1


def test_progress_counts_images(run):
    trained, seen = load_trained_model(run), []
    absence_curve(trained, own_test_images(run, trained, 20), lambda *said: seen.append(said))
    assert seen[-1] == ("evaluate", 20, 20)


@pytest.mark.parametrize("num_uppers", [1, 2, 7, 49])
def test_few_choices_are_all_tried_and_many_are_sampled(num_uppers):
    chosen = _choices(num_uppers)
    assert len(chosen) == min(num_uppers, MAX_COUNTS)
    assert min(chosen) == 0
    assert max(chosen) == num_uppers - 1
    for count, of_count in chosen.items():
        assert len(set(of_count)) == len(of_count) == min(MAX_CHOICES, math.comb(num_uppers, count))
        assert all(len(set(absent)) == count and set(absent) <= set(range(num_uppers)) for absent in of_count)
    assert _choices(num_uppers) == chosen


def test_the_files(tmp_path):
    write_csv(POINTS, tmp_path / "deep" / "absent.csv")
    with (tmp_path / "deep" / "absent.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[1] == {
        "absent": "1", "accuracy": "0.5", "lowest": "0.25", "highest": "0.625", "tried": "4", "possible": "4"
    }  # fmt: skip
    write_png(POINTS, tmp_path / "absent.png", "two points")
    with Image.open(tmp_path / "absent.png") as picture:
        assert picture.size == (780, 540)
        assert len(set(picture.convert("L").getdata())) > 10
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        write_csv(POINTS, tmp_path / "file" / "absent.csv")
