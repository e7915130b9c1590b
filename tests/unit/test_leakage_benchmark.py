"""The benchmark of what codes give away: its trials, that they are kept, and what it says."""

import pytest

from simulations import page, reports
from simulations.leakage import __main__ as leakage
from simulations.leakage.cases import CASES
from simulations.leakage.results import Report

SMALL = [
    "--images", "128", "--test-images", "40", "--epochs", "2", "--victims", "10", "--auxiliary", "40", "--decoder-epochs", "1",
    "--width", "8", "--cases", "plain-layer1,code16-layer4", "--levels", "query,weights,unpaired",
]  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    out = tmp_path_factory.mktemp("leakage") / "leakage.json"
    assert leakage.main([*SMALL, "--out", str(out)]) == 0
    return out, reports.load(out, Report)


def test_trials_are_measured(measured):
    _, report = measured
    plain, code = report.measurements
    assert (plain.case, code.case) == ("plain-layer1", "code16-layer4")
    # 64 signs an image; 4 patches of 8 channels of 8x8 numbers, in bfloat16.
    assert (code.bits, code.bytes_up, code.bytes_down) == (64, 8, 4 * 16 * 2)
    assert (plain.bits, plain.bytes_up, plain.bytes_down) == (None, 4 * 512 * 2, 4 * 512 * 2)
    assert 0 <= code.accuracy <= 1
    for trial in report.measurements:
        assert [f.level for f in trial.one_look] == ["query", "query", "weights", "unpaired", "unpaired"]
        # Two epochs, and the finished network.
        assert trial.looks == 3
        assert [(f.level, f.looks) for f in trial.all_looks] == [("query", 3)] * 4
    (floor,) = report.floors
    assert {finding.knows for finding in floor.findings} == {"class", "logits", "nothing"}
    assert report.missing == []
    lost = {one.case: one.lost for one in report.averages}
    # What joins looks stands by itself, not beside the better of one look.
    joined = [max(trial.all_looks, key=lambda found: found.validation_ssim).ssim.mean for trial in report.measurements]
    assert [one.all_looks for one in report.averages] == joined
    assert lost == {"plain-layer1": 0, "code16-layer4": pytest.approx(100 * (plain.accuracy - code.accuracy))}


@pytest.mark.parametrize("name", ["accuracy-by-ssim", "accuracy-by-bytes"])
def test_the_frontier_is_drawn(measured, name):
    _, report = measured
    assert page.draw(report, name, "here").startswith(b"\x89PNG")


def test_what_is_missing_is_said(measured):
    import msgspec

    _, report = measured
    partial = msgspec.structs.replace(report, measurements=report.measurements[:1])
    assert partial.missing == [("code16-layer4", 0)]
    assert "1 of 2 trials still missing" in partial.title


def test_finished_trials_are_kept(measured, capsys):
    out, report = measured
    assert leakage.main([*SMALL, "--out", str(out), "--json"]) == 0
    assert reports.load(out, Report) == report
    assert "python -m simulations.leakage" in report.command and "--images 128" in report.command
    shown = "\n".join(cell for _, rows in report.tables for row in rows for cell in row)
    assert "code16-layer4" in shown and "mean image" in shown
    capsys.readouterr()
    assert leakage.main([*SMALL, "--cases", "plain-layer9", "--out", str(out)]) == 2
    assert "plain-layer1" in CASES
