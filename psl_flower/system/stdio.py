"""Standard output and error of a command: closed, full, or of an encoding that lacks letters, they end no work."""

from __future__ import annotations

import io
import os
import sys

from psl_flower.errors import OutputLost


def open_streams() -> None:
    """Make the standard streams open and able to take any text, before a command opens files.

    A file that is opened where one of them is closed would get its number, and what other programs print would go
    there. Letters that the encoding lacks are escaped. Standard output that cannot be written raises OutputLost.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, so this one
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if type(sys.stdout) is io.TextIOWrapper:  # and not what a test has put there
        encoding, by_line = sys.stdout.encoding, sys.stdout.line_buffering
        sys.stdout = _Output(sys.stdout.detach(), encoding, "backslashreplace", line_buffering=by_line)


def drop_output() -> None:
    """Discard further output, so that the interpreter, which flushes at exit, finds no error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Output(io.TextIOWrapper):
    """Standard output that raises a distinct error if it is lost, unlike a command's files."""

    def write(self, text: str) -> int:
        """Write text; raises OutputLost."""
        try:
            return super().write(text)
        except OSError as error:
            raise self._lost(error) from error

    def flush(self) -> None:
        """Flush; raises OutputLost."""
        try:
            super().flush()
        except OSError as error:
            raise self._lost(error) from error

    @staticmethod
    def _lost(error: OSError) -> OSError | OutputLost:
        if isinstance(error, BrokenPipeError):
            return error  # the reader closed the pipe, which is no error
        drop_output()
        return OutputLost(f"standard output cannot be written: {error.strerror or error}")
