"""The command and its measurement: two Flower apps over the same data and models, one after the other."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from psl_flower.errors import RunError
from psl_flower.launch.running import app_folder
from psl_flower.launch.superlink import LocalSuperLink
from simulations import kept
from simulations.kept import Study
from simulations.vertical.results import BY_ROUNDS, HERE, Options, Report, Trial
from simulations.watching import wait_until

_PARTIES = 3
_FEDERATION = {"num-supernodes": _PARTIES, "client-resources-num-cpus": 1, "init-args-num-cpus": _PARTIES}
# Points of a training by rounds that are reported, as shares of its rounds.
_POINTS = 10
_START_S, _TIMEOUT_S = 120.0, 3600.0


def _measure(study: Study[Options, Report]) -> None:
    options, progress = study.options, study.progress
    done = {(trial.method, trial.how) for trial in study.report.measurements}
    for transport in options.transports:
        if (HERE, f"{transport} transport") not in done:
            progress.trial(f"{HERE}, {transport}")
            study.keep(_here(study.folder / transport, options, transport))
    for lr in options.lrs:
        if (BY_ROUNDS, f"lr {lr:g}") not in done:
            progress.trial(f"{BY_ROUNDS}, lr {lr:g}")
            study.keep(*_by_rounds(study.folder / f"lr-{lr:g}", options, lr))


def _here(folder: Path, options: Options, transport: str) -> Trial:
    """Train the example, as it is."""
    config = {"epochs": options.epochs, "workdir": str(folder), "transport": transport}
    _run(app_folder() / "examples" / "tabular", config)
    records = list(_lines(folder / "rounds.jsonl"))
    seconds = sum(record["seconds"] for record in records)
    return _trial(HERE, f"{transport} transport", records[-1] | {"seconds": seconds}, records[-1]["step"])


def _by_rounds(folder: Path, options: Options, lr: float) -> list[Trial]:
    """Train the opponent; return a tenth of its rounds and all of them."""
    app, log = folder / "app", folder / "log.jsonl"
    shutil.copytree(Path(__file__).parent / "opponent", app, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(app_folder() / "examples" / "tabular" / "tabular.py", app)
    every = max(1, options.rounds // _POINTS)
    _run(app, {"rounds": options.rounds, "every": every, "lr": lr, "log": str(log)})
    lines = list(_lines(log))
    return [_trial(BY_ROUNDS, f"lr {lr:g}", line, line["round"]) for line in (lines[0], lines[-1])]


def _trial(method: str, how: str, line: Mapping[str, Any], steps: int) -> Trial:
    """Return a trial by a line of its log."""
    told = {key: line[key] for key in ("auc", "seconds", "bytes_up", "bytes_down")}
    return Trial(method=method, how=how, passes=line["round"], steps=steps, **told)


def _run(app: Path, config: Mapping[str, object]) -> None:
    with LocalSuperLink() as link:
        link.wait()
        run_id = link.run(app, config, _FEDERATION)
        wait_until(link.is_running, _START_S, "the simulation to start")
        # Whether its process is there, which costs little; asking Flower starts a process each time.
        wait_until(lambda: not link.is_running(), _TIMEOUT_S, "the simulation to end")
        if not link.status(run_id).endswith("completed"):
            raise RunError(f"{app.name}: {link.status(run_id)}: {link.last_words()}")


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text("utf-8").splitlines():
        yield json.loads(line)


_ABOUT = "Train three parties with tabular data, here and by Flower rounds; with --out, finished trainings are kept."
main = kept.command("vertical", _ABOUT, Options, Report, _measure)

if __name__ == "__main__":
    sys.exit(main())
