"""Shows a run's progress as its log lines; on a terminal, with a progress bar of its steps below them."""

from __future__ import annotations

import contextlib
import os
import re
import time
from typing import TextIO

from psl_flower.cli.progress import Progress
from psl_flower.runs.folder import LOG_FILE, RunFolder, Status
from psl_flower.system.machine import usable_cores
from psl_flower.text import counted, duration

_TITLE = 30
# Without a terminal, a wait is shown after this long without a line; a machine is busy at this load per core.
_QUIET_S, _BUSY = 10.0, 2.0
_TITLES = {"starting": "starting the nodes", "collecting": "collecting the model"}
# Lines of a log that a bar shows better, and those of rounds, which are made to fit 80 columns.
_NUMBERS = re.compile(r"(.*: )?(round \d+/\d+, step |\d+ of \d+ images?, |making the patch stores: )")
_ROUND = re.compile(r"(round \d+/\d+) done: ")


class Follower(Progress):
    """The progress of one run, shown on `stream`; use as a context manager."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream, every_s=5.0)
        self._log_at = 0
        self._notice = ""
        self._noted = set[str]()
        self._stage_title, self._stage_began = "", time.monotonic()
        self._quiet_since = time.monotonic()
        self._said_busy = False

    def note(self, message: str) -> None:
        """Print one line that stays; the run's log may repeat it."""
        self._noted.add(message)
        self.say(message)

    def notice(self, message: str) -> None:
        """Print one line that stays, and keep its beginning as the bar's title: what the user asked for."""
        self._notice = message.partition(";")[0]
        self.say(message)
        self._bars.update(self._bar, description=self._notice)

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self._quiet_since = time.monotonic()
        super().say(line)

    def begin(self, title: str) -> None:
        """Name what begins."""
        self._stage_title, self._stage_began = title, time.monotonic()
        super().begin(title)

    def waiting(self, title: str, awaited: str = "") -> None:
        """Show what runs long and what it waits for: in the bar, or as a line where none was printed for a while."""
        now = time.monotonic()
        if title != self._stage_title:
            self._stage_title, self._stage_began = title, now
        words = f"{title}: waiting for {awaited}" if awaited else title
        if self._on_terminal:
            self.show(self._notice or words, 0, None, "")
        elif now - self._quiet_since >= _QUIET_S:
            self.say(f"{words}, {now - self._stage_began:.0f} s{self._busy()}")

    def _busy(self) -> str:
        """Return a note, once, on a machine that has more to do than it can do at once."""
        load, cores = os.getloadavg()[0], usable_cores()
        if self._said_busy or load < _BUSY * cores:
            return ""
        self._said_busy = True
        return f"; this machine is busy, {load:.0f} processes want its {counted(cores, 'core')}"

    def skip_log(self, run: RunFolder) -> None:
        """Show nothing of what an earlier attempt has left in the run's log."""
        with contextlib.suppress(OSError):
            self._log_at = (run.path / LOG_FILE).stat().st_size

    def follow(self, status: Status, run: RunFolder) -> None:
        """Print what a run's log has added; on a terminal its numbers are in the bar, and the other lines stay."""
        self._copy_log(run)
        if not self._on_terminal:
            if status.ended or status.state in _TITLES:
                self.waiting("ending Flower" if status.ended else _TITLES[status.state])
            return
        # The last words are printed once Flower's processes have ended.
        title = self._notice or ("ending Flower" if status.ended else _TITLES.get(status.state, status.state))
        if status.state == "training" and status.round and not self._notice:
            title = f"{status.message[:_TITLE]}{', ' * bool(status.message)}round {status.round}/{status.rounds}"
        total = status.total_images or status.total_steps or None
        self.show(title, status.images or status.step, total, self._fitting(title, status))

    def _fitting(self, title: str, status: Status) -> str:
        """Return the numbers of a status, of which the least important are left out where the line is full."""
        parts = [f"step {status.step}/{status.total_steps}"] if status.total_steps else []
        parts += [f"image {status.images}/{status.total_images}"] if status.total_images else []
        if status.state in _TITLES or status.ended:
            return ", ".join(parts)
        parts += [f"{duration(status.eta_s)} left"] if status.eta_s else []
        parts += [f"loss {status.loss:.3f}"] if status.loss is not None else []
        parts += [f"{status.images_per_s:.0f} images/s"] if status.images_per_s is not None else []
        while len(parts) > 1 and len(f"{title}: {', '.join(parts)}") > self.room:
            parts.pop()
        return ", ".join(parts)

    def _copy_log(self, run: RunFolder) -> None:
        """Print what the run has added to its log, but for its last words, which the caller has to say."""
        try:
            with (run.path / LOG_FILE).open("rb") as file:
                file.seek(self._log_at)
                added = file.read()
        except OSError:
            return
        whole = added[: added.rfind(b"\n") + 1]
        self._log_at += len(whole)
        status = run.read_status()  # after the log: the run writes its end there first
        last_words = status.message if status is not None and status.ended else None
        for line in whole.decode("utf-8", "replace").splitlines():
            words = line.split(" ", 3)[-1].rstrip()
            if words == last_words or words in self._noted or (self._on_terminal and _NUMBERS.match(words)):
                continue
            self.say(_ROUND.sub(r"\1: ", words).replace("test accuracy", "accuracy") if self._on_terminal else words)
