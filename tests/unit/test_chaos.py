"""Chaos without its kills: the report, its section of the page, arguments."""

import shlex

import pytest

from simulations import page, reports
from simulations.chaos.__main__ import main, make_parser
from simulations.chaos.results import Kill, Report
from simulations.tables import show
from simulations.throughput import results as throughput
from simulations.throughput.__main__ import BENCHMARK as THROUGHPUT


def report(*, equal=True):
    kills = (
        Kill(role="node", moment="training", step=7, committed=5, lost_s=20.0),
        Kill(role="SuperLink", moment="training", step=11, committed=11, lost_s=40.0),
        Kill(role="node", moment="starting", step=0, committed=14, lost_s=30.0),
    )
    return Report(
        date="2026-01-02T03:04:05Z",
        machine={"cpu": "A CPU", "cores": 2, "memory_bytes": 2**33, "gpus": 0, "system": "Linux", "load_before": 0.1},
        versions={"python": "3.11.7", "torch": "2.14"},
        settings={"dataset": "digits", "batch-size": 16, "checkpoint-every": 3},
        seed=4,
        measurements=kills,
        kills={"node": 2, "SuperLink": 1},
        restarts=3,
        steps=18,
        steps_repeated=2,
        seconds=150.0,
        seconds_lost=90.0,
        equal=equal,
    )


def test_steps_done_again():
    # A run killed before its first step after a restart says step 0: nothing is done again.
    assert [kill.steps_repeated for kill in report().measurements] == [2, 0, 0]


def test_its_result_file_has_a_section_on_the_page(tmp_path, capsys):
    path, written = tmp_path / "chaos.json", report()
    reports.save(path, written)
    assert reports.load(path, Report) == written
    assert reports.load(path, throughput.Report) is None
    assert THROUGHPUT.main(["--page", str(path)]) == 0
    text = capsys.readouterr().out
    assert text == page.render({"chaos.json": written})
    for expected in (
        "## chaos\n\n3 kills survived, weights bit-equal to those of the undisturbed run; digits, batch 16, 18 steps; A CPU",
        "| node | 2 | 2 | 25.0 (20.0 to 30.0) |\n| SuperLink | 1 | 0 | 40.0 |",
        "1 of them while the run was beginning anew after the kill before, and `psl train --retries` recovered (3 times)",
        "2 of 18 steps were done again; 150 s in all, of which 90 s were lost by kills",
        f"    {written.command}\n",
    ):
        assert expected in text


def test_weights_that_differ_are_called_so(capsys):
    show(report(equal=False))
    shown = " ".join(capsys.readouterr().out.split())
    assert "weights DIFFERENT from those of the undisturbed run" in shown


def test_the_command_that_does_it_again():
    words = shlex.split(report().command)
    assert words[:3] == ["python", "-m", "simulations.chaos"]
    given = make_parser().parse_args(words[3:])
    assert (given.kills, given.seed, given.steps) == (3, 4, 18)


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--kills", "0"], "at least 1"), (["--steps", "x"], "whole number"), (["x"], "unrecog")]
)
def test_usage_errors_end_with_2(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_what_cannot_be_written_ends_with_1_before_anything_starts(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "absent" / "x.json")]) == 1
    assert "cannot write" in capsys.readouterr().err
