"""Three parties of tabular data train to the weights of a plain PyTorch loop, bit by bit, dropout on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from psl_flower.split import LocalResult, PartySide, Training, fit_local
from tests import plain_split as plain

pytestmark = pytest.mark.usefixtures("one_thread")


def party_with(optimizer: Callable[..., Any]) -> Callable[[str, Any], PartySide]:
    data = plain.columns()
    return lambda name, context: PartySide(plain.net(name), data[name], optimizer)


def training(optimizer: Callable[..., Any], **changes: Any) -> Training:
    told = {
        "labels": plain.labels(), "train": plain.TRAIN, "valid": plain.VALID, "loss": plain.bce,
        "metrics": {"accuracy": plain.accuracy}, "optimizer": optimizer, **plain.SETTINGS,
    }  # fmt: skip
    return Training(plain.Top, plain.PARTIES, **(told | changes))


def weights(result: LocalResult) -> dict[str, torch.Tensor]:
    assert isinstance(result.outputs, torch.Tensor)
    return plain.snapshot(result.nets, result.top) | {"outputs": result.outputs}


@pytest.mark.parametrize("name", plain.OPTIMIZERS)
def test_fit_local_is_a_plain_loop(name: str) -> None:
    optimizer = plain.OPTIMIZERS[name]
    result = fit_local(party_with(optimizer), training(optimizer))
    expected = plain.plain_loop(optimizer)
    assert plain.differing(weights(result), expected) == []
    assert [record["round"] for record in result.rounds] == [1, 2, 3]
    assert result.rounds[-1]["accuracy"] == plain.accuracy(expected["outputs"], plain.labels()[plain.VALID])
    # One step fewer, or other masks in dropout, would be seen.
    assert plain.differing(weights(result), plain.plain_loop(optimizer, steps=17)) != []
    assert plain.differing(weights(result), plain.plain_loop(optimizer, dropout=False)) != []


@pytest.mark.parametrize("steps", [0, 4])
def test_an_interrupted_training_goes_on_exactly(steps: int, tmp_path: Path) -> None:
    """It ends with an error within the second round; the next call goes on from the last checkpoint."""

    def fail(record: Any) -> None:
        if record["event"] == "step" and record["step"] == 9:
            raise RuntimeError("power cut")

    adam = torch.optim.Adam
    with pytest.raises(Exception, match="power cut"):
        fit_local(party_with(adam), training(adam, workdir=tmp_path / "run", callbacks=[fail], checkpoint_every=steps))
    told: list[Any] = []
    again = training(adam, workdir=tmp_path / "run", callbacks=[told.append], checkpoint_every=steps)
    result = fit_local(party_with(adam), again)
    assert told[0]["step"] == (9 if steps else 7)  # it did go on, not begin anew
    assert plain.differing(weights(result), plain.plain_loop(adam)) == []
