"""Writes a run's TensorBoard event files; write failures become errors of psl_flower.errors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat import tf
from torch.utils.tensorboard import SummaryWriter

from psl_flower.errors import RunError
from psl_flower.system.files import disk_errors


class EventFiles:
    """The event files in one folder, which is made if it is missing.

    Raises
    ------
    RunError
        If the disk refuses; every method may raise it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with self._errors():
            self._writer = SummaryWriter(str(folder))

    def add(self, name: str, value: float, step: int) -> None:
        """Add a point to a curve."""
        with self._errors():
            self._writer.add_scalar(name, value, step)

    def add_image(self, name: str, image_CHW: NDArray[np.floating[Any]], step: int) -> None:
        """Add a picture, values 0..1."""
        with self._errors():
            self._writer.add_image(name, image_CHW, step)

    def add_text(self, name: str, text: str, step: int) -> None:
        """Add a text, as Markdown."""
        with self._errors():
            self._writer.add_text(name, text, step)

    def flush(self) -> None:
        """Write what was added to the disk."""
        with self._errors():
            self._writer.flush()

    def close(self) -> None:
        """Write what was added, and end the writer's thread."""
        with self._errors():
            self._writer.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        with disk_errors(self._folder, "written", RunError):
            try:
                yield
            except tf.errors.OpError as error:  # TensorFlow's own words, if it is installed
                raise RunError(f"{self._folder}: cannot be written: {error.message}") from error
