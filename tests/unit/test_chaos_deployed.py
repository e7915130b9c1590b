"""Chaos of deployed federations without the federations: plans, the report, its section of the page, result files."""

import contextlib
import random
import shlex
import sys

import msgspec

from psl_flower.flower.supernode import PROGRAMS, write_programs
from simulations import page, reports
from simulations.chaos import deployed
from simulations.chaos.__main__ import main, make_parser
from simulations.chaos.deployed_results import Kill, Report, Trial
from simulations.chaos.federation import ROLES
from simulations.chaos.trials import NODE_DISK, ONE_RUN, SERVER_DISK, TWO_RUNS, UNDISTURBED, plans
from simulations.separate_hosts.deployment import CLIENT_APP_PROGRAM
from simulations.separate_hosts.network import is_program


def kill(role, recovery_s, *, moment="training", seen="went back"):
    return Kill(
        role=role,
        host="node1",
        moment=moment,
        at_once=1 + (moment == "recovering"),
        at_s=12.0,
        step=7,
        committed=6,
        seen=seen,
        said="",
        recovery_s=recovery_s,
    )


def trial(name, kills, *, runs=1, weights="aa", failure=""):
    return Trial(
        name=name, kind=TWO_RUNS if runs == 2 else ONE_RUN, transport="stream", runs=runs, steps=12, kills=kills,
        resumed=1, errors=(), seconds=100.0, weights=(weights,) * runs, undisturbed="aa", failure=failure,
    )  # fmt: skip


def report(*more):
    kills = (
        kill("SuperNode", 60.0),
        kill("SuperNode", 80.0, moment="recovering"),
        kill("SuperLink", None, seen="resumed"),
    )
    return Report(
        date="2026-01-02T03:04:05Z",
        machine={"cpu": "A CPU", "cores": 2, "memory_bytes": 2**33, "gpus": 0, "system": "Linux", "load_before": 0.1},
        versions={"python": "3.11.7", "torch": "2.14"},
        settings={"dataset": "digits", "batch-size": 16, "checkpoint-every": 2},
        kills=200,
        kills_per_run=3,
        seed=4,
        nodes=4,
        measurements=(trial("storm-1", kills), trial("storm-2", (kill("ServerApp", 30.0),), runs=2), *more),
    )


def test_its_result_file_has_a_section_on_the_page(tmp_path):
    path, written = tmp_path / "chaos-deployed.json", report()
    reports.save(path, written)
    assert reports.load(path, Report) == written
    text = page.render({"chaos-deployed.json": written})
    for expected in (
        "## chaos-deployed\n\n4 kills of 200 asked for, 3 runs of a deployed federation with TLS to the end, weights "
        "bit-equal to those of the undisturbed network; digits, batch 16; A CPU",
        "| SuperNode | 2 | 1 | 1 | 0 | 2 | 0 | 70 (60 to 80) |\n",
        "| SuperLink | 1 | 0 | 0 | 0 | 0 | 1 | - |\n",
        "| one run | stream | 1 | 12 | 3 | 1 | 1 of 1 |\n| two runs at once | stream | 2 | 24 | 1 | 1 | 2 of 2 |\n",
        f"    {written.command}\n",
    ):
        assert expected in text


def test_other_weights_are_called_so():
    wrong = trial("storm-3", (), runs=2, weights="bb")
    assert not wrong.equal and not report(wrong).equal
    assert "weights equal in 3 of them ONLY" in report(wrong).title


def test_a_trial_that_was_given_up_is_no_success():
    stuck = trial("storm-3", (kill("ClientApp", None),), failure="no step within 900 s")
    found = report(stuck)
    assert not stuck.equal and not found.equal
    assert "3 runs of a deployed federation with TLS to the end, weights bit-equal to those of the" in found.title
    assert ", 1 trial given up; digits" in found.title
    assert "Given up: storm-3, no step within 900 s. " in found.notes


def test_the_command_that_does_it_again():
    words = shlex.split(report().command)
    given = make_parser().parse_args(words[3:])
    assert (given.deployed, given.kills, given.kills_per_run, given.seed, given.nodes) == (True, 200, 3, 4, 4)


