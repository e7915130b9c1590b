"""Shows on a terminal how a run goes; where there is no terminal, as the lines of its log."""

from __future__ import annotations

import contextlib
from typing import TextIO

from psl_flower.cli.progress import Progress
from psl_flower.runs.folder import RunFolder, Status
from psl_flower.text import duration

_LOG = "log.txt"


class Follower(Progress):
    """The progress of one run; use as a context manager.

    Parameters
    ----------
    stream : TextIO
        Where to show it.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream, every_s=5.0)
        self._log_at = 0
        self._notice = ""
        self._noted = set[str]()

    def note(self, message: str) -> None:
        """Print one line that stays; the run's log may repeat it."""
        self._noted.add(message)
        self.say(message)

    def notice(self, message: str) -> None:
        """Print one line that stays, and keep its beginning as the bar's title: what the user asked for."""
        self._notice = message.partition(";")[0]
        self.say(message)
        self._bars.update(self._bar, description=self._notice)

    def skip_log(self, run: RunFolder) -> None:
        """Show nothing of what an earlier attempt has left in the run's log."""
        with contextlib.suppress(OSError):
            self._log_at = (run.path / _LOG).stat().st_size

    def follow(self, status: Status, run: RunFolder) -> None:
        """Show a run's status, or print what its log has added."""
        if not self._on_terminal:
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
        # The last words are printed once Flower's processes have ended.
        title = "ending Flower" if status.ended else status.message
        if status.state == "training" and status.round:
            title = f"{title}{', ' * bool(title)}round {status.round}/{status.rounds}"
        total = status.total_images or status.total_steps or None
        self.show(self._notice or title[:100], status.images or status.step, total, ", ".join(parts))

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
                self.say(words)
