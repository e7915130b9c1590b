"""Split learning for Flower apps: parties with their own models and data, a model behind the cut on the server.

    client_app = split_client(party)                        # on the nodes

    result = SplitLearning(Top(), PARTIES, ...).fit(grid)   # in a ServerApp's main

The names below are the public ones; see docs/own-models.md. The rest of this package is what these share with patch
split learning: finding nodes, the transports, questions and answers in Flower messages. Nothing else in `psl_flower`
imports Flower. A name is imported when it is first used, since a node's programs must answer Flower before torch is
loaded.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psl_flower.flower.client import split_client
    from psl_flower.flower.learning import SplitLearning
    from psl_flower.split import EarlyStopping, LabelSide, PartySide, fit_local, pseudonyms

__all__ = ["EarlyStopping", "LabelSide", "PartySide", "SplitLearning", "fit_local", "pseudonyms", "split_client"]

_OWN = {"split_client": "psl_flower.flower.client", "SplitLearning": "psl_flower.flower.learning"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_OWN.get(name, "psl_flower.split")), name)


def __dir__() -> list[str]:
    return __all__
