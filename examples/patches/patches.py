"""Four owners hold one quarter of each picture; the server joins what their networks see and knows the digits."""

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from sklearn.datasets import load_digits
from torch import nn

from psl_flower.flower import PartySide, SplitLearning, split_client

# What each owner sends up for a picture: 16 maps of 4x4, from its quarter of 4x4 pixels.
PARTIES = {name: (16, 4, 4) for name in ("top-left", "top-right", "bottom-left", "bottom-right")}
TRAIN, VALID = range(1400), range(1400, 1797)


def quarter(name: str) -> torch.Tensor:
    """Return an owner's part of all pictures, (N, 1, 4, 4)."""
    rows, columns = (slice(4 * ("bottom" in name), None), slice(4 * ("right" in name), None))
    pixels = torch.tensor(load_digits().images, dtype=torch.float32)[:, rows, columns][:, None, :4, :4]
    return (pixels / 16).contiguous()


def party(name: str, context: Context) -> PartySide:
    """Return an owner's side: its network, its pictures, its optimiser."""
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.Dropout(0.1)
    )
    return PartySide(net, quarter(name), lambda parameters: torch.optim.SGD(parameters, momentum=0.9))


class Top(nn.Module):
    """The server's network: joins the maps of all quarters and classifies."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
        )

    def forward(self, *quarters: torch.Tensor) -> torch.Tensor:
        """Return the logits of ten digits."""
        top, bottom = torch.cat(quarters[:2], 3), torch.cat(quarters[2:], 3)
        return self.layers(torch.cat([top, bottom], 2))


client_app = split_client(party)
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train; restarted after an interruption, continue at the last epoch."""
    given = {key: context.run_config[key] for key in ("epochs", "workdir", "transport")}
    print(SplitLearning(
        Top, PARTIES, labels=load_digits().target, train=TRAIN, valid=VALID, loss=nn.CrossEntropyLoss(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, momentum=0.9), lr=0.05, batch_size=64,
        schedule="one-cycle", metrics={"accuracy": lambda logits, digits: (logits.argmax(1) == digits).float().mean()},
        **given,
    ).fit(grid))  # fmt: skip
