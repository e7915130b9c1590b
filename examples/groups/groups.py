"""Two hospital groups hold different patients, each split between its laboratory and its imaging department."""

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score
from torch import nn

from psl_flower.flower import EarlyStopping, PartySide, SplitLearning, pseudonyms, split_client

# A node for each department of each group; what each sends up for a patient: 16 numbers.
COLUMNS = {"laboratory": slice(0, 15), "imaging": slice(15, 30)}
PATIENTS = {"north": range(0, 569, 3), "south": [number for number in range(569) if number % 3]}
PARTIES = {f"{party}@{group}": (16,) for party in COLUMNS for group in PATIENTS}
IDS = [f"Patient-{number:03}" for number in range(569)]
TRAIN, VALID = range(400), range(400, 569)
# In a deployment a file that the hospitals have and the server does not; see README.md.
ID_KEY = b"only for this simulation"


def party(name: str, context: Context) -> PartySide:
    """Return a department's side: its model, and the records of its own group's patients under their ids."""
    department, _, group = name.partition("@")
    columns = torch.tensor(load_breast_cancer().data[:, COLUMNS[department]], dtype=torch.float32)
    known = columns[[patient for patient in PATIENTS[group] if patient in TRAIN]]
    own = (columns[PATIENTS[group]] - known.mean(0)) / known.std(0)
    net = nn.Sequential(nn.Linear(15, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 16))
    return PartySide(net, own, torch.optim.Adam, ids=[IDS[patient] for patient in PATIENTS[group]], id_key=ID_KEY)


class Top(nn.Module):
    """The server's model: from what a patient's laboratory and imaging department send to one logit."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, laboratory: torch.Tensor, imaging: torch.Tensor) -> torch.Tensor:
        """Return the logit of a benign tumour."""
        return self.layers(torch.cat([laboratory, imaging], 1)).squeeze(1)


client_app = split_client(party)
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train; restarted after an interruption, continue at the last epoch."""
    labels = torch.tensor(load_breast_cancer().target, dtype=torch.float32)
    given = {key: context.run_config[key] for key in ("epochs", "workdir", "transport")}
    strategy = SplitLearning(
        Top, PARTIES, labels=labels, ids=pseudonyms(IDS, ID_KEY), train=TRAIN, valid=VALID,
        loss=nn.BCEWithLogitsLoss(), optimizer=torch.optim.Adam, lr=0.003, batch_size=32,
        metrics={"auc": lambda logits, benign: roc_auc_score(benign, logits)},
        callbacks=[EarlyStopping("auc", patience=10)], **given,
    )  # fmt: skip
    print(strategy.fit(grid))
