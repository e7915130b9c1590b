"""The measurement: a reference is trained and lightened, its rivals are made, and all are measured in turns."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from psl_flower.config import RunConfig
from psl_flower.errors import RunError
from psl_flower.inference.evaluation import stores_of
from psl_flower.inference.trained_model import load_assembled
from psl_flower.launch.environment import environment
from psl_flower.lightening.artefacts import WHOLE_FILE, check_packages
from psl_flower.lightening.settings import LighteningSettings
from psl_flower.lightening.training import LocalTrainer, epochs_of_run
from psl_flower.runs.folder import RunFolder
from psl_flower.system.devices import choose_device
from simulations import settings as common
from simulations.lightening.judge import Artefact, Judge
from simulations.lightening.reference import trained
from simulations.lightening.results import CUT, TAUGHT, Model, Options, Report, Settings
from simulations.lightening.rivals import Rivals
from simulations.machine import circumstances
from simulations.progress import Progress

# Keys that the benchmark decides, each with the option that asks for it; empty where there is none.
DECIDED = {
    **{key: option for key, option in common.DECIDED.items() if "threads" not in key},
    "rounds": "--epochs", "steps-per-round": "--epochs", "workspace": "--workspace",
}  # fmt: skip


def run(config: RunConfig, options: Options, workspace: Path, progress: Progress) -> Report:
    """Measure and return the report.

    Parameters
    ----------
    config : RunConfig
        Of the reference's run.
    options : Options
        What is asked for.
    workspace : Path
        Of run and models; what is there from the same settings is used again.
    progress : Progress
        Told how it goes.

    Raises
    ------
    PslError
        If the dataset cannot be used, or training or lightening fails.
    """
    check_packages()
    began, started = circumstances(), time.monotonic()
    reference = trained(config, options.engine, workspace.absolute(), progress)
    assembled = load_assembled(reference, choose_device("auto"))
    stores = stores_of(reference, assembled, progress.ingesting)
    with contextlib.ExitStack() as closing:
        opened = [
            closing.enter_context(contextlib.closing(stores.open(m))) for m in range(stores.description.num_uppers)
        ]
        school = LocalTrainer(
            config=assembled.config, stores=stores, opened=opened, device=assembled.device, progress=progress.step
        )
        judge = Judge(assembled.config, stores, options.threads, options.batch)
        rivals = Rivals(assembled.net.cpu(), school)
        progress.trial("speed of the reference")
        plain, direct = (judge.speed_of(path).images_per_s for path in rivals.reference_files(reference.path / "light"))
        # As fast as the directly quantised reference, too: what is slower would not compare with it.
        min_speed = max(options.speedup * plain, direct)
        progress.result(f"to exceed: {min_speed:.0f} images/s")
        told = _lighten(reference, options, min_speed)
        settings = _settings(Path(told["folder"]))
        artefacts = [
            Artefact(
                name=entry["what"],
                degree=entry["degree"],
                path=Path(told["folder"]) / entry["what"] / WHOLE_FILE,
                parameters=entry["judged"]["parameters"],
                multiply_adds=entry["judged"]["multiply_adds"],
                train_s=entry["seconds"],
            )
            for entry in told["judged"]
        ]
        progress.trial("rivals")
        artefacts += rivals.at_degree(told["best_degree"], settings, Path(told["folder"]) / "rivals", (CUT, TAUGHT))
        models = _measured(judge, artefacts, options.repetitions, progress)
    return Report(
        **began,
        settings=Settings(
            **msgspec.structs.asdict(options),
            config=common.without(config, DECIDED),
            train_images=len(stores.description.samples_of("train")),
            test_images=len(stores.description.samples_of("test")),
            epochs=epochs_of_run(assembled.config, stores.description),
            lightening=msgspec.to_builtins(settings),
        ),
        min_speed=min_speed,
        end=f"{told['end']}: {told['reason']}",
        found=next(a.name for a in artefacts if a.degree == told["best_degree"]),
        satisfied=told["third"] is not None,
        measurements=models,
        seconds=time.monotonic() - started,
    )


def _lighten(reference: RunFolder, options: Options, min_speed: float) -> dict[str, Any]:
    """Call `psl lighten` as a user does; return what it reports. Conditions that cannot be met are no error."""
    command = [
        sys.executable, "-m", "psl_flower.cli.main", "lighten", reference.name, "--local", "--json",
        "--workspace", str(reference.path.parents[1]), "--max-drop", str(options.max_drop),
        "--min-speed", f"{min_speed:.6g}", "--threads", str(options.threads), "--batch", str(options.batch),
        *shlex.split(options.lighten),
    ]  # fmt: skip
    done = subprocess.run(command, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    try:
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise RunError(f"psl lighten has failed with exit status {done.returncode}; it said why") from None
    return told


def _settings(folder: Path) -> LighteningSettings:
    found = json.loads((folder / "settings.json").read_text("utf-8"))["settings"]
    return msgspec.convert(found, LighteningSettings)


def _measured(judge: Judge, artefacts: list[Artefact], repetitions: int, progress: Progress) -> tuple[Model, ...]:
    right = {}
    progress.trial("accuracy")
    for number, artefact in enumerate(artefacts, start=1):
        right[artefact.name] = judge.right(artefact.path)
        progress.step(artefact.name, number, len(artefacts))
    progress.trial("speed")
    speeds = judge.in_turns(artefacts, repetitions, lambda turn: progress.step("turns", turn, repetitions))
    return tuple(artefact.measured(right[artefact.name], speeds, artefacts[0].name) for artefact in artefacts)
