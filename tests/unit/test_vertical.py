"""The study of vertical learning: what it reports, that trainings are kept, and one small run of both apps."""

import pytest

from simulations import page, reports
from simulations.vertical import __main__ as command
from simulations.vertical.results import BY_ROUNDS, HERE, Options, Report, Trial


def trial(method=HERE, how="stream transport", passes=2, steps=26):
    return Trial(
        method=method, how=how, passes=passes, steps=steps, auc=0.987, seconds=2.6, bytes_up=2_000_000,
        bytes_down=1_000_000,
    )  # fmt: skip


def report(*trials, **options):
    return Report(
        date="2026-01-02T03:04:05Z",
        machine={"cpu": "A CPU", "cores": 2, "memory_bytes": 2**33, "gpus": 0, "system": "Linux", "load_before": 0.1},
        versions={"python": "3.11.7"},
        settings=Options(**options),
        measurements=trials,
    )


def test_the_page_has_a_section_of_its_own():
    text = page.render({"vertical.json": report(trial(), trial(BY_ROUNDS, "lr 0.1", 1000, 1000), rounds=500)})
    assert "| examples/tabular, stream transport | 2 | 26 | 98.7 | 2.6 | 100 | 2.00 | 1.00 |" in text
    assert "| a Flower round per step, lr 0.1 | 1000 | 1,000 | 98.7 | 2.6 | 3 | 2.00 | 1.00 |" in text
    assert "python -m simulations.vertical" in text
    assert "--rounds 500" in text


def test_trainings_that_are_there_are_not_made_again(tmp_path, monkeypatch):
    out = tmp_path / "vertical.json"
    there = [trial(), trial(BY_ROUNDS, "lr 0.1", 10, 10), trial(BY_ROUNDS, "lr 0.1", 100, 100)]
    reports.save(out, report(*there, transports=("stream",), lrs=(0.1,), rounds=100))
    monkeypatch.setattr(command, "_run", None)
    asked = ["--transports", "stream", "--lrs", "0.1", "--rounds", "100", "--out", str(out)]
    assert command.main(asked) == 0
    assert reports.load(out, Report).measurements == tuple(there)


@pytest.mark.slow
def test_both_apps_learn(tmp_path):
    out = tmp_path / "vertical.json"
    asked = ["--epochs", "2", "--transports", "stream", "--lrs", "0.1", "--rounds", "20", "--out", str(out)]
    assert command.main(asked) == 0
    here, early, late = reports.load(out, Report).measurements
    assert (here.passes, here.steps, here.auc > 0.9) == (2, 26, True)
    assert (early.steps, late.steps) == (2, 20)
    assert late.auc > 0.8
    # All rows' outputs from three parties, with the messages that start their processes; gradients, one round fewer.
    assert late.bytes_up == 21 * 3 * 569 * 16 * 4
    assert late.bytes_down == 20 * 3 * 569 * 16 * 4
