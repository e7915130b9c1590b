"""Waits for nodes that are lost or missing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from psl_flower.errors import NodeLost, PeerLost, PositionMissing

log = logging.getLogger("psl_flower")
Result = TypeVar("Result")

_RETRY_S = 2.0


def once_nodes_are_online(work: Callable[[], Result], timeout_s: float, *, simulated: Callable[[], bool]) -> Result:
    """Do work that needs nodes and return its result; try again while some are lost or missing.

    Parameters
    ----------
    work : callable
        Raises PeerLost, NodeLost or PositionMissing where a node is.
    timeout_s : float
        Seconds in which attempts may begin.
    simulated : callable
        Asked after a failure; true if nodes are simulated, for which waiting is of no use.

    Raises
    ------
    PslError
        What the last attempt raised, or one that waiting does not mend.
    """
    deadline = time.monotonic() + timeout_s
    logged = ""
    while True:
        try:
            return work()
        except (PeerLost, NodeLost, PositionMissing) as error:
            if simulated() or time.monotonic() >= deadline:
                raise
            if str(error) != logged:
                logged = str(error)
                log.warning("%s; waiting for it, up to %g s", logged, timeout_s)
            time.sleep(_RETRY_S)
