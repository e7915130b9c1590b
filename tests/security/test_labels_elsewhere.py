"""Where a party has the labels, nothing that the server sends, gets, keeps or holds contains one."""

from __future__ import annotations

import struct
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from torch import nn

from psl_flower.errors import PslError
from psl_flower.flower import SplitLearning
from psl_flower.split import LabelSide, PartySide
from psl_flower.wire import connection
from tests import plain_split as plain
from tests.parties_in_process import PartiesGrid

pytestmark = pytest.mark.usefixtures("one_thread", "answered_soon")

# Numbers that nothing else in the training has; some are of training samples, some of the evaluation's.
LABELS = torch.randn(plain.NUM_SAMPLES, generator=torch.Generator().manual_seed(77))
ADAM = torch.optim.Adam


def labels_in(data: bytes) -> list[int]:
    """Return which labels are in there, as single or double precision in either byte order, or as text."""
    found = []
    for number, value in enumerate(LABELS.tolist()):
        forms = [struct.pack(form, value) for form in ("<f", ">f", "<d", ">d")]
        if any(form in data for form in [*forms, repr(value).encode()]):
            found.append(number)
    return found


class Watched(PartiesGrid):
    """Keeps all that Flower's messages carry, in either direction."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.carried = bytearray()
        self.on_message = self.note

    def note(self, message: Message) -> None:
        for record in message.content.config_records.values():
            for value in record.values():
                self.carried += value if isinstance(value, bytes) else str(value).encode()
        for arrays in message.content.array_records.values():
            for array in arrays.values():
                self.carried += array.data

    def pull_messages(self, message_ids: Any) -> Any:
        replies = super().pull_messages(message_ids)
        for reply in replies:
            self.note(reply)
        return replies


def held(root: object) -> bytes:
    """Return all numbers and texts that an object holds, through containers, attributes and closures."""
    seen: set[int] = set()
    waiting, found = [root], bytearray()
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, type | types.ModuleType):
            continue
        seen.add(id(each))
        if isinstance(each, torch.Tensor):
            found += each.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        elif isinstance(each, np.ndarray):
            found += each.tobytes()
        elif isinstance(each, int | float | str | bytes):
            found += each if isinstance(each, bytes) else repr(each).encode()
        elif isinstance(each, dict):
            waiting += [*each.keys(), *each.values()]
        elif isinstance(each, list | tuple | set | frozenset):
            waiting += each
        else:
            waiting += [*vars(each).values()] if hasattr(each, "__dict__") else []
            waiting += [getattr(each, name) for name in getattr(each, "__slots__", ()) if hasattr(each, name)]
            waiting += [cell.cell_contents for cell in getattr(each, "__closure__", None) or ()]
    return bytes(found)


def trained(
    folder: Path, monkeypatch: pytest.MonkeyPatch, transport: str, metrics: Any = None, *, elsewhere: bool = True
) -> tuple[bytes, bytes, bytes]:
    """Train; return what was carried, what the server's folder has, and what the server holds in memory."""
    data, streamed, encode = plain.columns(), bytearray(), connection.encode_frame

    def noting(*arguments: Any) -> Any:
        buffers = encode(*arguments)
        streamed.extend(b"".join(buffers))
        return buffers

    def party(name: str, context: Any) -> Any:
        if name == "clinic":
            return LabelSide(nn.Linear(1, 1), LABELS[:, None], nn.functional.mse_loss, ADAM, metrics or {})
        return PartySide(plain.net(name), data[name], ADAM)

    class Top(plain.Top):
        def forward(self, *outputs: torch.Tensor) -> torch.Tensor:
            return super().forward(*outputs)[:, None]

    monkeypatch.setattr(connection, "encode_frame", noting)
    mine = {"labels": LABELS[:, None], "loss": nn.functional.mse_loss, "metrics": metrics or {}}
    names = [*plain.PARTIES, *(["clinic"] if elsewhere else [])]
    grid = Watched(party, folder / "nodes", names)
    strategy = SplitLearning(
        Top, plain.PARTIES, train=plain.TRAIN, valid=plain.VALID, optimizer=ADAM, transport=transport,
        workdir=folder / "server", node_timeout_s=20.0, **({"labels": "clinic"} if elsewhere else mine),
        **(plain.SETTINGS | {"epochs": 2}),
    )  # fmt: skip
    result = grid.fit(strategy)
    kept = b"".join(path.read_bytes() for path in (folder / "server").rglob("*") if path.is_file())
    assert (len(streamed) > 10_000) == (transport == "stream")
    assert len(grid.carried) > 1_000
    assert len(kept) > 1_000
    return bytes(grid.carried + streamed), kept, held([strategy, result])


@pytest.mark.parametrize("transport", ["stream", "flower"])
def test_the_server_sees_no_label(transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carried, kept, memory = trained(tmp_path, monkeypatch, transport)
    assert labels_in(carried) == []
    assert labels_in(kept) == []
    assert labels_in(memory) == []


def test_the_search_finds_labels_of_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, memory = trained(tmp_path, monkeypatch, "stream", elsewhere=False)
    assert labels_in(memory) == list(range(plain.NUM_SAMPLES))


def first_label(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    return float(targets[0])


def telling(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    raise ValueError(f"{float(targets[0])!r} is out of range")


@pytest.mark.parametrize("transport", ["stream", "flower"])
def test_the_words_of_an_error_stay_at_the_party(
    transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(PslError, match="raised ValueError; its words, which may tell a label") as caught:
        trained(tmp_path, monkeypatch, transport, {"first": telling})
    assert labels_in(str(caught.value).encode()) == []
    log = "".join(path.read_text() for path in (tmp_path / "server").rglob("*") if path.suffix in (".txt", ".jsonl"))
    assert labels_in(log.encode()) == []
    assert labels_in(caplog.text.encode()) == [plain.VALID[0]], "the party's own log has them"


FOUND: dict[str, Callable[[tuple[bytes, bytes, bytes]], bytes]] = {
    "in what is carried": lambda seen: seen[0],
    "in its folder": lambda seen: seen[1],
}


@pytest.mark.parametrize("transport", ["stream", "flower"])
def test_the_search_finds_a_label_that_a_metric_gives_away(
    transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = trained(tmp_path, monkeypatch, transport, {"first": first_label})
    for where in FOUND.values():
        assert labels_in(where(seen)) == [plain.VALID[0]]
