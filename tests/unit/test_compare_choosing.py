"""A study's settings are chosen on validation images alone."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
import tiny_comparison

from psl_flower.config import RunConfig
from psl_flower.errors import ConfigError, RunError
from psl_flower.stores import plain
from simulations import reports
from simulations.compare import worker
from simulations.compare.choosing import best_by_grid, chosen_in_words
from simulations.compare.methods import Options, plan, read_grid
from simulations.compare.results import summarise

CHOICE = Options(methods=("patch-split",), alphas=(0.0,), variants=("average-every=8", "alpha=0.25"))
METHODS = plan(RunConfig(), CHOICE, (16, 16))


def judged(judge, accuracy):
    """Return the report of a study whose methods came to these accuracies, by seed."""
    trials = [tiny_comparison.trial(m, seed, accuracy(m, seed)) for seed in (0, 1) for m in METHODS]
    report = tiny_comparison.report(judge=judge, options={"epochs": "2", "judge": judge})
    costs = {method.name: report.summaries[0].cost for method in METHODS}
    return msgspec.structs.replace(report, measurements=tuple(trials), summaries=summarise(METHODS, costs, trials, 0.5))


def test_the_best_of_each_grid_is_chosen():
    report = judged("valid", lambda m, seed: 0.6 + 0.02 * ("average" in m.name) + 0.05 * ("alpha" in m.name) * seed)
    chosen = best_by_grid(report)
    assert list(chosen) == ["8x8", "8x8/4x4"]
    assert chosen["8x8"].method.config == METHODS[2].config and METHODS[2].config["alpha"] == 0.25
    assert "2x2 patches of 8x8, alpha=0.25 was best, +2.5 points (+0.0 to +5.0 by seed)" in chosen_in_words(report)
    assert "Chosen on these images" in report.notes and "2 images" not in report.title
    level = judged("valid", lambda m, seed: 0.6)
    assert best_by_grid(level)["8x8"].method == METHODS[0]
    assert "nothing that was tried was better" in chosen_in_words(level)


def test_nothing_is_chosen_by_test_accuracy(tmp_path):
    report = judged("test", lambda m, seed: 0.6)
    with pytest.raises(RunError, match="judged on test images"):
        best_by_grid(report)
    reports.save(tmp_path / "report.json", report)
    with pytest.raises(RunError, match=r"report\.json: the study was judged on test images"):
        plan(RunConfig(), Options(methods=("patch-split",), recipe=str(tmp_path / "report.json")), (16, 16))


def test_a_chosen_recipe_is_one_more_method(tmp_path):
    report = judged("valid", lambda m, seed: 0.6 + 0.02 * ("average" in m.name))
    reports.save(tmp_path / "report.json", report)
    recipe = Options(methods=("patch-split",), alphas=(0.0,), recipe=str(tmp_path / "report.json"))
    methods = plan(RunConfig(), recipe, (16, 16))
    assert [m.name for m in methods[-2:]] == [
        "2x2 patches of 8x8, chosen recipe", "3x3 patches of 8x8, stride 4x4, chosen recipe",
    ]  # fmt: skip
    assert methods[-1].config == METHODS[4].config and methods[-1].config["average-every"] == 8
    with pytest.raises(ConfigError, match="nothing was chosen for 4x4, only for 8x8, 8x8/4x4"):
        plan(RunConfig(), replace(recipe, grids=(read_grid("4x4"),)), (16, 16))


@pytest.mark.parametrize("refused", [{"engine": "flwr"}, {"engine": "in-process"}, {"methods": ("whole", "fedavg")}])
def test_only_what_can_be_judged_on_validation_images(refused):
    with pytest.raises(ConfigError, match="--judge valid goes with"):
        Options(**({"judge": "valid", "engine": "one-graph", "methods": ("whole", "patch-split")} | refused))


@pytest.mark.parametrize("kind", ["whole", "merged", "one-graph"])
def test_a_study_that_chooses_reads_no_test_image(tmp_path, monkeypatch, kind):
    """Other test images change nothing; other training images do."""
    grid = {"patch-size": "8x8"} if kind == "whole" else {"patch-size": "4x4"}
    config = {
        "dataset": "digits", "max-train": 96, "max-test": 32, "valid-fraction": 0.25, "rounds": 1, "steps-per-round": 2,
        "batch-size": 16, "backbone-width": 4, "alpha": 0.0, "device": "cpu", "stores": "plain", "workspace": str(tmp_path), **grid,
    }  # fmt: skip
    if kind == "whole":
        config |= {"uppers": 1, "allow-whole-images": True}

    def outcome(judge="valid", spoilt=()):
        read = plain.PlainStore.read

        def read_spoilt(self, samples_B):
            patches = read(self, samples_B).copy()
            patches[np.isin(samples_B, spoilt)] = 255
            return patches

        with monkeypatch.context() as patch:
            patch.setattr(plain.PlainStore, "read", read_spoilt)
            return worker.work(
                worker.Job(kind=kind, config=config, threads=1, folder=str(tmp_path / "job"), judge=judge)
            )

    def result(found):
        return found.points[0].accuracy, found.points[0].test_loss, found.label, found.predicted

    valid = outcome()
    assert len(valid.label) == 24
    assert result(outcome(spoilt=range(96, 128))) == result(valid)
    assert result(outcome(spoilt=range(96))) != result(valid)
    assert len(outcome("test").label) == 32
    assert result(outcome("test", spoilt=range(96, 128))) != result(outcome("test"))
