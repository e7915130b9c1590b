"""Four owners hold one quarter of each picture, each with a small vision transformer; the server knows the digits."""

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from sklearn.datasets import load_digits
from torch import nn

from psl_flower.flower import PartySide, SplitLearning, split_client

WIDTH = 32
# What each owner sends up for a picture: 4 tokens of 32 numbers, from its quarter of 4x4 pixels.
PARTIES = {name: (4, WIDTH) for name in ("top-left", "top-right", "bottom-left", "bottom-right")}
TRAIN, VALID = range(1400), range(1400, 1797)


def quarter(name: str) -> torch.Tensor:
    """Return an owner's part of all pictures as 4 tokens of 2x2 pixels, (N, 4, 4)."""
    rows, columns = (slice(4 * ("bottom" in name), None), slice(4 * ("right" in name), None))
    pixels = torch.tensor(load_digits().images, dtype=torch.float32)[:, rows, columns][:, :4, :4] / 16
    return pixels.reshape(-1, 2, 2, 2, 2).transpose(2, 3).reshape(-1, 4, 4)


class Transformer(nn.Module):
    """Tokens (B, T, features) to tokens (B, T, 32): an embedding, places, and layers of attention with dropout."""

    def __init__(self, features: int, tokens: int, layers: int) -> None:
        super().__init__()
        self.embed, self.places = nn.Linear(features, WIDTH), nn.Parameter(0.1 * torch.randn(tokens, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, nhead=4, dim_feedforward=64, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the tokens after attention among them."""
        return self.layers(self.embed(tokens) + self.places)


def party(name: str, context: Context) -> PartySide:
    """Return an owner's side: its transformer, its pictures, its optimiser."""
    return PartySide(Transformer(4, 4, layers=2), quarter(name), torch.optim.AdamW)


class Top(nn.Module):
    """The server's network: attention over the tokens of all quarters, then a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.classify = Transformer(WIDTH, 16, layers=1), nn.Linear(WIDTH, 10)

    def forward(self, *quarters: torch.Tensor) -> torch.Tensor:
        """Return the logits of ten digits."""
        return self.classify(self.body(torch.cat(quarters, 1)).mean(1))


client_app = split_client(party)
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train; restarted after an interruption, continue at the last epoch."""
    given = {key: context.run_config[key] for key in ("epochs", "workdir", "transport")}
    print(SplitLearning(
        Top, PARTIES, labels=load_digits().target, train=TRAIN, valid=VALID, loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.AdamW, lr=0.003, batch_size=64, schedule="one-cycle", **given,
        metrics={"accuracy": lambda logits, digits: (logits.argmax(1) == digits).float().mean()},
    ).fit(grid))  # fmt: skip
