"""The lines of a run that people read: on the terminal, and in a file in its folder."""

from __future__ import annotations

import logging
from pathlib import Path

from psl_flower.runs.folder import LOG_FILE

log = logging.getLogger("psl_flower")


def set_up_log(run: Path) -> None:
    """Send our log to the terminal, through Flower's own log, and to a file in the run's folder."""
    flower = logging.getLogger("flwr")
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers = [*flower.handlers]
    file = logging.FileHandler(run / LOG_FILE, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(file)
