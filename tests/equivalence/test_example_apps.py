"""The examples over real nodes, with Adam and with SGD: a node lost, the server killed, resumed; bit-equal to plain PyTorch.

`tests/e2e/test_examples.py` runs them through `flwr run`, as they are.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from flwr.app import Context, RecordDict

from psl_flower.flower import LabelSide, PartySide, SplitLearning
from tests import plain_examples as examples
from tests import plain_split as plain
from tests.parties_in_process import PartiesGrid

pytestmark = pytest.mark.usefixtures("one_thread", "answered_soon")

OPTIMIZERS = {"adam": torch.optim.Adam, "sgd": lambda parameters: torch.optim.SGD(parameters, momentum=0.9)}
EPOCHS, TRAINED = 3, range(200)
# The whole table takes minutes. Of each example one cell is a default test.
QUICK = {
    ("tabular", "adam", "flower"), ("patches", "sgd", "stream"), ("vit", "adam", "stream"),
    ("audio_text", "sgd", "flower"), ("u_shape", "sgd", "flower"), ("groups", "adam", "flower"),
}  # fmt: skip
TABLE = [
    pytest.param(*cell, marks=() if cell in QUICK else pytest.mark.slow)
    for cell in ((name, how, way) for name in examples.NAMES for how in OPTIMIZERS for way in ("stream", "flower"))
]


def of_optimizer(name: str, optimizer: Any, callbacks: Any) -> ModuleType:
    """Return an example that trains all its parts with an optimiser, on fewer samples, in few steps."""
    module = examples.example(name)
    module.TRAIN = TRAINED
    module.PartySide = lambda net, data, _, **options: PartySide(net, data, optimizer, **options)
    module.LabelSide = lambda head, labels, loss, _, **options: LabelSide(head, labels, loss, optimizer, **options)
    changed = {"optimizer": optimizer, "callbacks": callbacks, "checkpoint_every": 2, "node_timeout_s": 10.0}
    module.SplitLearning = lambda *given, **options: SplitLearning(*given, **(options | changed))
    return module


class Cut:
    """Ends a training at a step, once."""

    def __init__(self, step: int) -> None:
        self.step, self.resumed_at = step, 0

    def __call__(self, record: Any) -> None:
        if record["event"] != "step":
            return
        if not self.step:
            self.resumed_at = self.resumed_at or record["step"]
        elif record["step"] == self.step:
            self.step = 0
            raise RuntimeError("power cut")


@pytest.mark.parametrize(("name", "how", "transport"), TABLE)
def test_interrupted_and_resumed(name: str, how: str, transport: str, tmp_path: Path) -> None:
    optimizer = OPTIMIZERS[how]
    steps = len(plain.batches(torch.arange(len(TRAINED)).numpy(), examples.batch_size(name), EPOCHS, 0))
    cut = Cut(2 * steps // 3 + 2)
    module = of_optimizer(name, optimizer, [cut])
    grid = PartiesGrid(module.party, tmp_path / "state", list(module.PARTIES))
    grid.client_app = module.client_app
    # In the second epoch.
    owners = len(grid.config)
    sent = grid.lose(*{"stream": ("train.stream", owners + 1), "flower": ("query.step", 5 * owners + 1)}[transport])
    config = {"epochs": EPOCHS, "workdir": str(tmp_path / "run"), "transport": transport}

    def run() -> None:
        grid.begin()
        module.app(grid, Context(1, 1, {}, RecordDict(), config))
        grid.join()

    with pytest.raises(Exception, match="power cut"):
        run()
    assert sent.count("query.inventory") > owners  # the nodes were looked for again
    run()
    assert 1 < cut.resumed_at <= 2 * steps // 3 + 2
    found = examples.weights(tmp_path / "run", tmp_path / "state")
    assert plain.differing(found, examples.expected(module, EPOCHS, optimizer)) == []
    assert plain.differing(found, examples.expected(module, EPOCHS, optimizer, steps=steps - 1)) != []
    other = OPTIMIZERS["sgd" if how == "adam" else "adam"]
    assert plain.differing(found, examples.expected(module, EPOCHS, other)) != []
