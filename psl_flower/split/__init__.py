"""Split learning with models, data and losses of any kind: several parties, and a model behind the cut.

Every party holds other columns of the same samples, and its own model for them. What these models return goes up,
is joined by `top`, and held against targets that the server has, or one of the parties; gradients come back. See
docs/own-models.md.

    result = fit_local(party, Training(Top(), PARTIES, labels=labels, train=train, ...))

trains in one process. `psl_flower.flower` trains the same over Flower's nodes, bit by bit.
"""

from psl_flower.split.callbacks import EarlyStopping
from psl_flower.split.labels import LabelSide
from psl_flower.split.local import LocalResult, fit_local
from psl_flower.split.private_ids import pseudonyms
from psl_flower.split.side import PartySide
from psl_flower.split.training import Training

__all__ = ["EarlyStopping", "LabelSide", "LocalResult", "PartySide", "Training", "fit_local", "pseudonyms"]
