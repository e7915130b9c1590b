"""The command and its measurement: a reference is trained and lightened, and measured in turns with its rivals."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from psl_flower.config import RunConfig
from psl_flower.errors import RunError
from psl_flower.inference.evaluation import stores_of
from psl_flower.inference.trained_model import load_trained_model
from psl_flower.launch.environment import environment
from psl_flower.lightening.artefacts import WHOLE_FILE, check_packages
from psl_flower.lightening.settings import LighteningSettings
from psl_flower.lightening.training import LocalTrainer
from psl_flower.runs.folder import RunFolder
from psl_flower.system.devices import choose_device
from simulations import settings as common
from simulations.command_line import ReportBenchmark, Workspace
from simulations.lightening.judge import Artefact, Judge
from simulations.lightening.reference import trained
from simulations.lightening.results import CUT, DEFAULTS, TAUGHT, Model, Options, Report, Settings
from simulations.lightening.rivals import Rivals
from simulations.machine import circumstances
from simulations.progress import Progress

# Keys that the benchmark decides, each with the option that asks for it, if any.
DECIDED = {
    **common.DECIDED_BUT_THREADS,
    "rounds": "--epochs", "steps-per-round": "--epochs", "workspace": "--workspace",
}  # fmt: skip


class Lightening(ReportBenchmark[Options]):
    """The benchmark."""

    name, options, decided, defaults = "lightening", Options, DECIDED, DEFAULTS
    about = "Train a reference, lighten it by `psl lighten --local`, and measure all models in turns."

    def make_parser(self) -> argparse.ArgumentParser:
        """Return the parser of the command's arguments."""
        parser = super().make_parser()
        text = "keep run and models in this workspace; rerun, the command reuses what is finished"
        parser.add_argument("--workspace", type=Path, metavar="FOLDER", help=text)
        return parser

    def settings_of(self, options: Options) -> Mapping[str, object]:
        """Return the settings that follow from the options."""
        return {"rounds": options.epochs}

    def measure(self, config: RunConfig, options: Options, workspace: Workspace, progress: Progress) -> Report:
        """Measure and return the report."""
        check_packages()
        began, started = circumstances(), time.monotonic()
        reference = trained(config, options.engine, workspace.path.absolute(), progress)
        assembled = load_trained_model(reference, choose_device("auto"))
        stores = stores_of(reference, assembled, progress.ingesting)
        with stores.opened() as opened:
            trainer = LocalTrainer(
                config=assembled.config, stores=stores, opened=opened, device=assembled.device, progress=progress.step
            )
            judge = Judge(assembled.config, stores, options.threads, options.batch)
            rivals = Rivals(assembled.net.cpu(), trainer)
            progress.trial("speed of the reference")
            plain, direct = (
                judge.speed_of(path).images_per_s for path in rivals.reference_files(reference.path / "light")
            )
            # At least as fast as the directly quantised reference, else they would not compare.
            min_speed = max(options.speedup * plain, direct)
            progress.result(f"to exceed: {min_speed:.0f} images/s")
            answer = _lighten(reference, options, min_speed)
            settings = _settings(Path(answer["folder"]))
            artefacts = _artefacts(answer)
            progress.trial("rivals")
            found = next(artefact for artefact in artefacts if artefact.name == answer["closest"])
            assert found.degree is not None
            artefacts += rivals.at_degree(found.degree, settings, Path(answer["folder"]) / "rivals", (CUT, TAUGHT))
            models = _measured(judge, artefacts, options.repetitions, progress)
        return Report(
            **began,
            settings=Settings(
                **asdict(options),
                config=common.without(config, DECIDED),
                train_images=len(stores.description.samples_of("train")),
                test_images=len(stores.description.samples_of("test")),
                lightening=msgspec.to_builtins(settings),
            ),
            min_speed=min_speed,
            end=f"{answer['end']}: {answer['reason']}",
            found=found.name,
            measurements=models,
            seconds=time.monotonic() - started,
        )


def _artefacts(answer: Mapping[str, Any]) -> list[Artefact]:
    """Return the models that `psl lighten` has judged."""
    return [
        Artefact(
            name=entry["what"],
            degree=entry["degree"],
            path=Path(answer["folder"]) / entry["what"] / WHOLE_FILE,
            parameters=entry["judged"]["parameters"],
            multiply_adds=entry["judged"]["multiply_adds"],
            train_s=entry["seconds"],
        )
        for entry in answer["judged"]
    ]


def _lighten(reference: RunFolder, options: Options, min_speed: float) -> dict[str, Any]:
    """Call `psl lighten` as a user does; return what it reports. Conditions that cannot be met are no error."""
    command = [
        sys.executable, "-m", "psl_flower.cli.main", "lighten", reference.name, "--local", "--json",
        "--workspace", str(reference.path.parents[1]), "--max-drop", str(options.max_drop),
        "--min-speed", f"{min_speed:.6g}", "--threads", str(options.threads), "--batch", str(options.batch),
        *shlex.split(options.lighten), "--method", "loop",
    ]  # fmt: skip
    done = subprocess.run(command, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise RunError(f"psl lighten has failed with exit status {done.returncode}; it said why") from None
    return answer


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


BENCHMARK = Lightening()

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
