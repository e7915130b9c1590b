"""Split learning for Flower apps: parties with their own models and data, a model behind the cut on the server.

    client_app = split_client(party)                        # on the nodes

    result = SplitLearning(Top(), PARTIES, ...).fit(grid)   # in a ServerApp's main

The names below are the public ones; see docs/own-models.md. The rest of this package is what these share with patch
split learning: finding nodes, the transports, questions and answers in Flower messages. Nothing else in `psl_flower`
imports Flower.
"""

from psl_flower.flower.client import split_client
from psl_flower.flower.learning import SplitLearning
from psl_flower.split import EarlyStopping, LabelSide, PartySide, fit_local, pseudonyms

__all__ = ["EarlyStopping", "LabelSide", "PartySide", "SplitLearning", "fit_local", "pseudonyms", "split_client"]