def test_plans_spread_the_kills_over_runs_of_both_transports():
    made = plans(23, 5, seed=7)
    assert sum(plan.kills for plan in made) == 23
    assert [plan.kills for plan in made if plan.kind in (ONE_RUN, TWO_RUNS)] == [5, 5, 5, 5, 3]
    assert {plan.kind for plan in made} == {UNDISTURBED, ONE_RUN, TWO_RUNS, NODE_DISK, SERVER_DISK}
    assert {plan.transport for plan in made} == {"stream", "flower"}
    assert len({plan.name for plan in made}) == len(made)
    assert all(plan.steps % plan.steps_per_round == 0 for plan in made)
    # More of them begin in the same way, so a result file can be continued.
    more = {plan.name: plan for plan in plans(33, 5, seed=7)}
    assert [more[plan.name] for plan in made[:-1]] == made[:-1]


def test_a_file_of_other_options_is_not_continued(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(deployed, "why_not", lambda: "")
    path = tmp_path / "out.json"
    reports.save(path, report())
    assert main(["--deployed", "--kills", "4", "--out", str(path)]) == 1
    assert "was made with --kills-per-run 3 --seed 4 --nodes 4; use these, or another file" in capsys.readouterr().err
    path.write_text("{}", "utf-8")
    assert main(["--deployed", "--out", str(path)]) == 1
    assert "is the result file of something else" in capsys.readouterr().err


def done(plan, *, weights="aa", failure=""):
    return Trial(
        name=plan.name, kind=plan.kind, transport=plan.transport, runs=1, steps=plan.steps,
        kills=(kill("SuperNode", 1.0),) * plan.kills, resumed=0, errors=(), seconds=1.0, weights=(weights,),
        undisturbed="aa", failure=failure,
    )  # fmt: skip


def test_finished_trials_are_not_done_again(tmp_path, monkeypatch, capsys):
    """Weights that differ stay in the file; a trial that came to no end is done again, and what is missing."""
    monkeypatch.setattr(deployed, "why_not", lambda: "")
    attempted = []

    def attempt(federation, plan):
        attempted.append(plan.name)
        return done(plan)

    monkeypatch.setattr(deployed, "attempt", attempt)
    monkeypatch.setattr(deployed._Trials, "_federation", lambda trials: contextlib.nullcontext())
    path = tmp_path / "out.json"
    first, differs, stuck, *rest = plans(4, 1, seed=5)
    known = (done(first), done(differs, weights="bb"), done(stuck, failure="no step within 900 s"))
    reports.save(path, msgspec.structs.replace(report(), kills=4, kills_per_run=1, seed=5, measurements=known))
    arguments = ["--deployed", "--kills", "4", "--kills-per-run", "1", "--seed", "5", "--out", str(path)]
    assert main(arguments) == 1
    assert attempted == [stuck.name, *(plan.name for plan in rest)]
    assert (
        "4 kills of 4 asked for, 7 runs of a deployed federation with TLS to the end, weights equal in 6 of them ONLY"
        in " ".join(capsys.readouterr().out.split())
    )
    found = reports.load(path, Report)
    assert [trial.name for trial in found.measurements] == [plan.name for plan in plans(4, 1, seed=5)]
    assert [trial.name for trial in found.measurements if not trial.equal] == [differs.name]
    attempted.clear()
    assert main(arguments) == 1
    assert attempted == []


def test_without_namespaces_it_says_why(monkeypatch, capsys):
    monkeypatch.setattr(deployed, "why_not", lambda: "network namespaces need root")
    assert main(["--deployed"]) == 1
    assert "this machine does not allow separate hosts: network namespaces need root" in capsys.readouterr().err


def test_every_role_can_be_drawn():
    drawn = {random.Random(seed).sample(ROLES, len(ROLES))[0] for seed in range(100)}
    assert drawn == set(ROLES)


def test_client_apps_of_nodes_are_found(tmp_path):
    """Were they not known by their command line, another role would be drawn in their place, in silence."""
    program = write_programs(tmp_path / PROGRAMS) / "flwr-clientapp"
    served = next(line for line in program.read_text("utf-8").splitlines() if "client_app()" in line)
    started = shlex.split(served.replace('"$@"', "--token x"))
    assert (started[0], started[-1]) == (sys.executable, "x")
    assert is_program(started, CLIENT_APP_PROGRAM)
    assert not is_program(
        [sys.executable, str(program.with_name("flower-superexec")), "--insecure"], CLIENT_APP_PROGRAM
    )


def test_a_trial_that_the_interrupted_command_ended_itself_is_no_result(tmp_path):
    """Its network is dropped while it goes on, so its programs die."""
    path = tmp_path / "out.json"
    trials = deployed._Trials(report(), [], path, tmp_path)
    trials._stop()
    assert not trials._note(trial("storm-3", (), failure="no word, its ServerApp died"))
    assert not path.exists()
