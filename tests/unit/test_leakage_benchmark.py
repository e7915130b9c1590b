"""The benchmark of what codes give away: its trials, that they are kept, and what it says."""

import pytest

from simulations import leakage, reports
from simulations.leakage import CASES, Report

SMALL = [
    "--images", "128", "--test-images", "40", "--epochs", "2", "--victims", "10", "--auxiliary", "40", "--decoder-epochs", "1",
    "--width", "8", "--cases", "code16-layer4,plain-layer4",
]  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    out = tmp_path_factory.mktemp("leakage") / "leakage.json"
    assert leakage.main([*SMALL, "--out", str(out)]) == 0
    return out, reports.load(out, Report)


def test_trials_are_measured(measured):
    _, report = measured
    code, plain = report.measurements
    assert (code.case, plain.case) == ("code16-layer4", "plain-layer4")
    # 64 signs an image; 4 patches of one number for each of 64 channels, in bfloat16.
    assert (code.bits, code.bytes_up, code.bytes_down) == (64, 8, 4 * 16 * 2)
    assert (plain.bits, plain.bytes_up, plain.bytes_down) == (None, 4 * 64 * 2, 4 * 64 * 2)
    assert 0 <= code.accuracy <= 1
    assert len(code.one_look) == len(code.all_looks) == 2
    assert not plain.all_looks, "numbers are attacked in one look"
    (floor,) = report.floors
    assert {finding.knows for finding in floor.findings} == {"class", "nothing"}


def test_finished_trials_are_kept(measured, capsys):
    out, report = measured
    assert leakage.main([*SMALL, "--out", str(out), "--json"]) == 0
    assert reports.load(out, Report) == report
    assert "python -m simulations.leakage" in report.command and "--images 128" in report.command
    shown = "\n".join(cell for _, rows in report.tables for row in rows for cell in row)
    assert "code16-layer4" in shown and "mean image" in shown
    capsys.readouterr()
    assert leakage.main([*SMALL[:-1], "plain-layer9", "--out", str(out)]) == 2
    assert "plain-layer1" in CASES
