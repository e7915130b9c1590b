"""A folder of few photographs, and `psl train dataset=FOLDER` alone: the model beats guessing."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulations import first_model, reports
from simulations.first_model import Report
from tests.paths import DATA

CIFAR10 = DATA / "cifar10"


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="no ../shared/data/cifar10 beside this checkout")
def test_the_defaults_learn_from_few_photographs(tmp_path: Path) -> None:
    out = tmp_path / "first-model.json"
    arguments = ["--dataset", str(CIFAR10), "--sets", "three", "--side", "16", "--out", str(out)]
    assert first_model.main(arguments) == 0
    report = reports.load(out, Report)
    assert report is not None
    (trial,) = report.measurements
    assert (trial.images, trial.side) == (180, 16)
    assert trial.steps >= 200 and not trial.at_chance
    ((_, (row,)),) = report.tables
    assert row[:3] == ("3 kinds of photograph, 60 of each", "180", "16x16")
    assert first_model.main(arguments) == 0
    assert reports.load(out, Report) == report, "nothing is trained again"
