"""Three laboratories hold different measurements of the same patients; the server holds the diagnoses."""

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score
from torch import nn

from psl_flower.flower import EarlyStopping, PartySide, SplitLearning, split_client

# What each party sends up for a patient: 16 numbers, from its own 10 columns.
PARTIES = {"mean": (16,), "error": (16,), "worst": (16,)}
TRAIN, VALID = range(400), range(400, 569)


def columns_of(name: str) -> torch.Tensor:
    """Return a party's columns, standardised by its training rows."""
    first = 10 * list(PARTIES).index(name)
    columns = torch.tensor(load_breast_cancer().data[:, first : first + 10], dtype=torch.float32)
    known = columns[: len(TRAIN)]
    return (columns - known.mean(0)) / known.std(0)


def party(name: str, context: Context) -> PartySide:
    """Return a party's side: its model, its data, its optimiser."""
    net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 16))
    return PartySide(net, columns_of(name), torch.optim.Adam)


class Top(nn.Module):
    """The server's model: from what all parties send to one logit."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.ReLU(), nn.Dropout(0.2), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, *outputs: torch.Tensor) -> torch.Tensor:
        """Return the logit of a benign tumour."""
        return self.layers(torch.cat(outputs, 1)).squeeze(1)


client_app = split_client(party)
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train; restarted after an interruption, continue at the last epoch."""
    labels = torch.tensor(load_breast_cancer().target, dtype=torch.float32)
    given = {key: context.run_config[key] for key in ("epochs", "workdir", "transport")}
    strategy = SplitLearning(
        Top, PARTIES, labels=labels, train=TRAIN, valid=VALID, loss=nn.BCEWithLogitsLoss(), optimizer=torch.optim.Adam,
        lr=0.003, batch_size=32, metrics={"auc": lambda logits, benign: roc_auc_score(benign, logits)},
        callbacks=[EarlyStopping("auc", patience=10)], **given,
    )  # fmt: skip
    print(strategy.fit(grid))
