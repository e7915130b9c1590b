"""Shows on a terminal how a run goes; where there is no terminal, as lines."""

from __future__ import annotations

import contextlib
import time
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from psl_flower.runs.folder import RunFolder, Status
from psl_flower.text import duration

_LINE_EVERY_S = 5.0
_LOG = "log.txt"


class Follower:
    """A progress bar on a terminal, lines elsewhere; use as a context manager.

    Parameters
    ----------
    stream : TextIO
        Where to show it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[details]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("preparing", total=None, details="")
        self._said, self._said_at = "", 0.0
        self._log_at = 0
        self._notice = ""
        self._noted = set[str]()

    def __enter__(self) -> Follower:
        """Show it."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take it away."""
        self._progress.stop()

    def say(self, message: str) -> None:
        """Show one line."""
        if self._console.is_terminal:
            self._progress.update(self._task, description=message)
        elif message != self._said:
            self._console.print(message)
        self._said = message

    def note(self, message: str) -> None:
        """Show one line that stays, also on a terminal; the run's log may say it again."""
        self._noted.add(message)
        self._console.print(message)

    def notice(self, message: str) -> None:
        """Show one line that stays: what the user has asked for is being done."""
        self._notice = message.partition(";")[0]
        self._console.print(message)
        self._progress.update(self._task, description=self._notice)

    def skip_log(self, run: RunFolder) -> None:
        """Show nothing of what an earlier attempt has left in the run's log."""
        with contextlib.suppress(OSError):
            self._log_at = (run.path / _LOG).stat().st_size

    def ingesting(self, stage: str, done: int, total: int) -> None:
        """Show how far the making of the patch stores is."""
        self._progress.update(self._task, completed=done, total=total, details=f"{done} of {total} {stage} images")
        now = time.monotonic()
        if self._console.is_terminal:
            self._progress.update(self._task, description="making the patch stores")
        elif now - self._said_at >= _LINE_EVERY_S or done == total:
            self._said_at = now
            self.say(f"making the patch stores: {done} of {total} {stage} images")

    def show(self, status: Status, run: RunFolder) -> None:
        """Show a status."""
        if not self._console.is_terminal:
            self._copy_log(run)
            return
        parts = [f"step {status.step}/{status.total_steps}"] if status.total_steps else []
        parts += [f"image {status.images}/{status.total_images}"] if status.total_images else []
        if status.loss is not None:
            parts.append(f"loss {status.loss:.3f}")
        if status.accuracy is not None:
            parts.append(f"test accuracy {status.accuracy:.2%}")
        if status.images_per_s is not None:
            parts.append(f"{status.images_per_s:.0f} images/s")
        if status.eta_s:
            parts.append(f"{duration(status.eta_s)} left")
        title = status.message
        if status.state == "training" and status.round:
            title = f"{title}{', ' * bool(title)}round {status.round}/{status.rounds}"
        self._progress.update(
            self._task,
            description=self._notice or title[:100],
            completed=status.images or status.step,
            total=status.total_images or status.total_steps or None,
            details=", ".join(parts),
        )

    def _copy_log(self, run: RunFolder) -> None:
        """Print what the run has added to its log, but for its last words, which the caller has to say."""
        try:
            with (run.path / _LOG).open("rb") as file:
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
            if words != last_words and words not in self._noted:
                self._console.print(words)
