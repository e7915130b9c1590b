"""The benchmark of reading: its trials, that they are kept, and what it says."""

import sys

from simulations import reading, reports
from simulations.reading import Report
from tests.paths import ROOT

SMALL = ["--small", "40", "--large", "20", "--repetitions", "1"]


def test_readings_are_kept(tmp_path, capsys):
    out = tmp_path / "reading.json"
    arguments = [*SMALL, "--other", sys.executable, "--out", str(out)]
    assert reading.main(arguments) == 0
    report = reports.load(out, Report)
    assert [(t.data, t.installation, t.images) for t in report.measurements] == [
        (data, installation, count)
        for data, count in (
            ("small PNG, folders by class", 40),
            ("JPEG, folders by class", 20),
            ("small PNG, parquet", 40),
        )
        for installation in ("this", "other")
    ]
    assert all(trial.read_s > 0 and trial.open_s > 0 for trial in report.measurements)
    assert reading.main([*arguments, "--json"]) == 0
    assert reports.load(out, Report).measurements == report.measurements, "nothing is read again"
    assert "python -m simulations.reading" in report.command and "--small 40" in report.command
    capsys.readouterr()
    assert reading.main([*SMALL, "--other", str(tmp_path / "none")]) == 1
    assert (ROOT / "simulations" / "reading.py").exists()


def test_no_older_installation(tmp_path, capsys):
    assert reading.main([*SMALL]) == 0
    assert "images a second" in " ".join(capsys.readouterr().out.split())
