"""The folder of a lightening: <run>/light/<id>/, where <id> stands for the settings, the model and the machine.

- settings.json: what the id stands for
- log.jsonl: one object for everything that was judged, `LogEntry`, in time order
- first/, first-int8/, second/, degree-NNN/, degree-NNN-float32/: checkpoints of training, and the ONNX files of
  `artefacts`; see `names`
- third/: the files of the light model that was chosen
- report.md, pareto.png, pareto.svg: see `psl_flower.lightening.report`

<run>/light/in-place names the lightening whose third model is in place on the nodes, to predict with.

Thresholds are not part of the id: what was measured is used again under others. What was judged under other settings,
or on another machine, is in another folder.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import msgspec

from psl_flower.engine.build import OnnxInference
from psl_flower.errors import RunError
from psl_flower.lightening.artefacts import LOWER_FILE, WHOLE_FILE, upper_file
from psl_flower.lightening.judging import Speed
from psl_flower.lightening.names import degree_name
from psl_flower.lightening.on_node import IN_PLACE
from psl_flower.lightening.search import Attempt, Conditions, Judgement
from psl_flower.lightening.settings import LighteningSettings
from psl_flower.runs.folder import MODEL_FILE, RunFolder
from psl_flower.system.files import disk_errors, read_file, write_file
from psl_flower.system.machine import processor
from psl_flower.system.records import append_record, read_records

FOLDER = "light"
THIRD = "third"
_LOG, _SETTINGS, _IN_PLACE_FILE = "log.jsonl", "settings.json", "in-place"
# Change it with anything that changes what the same settings give.
_VERSION = 2


class LogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One judged model, as the log has it."""

    what: str  #: See `psl_flower.lightening.names`.
    judged: Judgement
    degree: int | None = None  #: Of lightening; None for models outside the loop.
    #: The loop's verdict, and under which conditions; empty for models outside the loop.
    verdict: str = ""
    conditions: str = ""
    #: As speed was measured.
    threads: int
    batch: int
    seconds: float = 0.0  #: Duration of training and judging.
    at: float = 0.0  #: Unix time.
    #: Number of the comparison in which its speed was measured in turns with all others; 0: by itself.
    compared: int = 0


