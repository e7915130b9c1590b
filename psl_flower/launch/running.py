"""A run in a simulation on this machine, from its preparation to its end; `psl train` and the benchmarks share this."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from psl_flower.config import EMBEDDED, RunConfig
from psl_flower.engine.batches import batch_order
from psl_flower.errors import RunError
from psl_flower.launch.federation import simulation
from psl_flower.launch.superlink import LocalSuperLink
from psl_flower.patches.description import StoreSetDescription
from psl_flower.runs.folder import RunFolder, Status, free_name, open_run
from psl_flower.runs.predictions import check, free_folder, prediction_of
from psl_flower.runs.resuming import resumed_config
from psl_flower.system.machine import count_gpus, usable_cores
from psl_flower.text import expanded

_START_TIMEOUT_S = 180.0
# Settings that may be paths of this machine.
_PATHS = (
    "dataset", "keys", "owner", "restore", "predict-images", "exchange-cert", "exchange-key", "exchange-client-ca",
)  # fmt: skip


def app_folder(given: str = "") -> Path:
    """Return the folder of the Flower app: the one given, or that of this installation.

    Raises
    ------
    RunError
        If there is no Flower app.
    """
    import psl_flower

    folder = expanded(given, "--app").absolute() if given else Path(psl_flower.__file__).parents[1]
    if not os.path.isfile(folder / "pyproject.toml"):
        raise RunError(f"{folder}: no Flower app here (no pyproject.toml); give its folder with --app")
    return folder


def prepare(
    config: RunConfig,
    progress: Callable[[str, int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[int, RunFolder]:
    """Make the patch stores if they are missing, and choose the run's folder; nothing is started for bad input.

    Parameters
    ----------
    config : RunConfig
        The run's, the prediction's, or the lightening's.
    progress : callable, optional
        As `psl_flower.stores.prepare.prepare_stores` takes it.
    say : callable, optional
        Called with lines for people: on keys that were made, a grid that was chosen, a batch larger than the dataset.

    Returns
    -------
    tuple[int, RunFolder]
        The number of Uppers, and the folder, that of a prediction's results, or of a lightening, if it is one; not yet
        made unless the run is resumed or it is a lightening's.

    Raises
    ------
    PslError
        As `psl_flower.stores.prepare.prepare_stores`; RunError if the run's name is taken, or the resumed run missing;
        ConfigError if the key of a node is not here, or there are too few images to train on.
    """
    from psl_flower.stores.prepare import prepare_stores

    workspace = config.workspace_path()
    if config.run.predict:
        asked, trained = prediction_of(config)
        stores = prepare_stores(asked, progress)
        stores.check_node_keys()
        check(asked, trained, stores.description)
        if config.run.predict_light:
            from psl_flower.lightening import folder as lightening_folder  # loads torch

            lightening_folder.light_model(trained, stores.description.num_uppers)
        return stores.description.num_uppers, free_folder(trained, config)
    if config.run.lighten:
        from psl_flower.lightening import folder as lightening_folder  # loads torch

        asked, trained, light = lightening_folder.begin(config)
        stores = prepare_stores(asked, progress)
        stores.check_node_keys()
        lightening_folder.check_stores(trained, stores.description)
        return stores.description.num_uppers, RunFolder(light.path)
    if config.run.resume:
        run = open_run(workspace, config.run.resume)
        config = resumed_config(run, config)
    else:
        run = RunFolder(workspace / "runs" / free_name(workspace, config.run.run_name, config.data.dataset))
    stores = prepare_stores(config, progress)
    stores.check_node_keys()
    notes = [
        stores.keys_note,
        stores.grid_reason,
        "" if config.run.restore else _batches_note(config, stores.description),
    ]
    for note in notes:
        if note and say is not None:
            say(note)
    return stores.description.num_uppers, run


def _batches_note(config: RunConfig, description: StoreSetDescription) -> str:
    """Return a line where a batch is larger than the dataset; raises ConfigError if there is no batch at all."""
    count = len(batch_order(config, description).pool)
    size = config.training.batch_size
    if size <= count or size == RunConfig().training.batch_size:
        return ""
    return f"batch-size: {size} is more than the {count} training images: every step takes all of them"


def start(
    superlink: LocalSuperLink,
    app: Path,
    given: Mapping[str, object],
    config: RunConfig,
    run: RunFolder,
    num_uppers: int,
    nodes: int = 0,
) -> str:
    """Start `flwr run` with a federation that fits the grid and the machine; return Flower's id of the run.

    Parameters
    ----------
    superlink : LocalSuperLink
        It answers.
    app : Path
        Folder of the Flower app.
    given : mapping
        The settings to pass on, by their kebab-case keys; those left out take the app's defaults.
    config : RunConfig
        The same settings, parsed.
    run : RunFolder
        From `prepare`.
    num_uppers, nodes : int
        As `psl_flower.launch.federation.simulation` takes them.

    Raises
    ------
    RunError
        If Flower refuses it.
    """
    began = resumed_config(run, config) if config.run.resume else config
    fitting = federation(num_uppers, nodes, adaptation=began.network.adaptation_server)
    return superlink.run(app, _run_config(given, config, run), fitting)


def federation(num_uppers: int, nodes: int = 0, *, adaptation: bool = False) -> dict[str, int | float]:
    """Return the federation configuration that fits the grid and this machine."""
    return simulation(num_uppers, usable_cores(), count_gpus(), nodes, adaptation=adaptation)


class Watch:
    """Looks after a run that is about to start.

    Parameters
    ----------
    superlink : LocalSuperLink
        Which simulates it.
    run : RunFolder
        Its folder; a status that is older than this object is another attempt's.
    again : str or None
        The command that continues it, if it is not a training alone; None if none does.
    """

    def __init__(self, superlink: LocalSuperLink, run: RunFolder, again: str | None = "") -> None:
        self._superlink, self._run, self._again = superlink, run, again
        self._started = time.time()
        self._deadline: float | None = None
        self._seen_running = False

    def look(self) -> tuple[Status | None, bool]:
        """Return the run's status, None before its first, and whether it is the last one: its processes have ended."""
        status, running = self._status(), self._superlink.is_running()
        self._deadline = self._deadline or time.monotonic() + _START_TIMEOUT_S
        self._seen_running = self._seen_running or running
        if running:
            return status, False
        status = self._status()  # it may have ended between the two looks
        if status is not None and status.ended:
            return status, True
        if self._seen_running or not self._superlink.is_up() or time.monotonic() > self._deadline:
            words = self._superlink.last_words()
            self._superlink.stop()  # where the SuperLink was killed, the run's orphans would go on writing
            return self.note_end("failed", f"error: the run's process ended: {words}"), True
        return status, False

    def note_end(self, state: str, why: str) -> Status:
        """Note how the run ended, in its folder too, after its processes have gone; return its last status.

        Parameters
        ----------
        state : str
            "stopped" or "failed", unless the run itself has said how it ended.
        why : str
            One line; how to go on is added.
        """
        last = self._status()
        if last is not None and last.ended:
            return last
        last = last or self._run.read_status() or Status(state=state)
        # Not asked of `checkpoints`, which loads torch: whoever sent SIGTERM does not wait.
        kept = any((self._run.path / "checkpoints").glob("*"))
        command = f"psl train resume={self._run.name}" if self._again == "" and kept else self._again
        again = f"; continue with: {command}" if command else ""
        ended = msgspec.structs.replace(last, state=state, message=f"{why}{again}", eta_s=None)
        if self._run.path.is_dir():
            self._run.write_status(ended)
        return ended

    def _status(self) -> Status | None:
        status = self._run.read_status()
        return status if status is not None and status.updated >= self._started else None


def _run_config(given: Mapping[str, object], config: RunConfig, run: RunFolder) -> dict[str, object]:
    """Return what `flwr run` is told: the ServerApp runs elsewhere, so paths and the run's name are spelled out."""
    named = {} if config.run.resume or config.run.lighten else {"run-name": run.name}
    return {**given, **named, **local_paths(given), "workspace": str(config.workspace_path())}


def local_paths(given: Mapping[str, object]) -> dict[str, str]:
    """Return those settings that name a file or folder of this machine, as absolute paths; each may be no path.

    A file's own link stays one: whoever renews a certificate may let it point to another. The embedded dataset is none
    of them, whatever lies in this folder.
    """
    named = {key: str(given[key]) for key in _PATHS if given.get(key)}
    paths = {key: expanded(text, key) for key, text in named.items() if (key, text) != ("dataset", EMBEDDED)}
    return {key: str(path.parent.resolve() / path.name) for key, path in paths.items() if os.path.exists(path)}
