"""Standard output and error of a command: closed, full, or of an encoding that lacks letters, they end no work."""

from __future__ import annotations

import io
import os
import sys


def open_streams() -> None:
    """Let the standard streams be open and take any text, before a command opens files of its own.

    A file that is opened where one of them is closed would get its number, and what other programs print would go
    there. Letters that the encoding lacks are escaped.
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


def lost_output(error: OSError) -> str | None:
    """Return what to say of an error that comes of standard output; None of any other.

    Nothing is to be said where whoever read it has gone. The interpreter, which flushes at exit, is spared the error.
    """
    said = ""
    if not isinstance(error, BrokenPipeError):
        try:
            sys.stdout.flush()
            return None
        except OSError:
            said = f"standard output cannot be written: {error.strerror or error}"
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return said
