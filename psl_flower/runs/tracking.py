"""A run's experiment tracker, from the server's side: a separate process sends to it, so that it holds up nothing."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from psl_flower.config import RunConfig
from psl_flower.config.fields import fields_of
from psl_flower.config.run_config import GROUPS
from psl_flower.errors import ConfigError, RunError
from psl_flower.runs.folder import MODEL_FILE, RunFolder
from psl_flower.runs.trackers import Begin, End, Message, Metrics
from psl_flower.system.folders import make_private_folder
from psl_flower.text import expanded, printable

log = logging.getLogger("psl_flower")

# Settings of the run's place; and files, folders and keys of this machine.
_KEPT = frozenset({
    "workspace", "run-name", "exchange-host", "exchange-port", "exchange-advertise", "tracker", "tracker-uri",
    *(field.key for group in GROUPS.values() for field in fields_of(group) if field.about.path),
})  # fmt: skip
_WAITING = 1000
# How long a run that has ended waits for its tracker.
PATIENCE_S = 30.0
_PACKAGES = {"mlflow": ("mlflow", "sqlalchemy"), "wandb": ("wandb",)}


def check_tracker(config: RunConfig) -> None:
    """Raise ConfigError, naming the extra that installs it, if the tracker asked for is not installed."""
    tracker = config.output.tracker
    for package in _PACKAGES.get(tracker, ()):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"tracker={tracker} needs {package}, which is not installed: pip install 'psl-flower[{tracker}]', or "
                "leave tracker out"
            )


def told_settings(config: RunConfig) -> dict[str, str]:
    """Return the settings to send to a tracker: no path of this machine, and of a folder of images its name alone."""
    told = {key: str(value) for key, value in config.to_mapping().items() if key not in _KEPT}
    dataset = config.data.dataset
    is_path = dataset.startswith(("/", "~", ".")) or expanded(dataset, "dataset").is_dir()
    return told | {"dataset": Path(dataset).name if is_path else dataset}


class Tracking:
    """Sends one run to its experiment tracker; without settings, or where they name none, it does nothing.

    The first failure is logged, and then nothing more is sent; no method raises, and only `close` waits.
    """

    def __init__(self, config: RunConfig | None = None, run: RunFolder | None = None) -> None:
        self._run, self._ended = run, False
        self._name = "none" if config is None else config.output.tracker
        self._process: subprocess.Popen[bytes] | None = None
        self._queue: queue.Queue[Message | None] = queue.Queue(_WAITING)
        self._failed = threading.Event()
        self._threads: list[threading.Thread] = []
        if config is None or run is None or self._name == "none":
            self._failed.set()
            return
        try:
            folder = config.workspace_path() / self._name
            make_private_folder(folder)
            self._process = _start(folder)
        except (OSError, RunError) as error:
            self._give_up(str(error))
            return
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._write, self._listen)]
        for thread in self._threads:
            thread.start()
        where = config.output.tracker_uri or str(folder)
        log.info("tracker: %s, %s", self._name, where)
        self._tell(
            Begin(
                tracker=self._name,
                uri=config.output.tracker_uri,
                folder=str(folder),
                name=run.name,
                identity=run.identity,
                settings=told_settings(config),
            )
        )

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """Send the numbers among these values, those of a step."""
        self._tell(Metrics(step=step, values=_numbers(values)))

    def end(self, state: str, values: Mapping[str, Any]) -> None:
        """Send how the run ended, with its last numbers and the place of its model."""
        self._ended = True
        model = str(self._run.model / MODEL_FILE) if self._run is not None and self._run.has_model else ""
        self._tell(End(state=state, values=_numbers(values), model=model))

    def close(self) -> None:
        """Wait half a minute at most until all is sent; the rest is sent without this process."""
        if self._process is None:
            return
        with suppress(queue.Full):
            self._queue.put_nowait(None)
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            return
        for thread in self._threads:
            thread.join(1.0)

    def _tell(self, message: Message) -> None:
        if self._failed.is_set():
            return
        try:
            self._queue.put_nowait(message)
        except queue.Full:
            self._give_up("it takes nothing any more")

    def _write(self) -> None:
        assert self._process is not None and self._process.stdin is not None
        with suppress(OSError):  # it has ended: its last line is read
            while (message := self._queue.get()) is not None:
                self._process.stdin.write(msgspec.json.encode(message) + b"\n")
                self._process.stdin.flush()
            self._process.stdin.close()

    def _listen(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        said = self._process.stdout.read().decode("utf-8", "backslashreplace").strip()
        status = self._process.wait()
        if status:
            self._give_up(said or f"its process ended with {status}")

    def _give_up(self, why: str) -> None:
        if not self._failed.is_set():
            self._failed.set()
            # The last line of a run's own log states how the run ended.
            (logging.getLogger("flwr") if self._ended else log).warning(
                "tracker: %s misses records, and gets no more: %s", self._name, printable(why)
            )


def _start(folder: Path) -> subprocess.Popen[bytes]:
    """Start the process that sends to the tracker; a signal to this process's group does not reach it."""
    code = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [code, os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "psl_flower.runs.trackers"],  # -P: no module from the run's folder
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
