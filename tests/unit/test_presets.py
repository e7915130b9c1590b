"""Presets: they stand for settings, those given win, and their figures are those of the result file."""

import statistics

import pytest

from psl_flower.cli.main import main
from psl_flower.cli.train import read_settings
from psl_flower.config import RunConfig
from psl_flower.config.presets import PRESETS, resolved
from psl_flower.errors import ConfigError
from psl_flower.kinds import kind_of
from simulations import reports
from simulations.leakage.results import Report
from tests.paths import ROOT
from tests.settings import known_settings

REPORT = reports.load(ROOT / "docs/results/leakage-cifar10.json", Report)
LARGE = reports.load(ROOT / "docs/results/leakage-cifar10-all.json", Report)
AVERAGES = {average.case: average for average in REPORT.averages}


def test_a_preset_is_other_settings():
    assert kind_of({"preset": "private"}).config == RunConfig.of(
        cut="layer4", protection="code", code_size=16, wire_gradients="float16"
    )
    assert kind_of({"preset": "plain"}).config == RunConfig()
    assert kind_of({"preset": "balanced"}).config.network.code_size == 32


def test_what_is_given_wins_and_that_is_said():
    given, line = resolved({"preset": "private", "code-size": 8, "lr": 0.1}, {"code-size", "lr"}.__contains__)
    assert given == {"cut": "layer4", "protection": "code", "code-size": 8, "wire-gradients": "float16", "lr": 0.1}
    assert line == (
        "preset private: cut=layer4, protection=code, wire-gradients=float16; given otherwise, so its figures do not hold: "
        "code-size=8"
    )
    # As Flower hands it over, with the defaults of all settings.
    config = kind_of(known_settings() | {"preset": "private", "code-size": 8}).config
    assert (config.network.code_size, config.network.cut) == (8, "layer4")


def test_psl_train_passes_on_what_a_preset_stands_for(capsys):
    given, kind = read_settings(["preset=balanced", "protection=narrow"])
    assert "preset" not in given
    assert given["protection"] == "narrow"
    assert kind.config.network.cut == "layer4"
    assert "given otherwise, so its figures do not hold: protection=narrow" in capsys.readouterr().err


def test_a_preset_that_is_none_is_refused(capsys):
    assert main(["train", "--dry-run", "preset=safe"]) == 2
    assert "preset: expected one of private, balanced, plain, got 'safe'" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="preset: private stands for other settings"):
        RunConfig.of(preset="private")


@pytest.mark.parametrize("name", PRESETS)
def test_figures_are_those_of_the_result_file(name):
    assert PRESETS
    about, average = PRESETS[name].about, AVERAGES[PRESETS[name].case]
    trials = [trial for trial in REPORT.measurements if trial.case == average.case]
    weights = [found.ssim.mean for trial in trials for found in trial.one_look if found.level == "weights"]

    def told(ssim):
        return f"{ssim:.3f}".removeprefix("0")

    assert f"Measured with {average.seeds} seed" in about
    assert (
        f"SSIM {told(average.one_look)} by queries of the Uppers, {told(statistics.fmean(weights))} with their" in about
    )
    assert f"accuracy {100 * average.accuracy:.1f} %" in about
    if trials[0].bits:
        assert f"{trials[0].bits} bits an image" in about
        assert f"where plain has {100 * AVERAGES['plain-layer1'].accuracy:.1f} %" in about


def test_figures_of_all_images_are_those_of_their_result_file():
    large = {average.case: average for average in LARGE.averages}
    private, plain = large[PRESETS["private"].case], large[PRESETS["plain"].case]
    said = f"SSIM {private.all_looks:.3f}".replace("0.", ".") + " of all looks joined"
    assert f"{LARGE.settings.images:,} images, {LARGE.settings.epochs} epochs: {said}" in PRESETS["private"].about
    assert (
        f"accuracy {100 * private.accuracy:.1f} %, where plain has {100 * plain.accuracy:.1f} %"
        in PRESETS["private"].about
    )
