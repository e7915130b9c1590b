"""`psl report` and `psl compare`: what a run came to, on a page and beside other runs."""

import json
import re
import shlex
import subprocess

import msgspec
import numpy as np
import pytest
from tiny_run import finish, make_run

from psl_flower.cli.main import main
from psl_flower.kinds import kind_of, parse_settings
from psl_flower.runs.folder import Status, this_process
from psl_flower.runs.page import render
from psl_flower.runs.summary import Summary


@pytest.fixture
def run(tmp_path):
    found, _ = make_run(tmp_path, lr=0.07, protection="none")
    finish(found)
    return found


def words(page):
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def test_a_report_has_what_the_run_came_to(run, tmp_path, capsys):
    assert main(["report", "tiny", "--workspace", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    page = (run.path / "report.html").read_text("utf-8")
    assert told == {"run": "tiny", "file": str(run.path / "report.html")}
    text = words(page)
    for expected in ("75.00%", "0.6500", "123 images/s", "1:00", "2.0 MB", "4.0 MB", "100.0", "lr 0.07"):
        assert expected in text, expected
    # Nothing is fetched from elsewhere, and two reports are the same file.
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert render(Summary.of(run)) == page


def test_the_matrix_and_the_surest_mistakes_are_those_of_the_predictions(run):
    summary = Summary.of(run)
    assert summary.confusion_KK.sum() == 20
    assert int(np.trace(summary.confusion_KK)) == 15
    assert [mistake.confidence for mistake in summary.worst] == sorted(
        (m.confidence for m in summary.worst), reverse=True
    )
    page = words(render(summary))
    worst = summary.worst[0]
    split, number = summary.description.split_of(worst.image)
    assert f"{split}:{number} {worst.label} {worst.predicted}" in page


def test_the_command_repeats_the_run(run):
    summary = Summary.of(run)
    program, command, *given = shlex.split(summary.command)
    assert (program, command) == ("psl", "train")
    again = kind_of(parse_settings(given)).config
    assert again == run.read_config().replace(run_name="", workspace="")


def test_names_from_a_dataset_are_text(run):
    description = run.read_description()
    named = tuple(f"<b>$x${k}</b>" for k in range(10))
    run.write_description(msgspec.structs.replace(description, class_names=named))
    page = render(Summary.of(run))
    assert "<b>" not in page
    assert "&lt;b&gt;" in page


def test_many_classes_have_no_matrix(run):
    description = run.read_description()
    run.write_description(msgspec.structs.replace(description, class_names=tuple(map(str, range(31)))))
    assert "confusion matrix is left out" in words(render(Summary.of(run)))


def test_a_run_before_its_first_round_has_no_report(tmp_path, capsys):
    run, _ = make_run(tmp_path)
    (run.path / "metrics.jsonl").unlink()
    assert main(["report", "--workspace", str(tmp_path)]) == 1
    assert "none of 1 run has completed a round yet" in capsys.readouterr().err
    assert main(["report", "tiny", "--workspace", str(tmp_path)]) == 1
    assert "has completed no round yet" in capsys.readouterr().err
    run.append_metrics({"round": 1, "step": 2, "accuracy": None, "loss": 2.0})
    assert "Loss and accuracy" in render(Summary.of(run))


def test_the_newest_run_with_a_round_is_reported(run, tmp_path, capsys):
    for name in ("second", "third"):
        started, _ = make_run(tmp_path, name)
        (started.path / "metrics.jsonl").unlink()
    assert main(["report", "--workspace", str(tmp_path), "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["run"] == "tiny"
    assert "third, second have completed no round yet; taking tiny, the newest run that has" in told.err


def test_why_a_run_failed_is_in_its_report_and_in_the_list(run, tmp_path, capsys):
    run.write_status(Status(state="failed", message="error: node cellar: disk full; continue with: x"))
    assert "State: failed: node cellar: disk full; continue with: x." in words(render(Summary.of(run)))
    assert main(["runs", "--workspace", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith("tiny failed: node cellar: disk full; continue with: x\n")
    gone = subprocess.Popen(["true"])
    gone.wait()
    host = this_process().partition(":")[0]
    run.write_status(Status(state="training", message="round 3", process=f"{host}:{gone.pid}"))
    assert main(["runs", "--workspace", str(tmp_path), "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)["runs"]
    assert listed["reason"] == "its process was killed, or the machine restarted; it was training: round 3"
    run.write_status(Status(state="completed", message="all is well"))
    assert main(["runs", "--workspace", str(tmp_path)]) == 0
    assert "all is well" not in capsys.readouterr().out


def test_runs_side_by_side(run, tmp_path, capsys):
    other, _ = make_run(tmp_path, "other", lr=0.01, average_every=4)
    finish(other, accuracy=0.5)
    assert main(["compare", "tiny", "other", "--workspace", str(tmp_path)]) == 0
    rows = {line.split("  ")[0].strip(): line.split()[-2:] for line in capsys.readouterr().out.splitlines()}
    assert rows["test accuracy"] == ["75.00%", "50.00%"]
    assert rows["lr"] == ["0.07", "0.01"]
    assert rows["average-every"] == ["0", "4"]
    assert "momentum" not in rows
    assert main(["compare", "tiny", "other", "--workspace", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["accuracy"] for row in told["runs"]] == [0.75, 0.5]
    assert told["settings"].keys() == {"lr", "average-every"}
    assert told["note"] == ""


@pytest.mark.parametrize(
    ("names", "text"), [(["tiny"], "two runs"), (["tiny", "tiny"], "named twice"), (["tiny", "nosuch"], "nosuch")]
)
def test_what_cannot_be_compared(run, tmp_path, capsys, names, text):
    assert main(["compare", *names, "--workspace", str(tmp_path)]) == 1
    assert text in capsys.readouterr().err


def test_runs_on_other_images_are_noted(run, tmp_path, capsys):
    other, _ = make_run(tmp_path, "other", max_train=30)
    finish(other)
    assert main(["compare", "tiny", "other", "--workspace", str(tmp_path)]) == 0
    assert "different images" in capsys.readouterr().out
