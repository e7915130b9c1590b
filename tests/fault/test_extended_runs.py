"""A finished run that is resumed, for as many rounds as it had or for more: the real apps, in one process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from psl_flower.cli.main import main
from psl_flower.cli.train import read_settings
from psl_flower.engine.automatic_settings import planned
from psl_flower.errors import ConfigError
from psl_flower.kinds import Resume, kind_of
from psl_flower.runs.history import Extension, extensions
from psl_flower.stores.store_set import StoreSet
from tests.fault.sealed_run import exact, train
from tests.in_process import InProcessGrid
from tests.unit.tiny_run import make_run


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def resume(nodes: InProcessGrid, workspace: Path, **settings: object) -> None:
    nodes.serve(**settings, resume="run", workspace=str(workspace))


def test_a_finished_run_says_so_and_stays_as_it_is(
    nodes: InProcessGrid, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(nodes, tmp_path)
    status = run.read_status()
    assert status is not None and status.state == "completed" and status.accuracy is not None
    before = contents(run.path)
    resume(nodes, tmp_path)
    assert main(["train", "resume=run", "--workspace", str(tmp_path)]) == 0
    assert f"run run has finished, all of its 2 rounds, test accuracy {status.accuracy:.2%}" in capsys.readouterr().out
    assert main(["train", "resume=run", "rounds=2", "--workspace", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["state"], report["accuracy"]) == ("completed", status.accuracy)
    assert contents(run.path) == before


def test_a_run_that_lost_its_status_keeps_its_figures(nodes: InProcessGrid, tmp_path: Path) -> None:
    run = train(nodes, tmp_path)
    ended = run.read_status()
    metrics = run.read_metrics()
    (run.path / "status.json").unlink()
    resume(nodes, tmp_path)
    status = run.read_status()
    assert ended is not None and status is not None
    assert (status.state, status.accuracy, run.read_metrics()) == ("completed", ended.accuracy, metrics)


def test_under_a_constant_schedule_more_rounds_are_those_of_a_longer_run(
    nodes: InProcessGrid, stores: StoreSet, tmp_path: Path
) -> None:
    run = train(nodes, tmp_path, rounds=1, schedule="constant")
    assert not exact(run, stores)  # of two rounds
    resume(nodes, tmp_path, resume_rounds=2)
    assert run.read_config().training.rounds == 2
    assert exact(run, stores)
    assert [row["round"] for row in run.read_metrics()] == [1, 2]
    assert extensions(run) == []
    assert (
        "run run: 2 rounds instead of 1; the result is that of a run that began with 2"
        in (run.path / "log.txt").read_text()
    )


def test_under_one_cycle_more_rounds_are_refused_and_may_be_insisted_on(
    nodes: InProcessGrid, stores: StoreSet, tmp_path: Path
) -> None:
    run = train(nodes, tmp_path, rounds=1)
    before = contents(run.path)
    with pytest.raises(ConfigError, match=r"schedule=one-cycle.*resume-anyway=true"):
        resume(nodes, tmp_path, resume_rounds=2)
    changed = {path.name for path, content in contents(run.path).items() if before.get(path) != content}
    assert changed <= {"status.json", "log.txt"} | {path.name for path in run.tensorboard.glob("*")}
    resume(nodes, tmp_path, resume_rounds=2, resume_anyway=True)
    assert run.read_config().training.rounds == 2 and run.read_metrics()[-1]["step"] == 6
    assert extensions(run) == [Extension(step=3, before=1, rounds=2)]
    assert not exact(run, stores)  # as it said


def test_rounds_that_the_run_chose_itself_keep_their_length(
    nodes: InProcessGrid, stores: StoreSet, tmp_path: Path
) -> None:
    run = train(nodes, tmp_path, rounds=1, schedule="constant", batch_size=0, lr=0.0)
    chosen = planned(run.read_config(), stores.description)
    assert main(["train", "resume=run", "--workspace", str(tmp_path)]) == 0  # finished
    resume(nodes, tmp_path, resume_rounds=2)
    extended = run.read_config()
    assert extended.training == replace(chosen.training, rounds=2)
    assert exact(run, stores)


def test_a_run_of_unsaid_rounds_knows_that_it_has_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = make_run(tmp_path)
    assert run.read_config().training.rounds == 0
    rounds = planned(run.read_config(), run.read_description()).training.rounds
    assert main(["train", "resume=tiny", f"rounds={rounds}", "--workspace", str(tmp_path)]) == 0
    assert f"all of its {rounds} rounds" in capsys.readouterr().out
    work = kind_of({"resume": "tiny", "resume-rounds": rounds + 1, "workspace": str(tmp_path)}).find()
    same = replace(work.config.training, rounds=rounds)
    assert same == planned(run.read_config(), run.read_description()).training


def test_fewer_rounds_than_are_done(nodes: InProcessGrid, tmp_path: Path) -> None:
    train(nodes, tmp_path, schedule="constant")
    with pytest.raises(ConfigError, match="6 steps are done of 3"):
        resume(nodes, tmp_path, resume_rounds=1)


def test_a_model_left_on_the_nodes_is_collected_when_it_is_asked_for(
    nodes: InProcessGrid, stores: StoreSet, tmp_path: Path
) -> None:
    run = train(nodes, tmp_path, collect_model=False)
    resume(nodes, tmp_path)
    assert not run.has_model  # true is the default of collect-model, so nobody may have asked
    resume(nodes, tmp_path, resume_collect=True)
    assert exact(run, stores)
    given, kind = read_settings(["resume=run", "collect-model=true", f"workspace={tmp_path}"])
    assert isinstance(kind, Resume) and kind.resume_collect and "collect-model" not in given


def test_the_number_of_rounds_that_is_the_default_counts_where_a_person_gives_it(tmp_path: Path) -> None:
    given, kind = read_settings(["resume=run", "rounds=3", f"workspace={tmp_path}"])
    assert isinstance(kind, Resume) and kind.resume_rounds == 3 and "rounds" not in given
    assert kind_of({"rounds": 3}).config.training.rounds == 3
    assert not (tmp_path / "runs").exists()
