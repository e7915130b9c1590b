"""One party heard the row of a telephone's key, another wrote down its column; together they tell the key."""

import random

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from torch import nn

from psl_flower.flower import PartySide, SplitLearning, split_client

# What each party sends up for a key press: 16 channels over 8 times, and 16 numbers.
PARTIES = {"audio": (16, 8), "text": (16,)}
TRAIN, VALID = range(900), range(900, 1200)
KEYS = torch.randint(12, (1200,), generator=torch.Generator().manual_seed(0))  # 4 rows of 3 keys
HERTZ = torch.tensor([697.0, 770.0, 852.0, 941.0])
VERBS, NOUNS = ["press", "push", "hit"], ["key", "button"]
COLUMNS = [["left", "first", "western"], ["middle", "second", "central"], ["right", "third", "eastern"]]
WORDS = ["the", *VERBS, *NOUNS, *COLUMNS[0], *COLUMNS[1], *COLUMNS[2]]


def sounds() -> torch.Tensor:
    """Return 0.1 s of each row's tone in noise, float32 (N, 1, 400)."""
    draw, seconds = torch.Generator().manual_seed(1), torch.arange(400) / 4000
    phase, noise = torch.rand(len(KEYS), 1, generator=draw), torch.randn(len(KEYS), 400, generator=draw)
    return (torch.sin(6.2832 * (HERTZ[KEYS // 3, None] * seconds + phase)) + noise / 2)[:, None]


def texts() -> torch.Tensor:
    """Return numbers of words such as "push the second button", int64 (N, 4)."""
    draw = random.Random(2)
    said = [(draw.choice(VERBS), "the", draw.choice(COLUMNS[k % 3]), draw.choice(NOUNS)) for k in KEYS.tolist()]
    return torch.tensor([[WORDS.index(word) for word in words] for words in said])


def party(name: str, context: Context) -> PartySide:
    """Return a party's side: a network over time, or over words; both with dropout."""
    if name == "audio":
        layers = nn.Conv1d(1, 16, 32, stride=4), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.AvgPool1d(11)
        return PartySide(nn.Sequential(*layers), sounds(), torch.optim.Adam)
    net = nn.Sequential(nn.Embedding(len(WORDS), 8), nn.Dropout(0.1), nn.Flatten(), nn.Linear(32, 16))
    return PartySide(net, texts(), torch.optim.Adam)


class Top(nn.Module):
    """The server's network: from the sound's channels over time and the text's numbers to 12 keys."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.ReLU(), nn.Linear(144, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 12))

    def forward(self, sound: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Return the logits of the keys."""
        return self.layers(torch.cat([sound.flatten(1), text], 1))


client_app = split_client(party)
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train; restarted after an interruption, continue at the last epoch."""
    given = {key: context.run_config[key] for key in ("epochs", "workdir", "transport")}
    print(SplitLearning(
        Top, PARTIES, labels=KEYS, train=TRAIN, valid=VALID, loss=nn.CrossEntropyLoss(), optimizer=torch.optim.Adam,
        lr=0.005, batch_size=32, metrics={"accuracy": lambda logits, keys: (logits.argmax(1) == keys).float().mean()},
        **given,
    ).fit(grid))  # fmt: skip
