"""A run in a simulation on this machine, from its preparation to its end; `psl train` and the benchmarks share this."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from psl_flower.config import EMBEDDED
from psl_flower.config.fields import fields_of
from psl_flower.errors import RunError
from psl_flower.kinds import HowToContinue, Kind, Work, setting_groups
from psl_flower.launch.sizing import check_simulated, simulation
from psl_flower.launch.superlink import LocalSuperLink, Waiting, silently
from psl_flower.runs.folder import RunFolder, Status
from psl_flower.text import OnProgress, expanded

_START_TIMEOUT_S = 180.0


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
    kind: Kind,
    progress: OnProgress | None = None,
    say: Callable[[str], None] | None = None,
    begin: Callable[[Work], None] | None = None,
) -> tuple[int, Work]:
    """Make the patch stores if they are missing, and choose the run's folder; nothing is started for bad input.

    `say` is called with lines for people: on keys that were made, a grid that was chosen, and what `Kind.check`
    returns; `begin` with what `Kind.find` returns, before the stores are made, which may take long. Return the number
    of Uppers, and what `Kind.find` returns.

    Raises
    ------
    PslError
        As `psl_flower.stores.prepare.prepare_stores`, `Kind.find` and `Kind.check`; ConfigError if the key of a node is
        not here.
    """
    from psl_flower.stores.prepare import prepare_stores

    work = kind.find()
    check_simulated(work.config)
    if begin is not None:
        begin(work)
    stores = prepare_stores(work.config, progress)
    stores.check_node_keys()
    for note in (*stores.account_lines, stores.keys_note, stores.grid_reason, kind.check(work, stores.description)):
        if note and say is not None:
            say(note)
    return stores.description.num_uppers, work


def start(
    superlink: LocalSuperLink,
    app: Path,
    given: Mapping[str, object],
    kind: Kind,
    work: Work,
    num_uppers: int,
    nodes: int = 0,
    waiting: Waiting = silently,
) -> str:
    """Start `flwr run` with a federation that fits the grid and the machine; return Flower's id of the run.

    `given` are the settings to pass on, by their kebab-case keys; those left out take the app's defaults. `work` is
    from `prepare`; `num_uppers` and `nodes` are as `psl_flower.launch.sizing.simulation` takes them. `waiting` is
    called again and again meanwhile.

    Raises
    ------
    RunError
        If Flower refuses it, or the disk a copy of the app.
    """
    federation = simulation(num_uppers, num_nodes=nodes, adaptation=work.config.network.adaptation_server)
    return superlink.run(app, _run_config(given, kind, work.folder), federation, waiting)


class Watch:
    """Follows a run that is about to start in a simulation, by its folder.

    The status found there at first is another attempt's; `again` says how the run is continued.
    """

    def __init__(
        self, superlink: LocalSuperLink, run: RunFolder, again: HowToContinue = lambda folder, simulated: ""
    ) -> None:
        self._superlink, self._run, self._again = superlink, run, again
        self._before = run.read_status()
        self._deadline: float | None = None
        self._seen_running = False

    def poll(self) -> tuple[Status | None, bool]:
        """Return the run's status, None before its first, and whether it is the last one: its processes have ended."""
        status, running = self._status(), self._superlink.is_running()
        self._deadline = self._deadline or time.monotonic() + _START_TIMEOUT_S
        self._seen_running = self._seen_running or running
        if running:
            return status, False
        status = self._status()  # it may have ended between the two questions
        if status is not None and status.ended:
            return status, True
        if self._seen_running or not self._superlink.is_up() or time.monotonic() > self._deadline:
            words = self._superlink.last_words()
            self._superlink.stop()  # where the SuperLink was killed, the run's orphans would keep writing
            return self.note_end("failed", f"error: the run's process ended: {words}"), True
        return status, False

    @property
    def awaited(self) -> str:
        """What the run needs next, for a person, as long as it has no status."""
        return "the server's part to load" if self._seen_running else "the simulation's process"

    def note_end(self, state: str, why: str) -> Status:
        """Record the run's end in its folder, after its processes have gone; return its last status.

        `state` is "stopped" or "failed", unless the run itself has said how it ended. `why` is one line, to which how
        to continue is added, and why the disk refuses what is written.
        """
        last = self._status()
        if last is not None and last.ended:
            return last
        last = last or self._run.read_status() or Status(state=state)
        again = self._again(self._run, True)

        def ended() -> Status:
            message = f"{why}; continue with: {again}" if again else why
            return msgspec.structs.replace(last, state=state, message=message, eta_s=None)

        if self._run.path.is_dir():
            # In this order, so that a reader of the log can check that its last line is the status's message.
            try:
                self._run.append_log("ERROR" if state == "failed" else "INFO", ended().message)
            except RunError as error:
                why = f"{why}; {error}"
            try:
                self._run.write_status(ended())
            except RunError as error:
                why = f"{why}; {error}"
        return ended()

    def _status(self) -> Status | None:
        status = self._run.read_status()
        return status if status != self._before else None  # not by time: a clock may be set back meanwhile


def _run_config(given: Mapping[str, object], kind: Kind, folder: RunFolder) -> dict[str, object]:
    """Return the settings for `flwr run`. The ServerApp runs elsewhere, so paths are absolute and the run is named."""
    named = {"run-name": folder.name} if kind.takes_name else {}
    return {**given, **named, **local_paths(given), "workspace": str(kind.config.workspace_path())}


def local_paths(given: Mapping[str, object]) -> dict[str, str]:
    """Return those settings that name a file or folder of this machine, as absolute paths; each may be no path.

    A link to a file stays a link: renewing a certificate may point it to another file. The embedded dataset is not
    among them, even if a folder has its name.
    """
    keys = [field.key for group in setting_groups().values() for field in fields_of(group) if field.about.path]
    named = {key: str(given[key]) for key in keys if given.get(key)}
    paths = {key: expanded(text, key) for key, text in named.items() if (key, text) != ("dataset", EMBEDDED)}
    return {key: str(path.parent.resolve() / path.name) for key, path in paths.items() if os.path.exists(path)}
