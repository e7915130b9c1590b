"""Shows on a terminal how a run goes; where there is no terminal, as lines."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from psl_flower.runs import RunFolder, Status

_LINE_EVERY_S = 5.0


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
        """Show one line that stays, also on a terminal."""
        self._console.print(message)

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
            self._copy_log(run.path / "log.txt")
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
            parts.append(f"{_duration(status.eta_s)} left")
        title = (
            f"round {status.round}/{status.rounds}" if status.state == "training" and status.round else status.message
        )
        self._progress.update(
            self._task,
            description=title[:100],
            completed=status.images or status.step,
            total=status.total_images or status.total_steps or None,
            details=", ".join(parts),
        )

    def _copy_log(self, log: Path) -> None:
        """Print what the run has added to its log."""
        if not log.exists():
            return
        with log.open(encoding="utf-8", errors="replace") as file:
            file.seek(self._log_at)
            for line in file:
                if line.endswith("\n"):
                    self._log_at += len(line.encode())
                    self._console.print(line.split(" ", 3)[-1].rstrip())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