class LighteningFolder:
    """The files of one lightening of a run, in this process or over the federation; creates the folder.

    Raises
    ------
    RunError
        If the run has no model, the disk refuses or the log is damaged.
    """

    def __init__(self, run: RunFolder, settings: LighteningSettings, *, federated: bool = False) -> None:
        self._settings = settings
        identity = {
            "version": _VERSION,
            "settings": asdict(settings),
            "federated": federated,
            "model": _digest(run),
            "machine": f"{platform.node()} {platform.machine()} {processor()}",
        }
        encoded = msgspec.json.encode(identity, order="sorted")
        self.path = run.path / FOLDER / hashlib.sha256(encoded).hexdigest()[:10]
        write_file(self.path / _SETTINGS, msgspec.json.format(encoded), RunError, parents=True)
        self.entries = self._read()

    @property
    def target(self) -> str:
        """Where speed is measured; see `LighteningSettings`."""
        return self._settings.target

    def place(self, what: str) -> Path:
        """Return the folder of one model."""
        return self.path / what

    def judged(self, what: str) -> Judgement | None:
        """Return a model's earlier measurement; None without one, or if its file is gone."""
        if not (self.place(what) / WHOLE_FILE).is_file():
            return None
        found = [entry.judged for entry in self.entries if entry.what == what]
        return found[-1] if found else None

    def at_hand(self) -> dict[str, Judgement]:
        """Return the newest measurement of every model whose files exist, by its name."""
        found = {entry.what: self.judged(entry.what) for entry in self.entries}
        return {what: judged for what, judged in found.items() if judged is not None}

    def note(self, what: str, judged: Judgement, seconds: float) -> None:
        """Log a model outside the loop."""
        self._append(self._entry(what, judged, seconds))

    def are_compared(self) -> bool:
        """Return True if the speeds of all models were measured in turns."""
        numbers = {self._newest(what).compared for what in self.at_hand()}
        return len(numbers) == 1 and 0 not in numbers

    def note_speeds(self, speeds: Mapping[str, Speed]) -> None:
        """Log the speeds of models that were measured in turns."""
        number = 1 + max(entry.compared for entry in self.entries)
        for what, speed in speeds.items():
            newest = self._newest(what)
            judged = msgspec.structs.replace(newest.judged, **asdict(speed))
            self._append(msgspec.structs.replace(newest, judged=judged, compared=number))

    def _newest(self, what: str) -> LogEntry:
        return next(entry for entry in reversed(self.entries) if entry.what == what)

    def note_attempt(self, attempt: Attempt, conditions: Conditions, seconds: float) -> None:
        """Log an attempt; one that was judged before is logged again only if the verdict is another one."""
        entry = msgspec.structs.replace(
            self._entry(degree_name(attempt.degree), attempt.judged, seconds),
            degree=attempt.degree,
            verdict=str(attempt.verdict),
            conditions=conditions.text(),
        )
        compared = [old.compared for old in self.entries if (old.what, old.judged) == (entry.what, entry.judged)]
        entry = msgspec.structs.replace(entry, compared=max(compared, default=0))
        same = ("what", "judged", "verdict", "conditions")
        if not any(all(getattr(old, name) == getattr(entry, name) for name in same) for old in self.entries):
            self._append(entry)

    def keep_third(self, what: str) -> Path:
        """Copy the files of a model to third/ and return that folder."""
        source, target = self.place(what), self.place(THIRD)
        with disk_errors(target, "written", RunError):
            if target.exists():
                shutil.rmtree(target)
            target.mkdir()
            for path in sorted(source.glob("*.onnx")):
                shutil.copy2(path, target)
        return target

    def mark_in_place(self) -> None:
        """Record that all nodes have the third model; raises RunError if the disk refuses."""
        write_file(self.path.parent / _IN_PLACE_FILE, self.path.name.encode(), RunError)

    def _entry(self, what: str, judged: Judgement, seconds: float) -> LogEntry:
        threads, batch = self._settings.threads, self._settings.batch
        return LogEntry(what=what, judged=judged, threads=threads, batch=batch, seconds=seconds)

    def _append(self, entry: LogEntry) -> None:
        entry = msgspec.structs.replace(entry, at=time.time())
        append_record(self.path / _LOG, entry, RunError)
        self.entries.append(entry)

    def _read(self) -> list[LogEntry]:
        return read_records(self.path / _LOG, LogEntry, RunError, f"remove {self.path} to start over")


class LightModel(NamedTuple):
    """A light model in place on the nodes."""

    lower: Path  #: The Lower's file.
    uppers: OnnxInference  #: The Uppers' files, as named to nodes.
    part: str  #: Of the lightening; see `NodeTask.part`.


def light_model(run: RunFolder, num_uppers: int) -> LightModel:
    """Return the light model of a run that is in place on the nodes.

    Raises
    ------
    RunError
        If no light model is in place, or its files are gone.
    """
    try:
        name = (run.path / FOLDER / _IN_PLACE_FILE).read_text("ascii")
    except (OSError, UnicodeDecodeError):
        raise RunError(f"{run.path}: no light model is in place; find one with: psl lighten {run.name}") from None
    third = run.path / FOLDER / name / THIRD
    return LightModel(third / LOWER_FILE, onnx_inference(third, num_uppers), f"{name}/{IN_PLACE}")


def onnx_inference(folder: Path, num_uppers: int) -> OnnxInference:
    """Return a prediction by the Uppers' files in a folder; raises RunError if one cannot be read."""
    return OnnxInference(
        digests={m: hashlib.sha256(file).hexdigest() for m, file in enumerate(files_in(folder, num_uppers))}
    )


def files_in(folder: Path, num_uppers: int) -> list[bytes]:
    """Return the Uppers' files in a folder; raises RunError if one cannot be read."""
    return [read_file(folder / upper_file(m), RunError) for m in range(num_uppers)]


def _digest(run: RunFolder) -> str:
    path = run.model / MODEL_FILE
    if not run.has_model:
        again = f"psl train resume={run.name}"
        raise RunError(f"{path}: run {run.name} has no model yet; to let it end, or collect it: {again}")
    return hashlib.sha256(read_file(path, RunError)).hexdigest()
