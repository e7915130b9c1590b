"""A hospital keeps its diagnoses: two laboratories and the hospital train with a server that sees no label."""

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score
from torch import nn

from psl_flower.flower import EarlyStopping, LabelSide, PartySide, SplitLearning, split_client

# What each party sends up for a patient: 16 numbers, from its own 10 columns.
PARTIES = {"laboratory": (16,), "imaging": (16,), "hospital": (16,)}
TRAIN, VALID = range(400), range(400, 569)


def columns_of(name: str) -> torch.Tensor:
    """Return a party's columns, standardised by its training rows."""
    first = 10 * list(PARTIES).index(name)
    columns = torch.tensor(load_breast_cancer().data[:, first : first + 10], dtype=torch.float32)
    return (columns - columns[TRAIN].mean(0)) / columns[TRAIN].std(0)


def party(name: str, context: Context) -> PartySide | tuple[PartySide, LabelSide]:
    """Return what a party brings; the hospital brings the diagnoses, too, and the last layers."""
    net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 16))
    side = PartySide(net, columns_of(name), torch.optim.Adam)
    if name != "hospital":
        return side
    diagnoses = torch.tensor(load_breast_cancer().target, dtype=torch.float32)
    head = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0))
    auc = {"auc": lambda logits, benign: roc_auc_score(benign, logits)}
    return side, LabelSide(head, diagnoses, nn.BCEWithLogitsLoss(), torch.optim.Adam, metrics=auc)


class Top(nn.Module):
    """The server's model: from what all parties send to what the hospital's head takes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.ReLU(), nn.Dropout(0.2), nn.Linear(48, 16), nn.ReLU())

    def forward(self, *outputs: torch.Tensor) -> torch.Tensor:
        """Return 16 numbers for each patient."""
        return self.layers(torch.cat(outputs, 1))


client_app = split_client(party)
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train; restarted after an interruption, continue at the last epoch."""
    given = {key: context.run_config[key] for key in ("epochs", "workdir", "transport")}
    strategy = SplitLearning(
        Top, PARTIES, labels="hospital", train=TRAIN, valid=VALID, optimizer=torch.optim.Adam, lr=0.003, batch_size=32,
        callbacks=[EarlyStopping("auc", patience=10)], **given,
    )  # fmt: skip
    print(strategy.fit(grid))
