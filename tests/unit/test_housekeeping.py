"""Disk space of runs: sizes, pruned checkpoints, removed runs; and runs named in one way."""

import json
import os

import pytest
from tiny_run import make_run

from psl_flower.cli.main import main
from psl_flower.config import RunConfig
from psl_flower.runs.folder import RunFolder, Status, create_run, this_process
from psl_flower.runs.housekeeping import size_of


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PSL_WORKSPACE", str(tmp_path))
    made = []
    for number, name in enumerate(("first", "second")):
        run = create_run(tmp_path, name, "digits")
        run.write_config(RunConfig())
        run.write_status(Status(state="completed", step=4, total_steps=4))
        (run.path / "model").mkdir()
        (run.path / "model" / "model.safetensors").write_bytes(b"x" * 2_000_000)
        for step in (2, 3, 4):
            run.checkpoints.save(step, {"step": step})
            for party in ("upper-000", "upper-001", "adaptation"):
                place = run.nodes / party / f"step-{step + (party == 'upper-001'):08d}.pt"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(b"x" * 100)
        os.utime(run.path / "config.toml", (number + 1, number + 1))
        made.append(run)
    return made


def steps(run: RunFolder) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for path in sorted(run.path.rglob("step-*.pt")):
        found.setdefault(path.parent.name, []).append(int(path.stem[5:]))
    return found


def psl(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def test_the_newest_checkpoint_of_every_party_stays(runs, capsys):
    first, second = runs
    before = steps(first)
    size = size_of(second.path)
    status, out, err = psl(capsys, "prune", "--json")
    report = json.loads(out)
    assert (status, err, list(report["runs"])) == (0, "", ["second"])
    # A party that is a step ahead, since the server had not yet committed it, keeps both.
    assert steps(second) == {"checkpoints": [4], "upper-000": [4], "upper-001": [4, 5], "adaptation": [4]}
    assert size - size_of(second.path) == report["bytes"] > 600
    assert steps(first) == before
    assert psl(capsys, "prune", "first", "--keep", 2)[0] == 0
    assert steps(first)["checkpoints"] == [3, 4]
    assert psl(capsys, "prune", "--all")[1].splitlines()[-1].startswith("2 runs: ")
    assert steps(first)["checkpoints"] == [4]
    assert psl(capsys, "prune", "--all", "first")[0] == 2


def test_a_run_without_checkpoints_of_the_server_keeps_those_of_its_nodes(runs, capsys):
    first, _ = runs
    for path in (first.path / "checkpoints").iterdir():
        path.unlink()
    before = steps(first)
    assert psl(capsys, "prune", "--run", "first")[1] == "first: nothing to prune: it has no older checkpoints\n"
    assert steps(first) == before


@pytest.mark.parametrize("command", ["rm", "prune"])
def test_a_run_that_goes_on_is_left_alone(runs, capsys, command):
    first, second = runs
    second.write_status(Status(state="training", process=this_process()))
    before = steps(second), steps(first)
    status, _, err = psl(capsys, command, "first", "second")
    assert status == 1 and "run second: is training" in err and "touch" in err
    if command == "rm":
        assert (steps(second), steps(first)) == before
    assert steps(second) == before[0]


def test_runs_are_removed_with_all_that_they_wrote(runs, capsys, tmp_path):
    first, second = runs
    assert psl(capsys, "rm", "never")[0] == 1
    assert psl(capsys, "rm")[0] == 2
    status, out, _ = psl(capsys, "rm", "first", "second")
    assert status == 0 and not first.path.exists() and not second.path.exists()
    assert out.splitlines()[-1].startswith("2 runs: ")
    assert tmp_path.is_dir()
    status, _, err = psl(capsys, "prune")
    assert status == 1 and "there are no runs yet" in err


def test_sizes_are_listed(runs, capsys):
    _, out, _ = psl(capsys, "runs")
    assert "size" in out.splitlines()[0] and " MB " in out.splitlines()[1]
    report = json.loads(psl(capsys, "runs", "--json")[1])
    assert [run["bytes"] for run in report["runs"]] == [size_of(run.path) for run in runs]


def test_a_run_is_named_by_position_or_option(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PSL_WORKSPACE", str(tmp_path))
    for number, name in enumerate(("first", "second")):
        run, _ = make_run(tmp_path, name)
        os.utime(run.path / "config.toml", (number + 1, number + 1))
    for arguments in (["first"], ["--run", "first"], ["first", "--run", "first"]):
        assert json.loads(psl(capsys, "evaluate", *arguments, "--json")[1])["run"] == "first"
    assert json.loads(psl(capsys, "evaluate", "--json")[1])["run"] == "second"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("psl train batch-", ["batch-size="]),
        ("psl train assignment=", ["assignment=scatter", "assignment=round-robin"]),
        ("psl train flip=t", ["flip=true"]),
        ("psl evaluate --run fi", ["first"]),
        ("psl rm ", ["second", "first"]),
        ("psl pru", ["prune"]),
    ],
)
def test_a_shell_completes(runs, capsys, monkeypatch, line, found):
    monkeypatch.setenv("_PSL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
    status, out, _ = psl(capsys)
    assert (status, out.split()) == (0, found)


@pytest.mark.parametrize("command", ["train", "predict", "rm"])
def test_short_help_explains_the_arguments(capsys, command):
    status, out, _ = psl(capsys, command, "-h")
    assert status == 0
    (line,) = [line for line in out.split("Arguments:")[1].splitlines() if line.startswith("  [") or "RUN" in line][:1]
    assert len(line.split()) > 2
