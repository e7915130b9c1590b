"""Where parties give private ids, the server sees, keeps and is told no id and no key; only digests under the key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from psl_flower.errors import PslError
from psl_flower.split import PartySide, pseudonyms
from psl_flower.wire import connection
from tests import plain_split as plain
from tests.parties_in_process import over_nodes
from tests.security.test_labels_elsewhere import Watched, held

pytestmark = pytest.mark.usefixtures("one_thread", "answered_soon")

ADAM = torch.optim.Adam
KEY = b"7f1c0b5e2d9a4836-of-the-hospitals"
IDS = [f"Somebody-{number:04}" for number in range(plain.NUM_SAMPLES)]


def shown(data: bytes) -> list[bytes]:
    """Return ids, in any case, and the key, as bytes or hexadecimal digits, that are in there."""
    return [*re.findall(rb"somebody-?[0-9]{4}", data.lower()), *[form for form in forms(KEY) if form in data]]


def forms(key: bytes) -> list[bytes]:
    return [key, key.hex().encode(), repr(key).encode()]


def seen(folder: Path, monkeypatch: pytest.MonkeyPatch, transport: str, **changes: Any) -> bytes:
    """Train; return all that was carried, that the server's folder has, and that it holds in memory."""
    streamed, encode = bytearray(), connection.encode_frame

    def noting(*arguments: Any) -> Any:
        buffers = encode(*arguments)
        streamed.extend(b"".join(buffers))
        return buffers

    def party(name: str, context: Any) -> PartySide:
        return PartySide(plain.net(name), plain.columns()[name], ADAM, ids=IDS, id_key=KEY)

    monkeypatch.setattr(connection, "encode_frame", noting)
    grid = Watched(party, folder / "nodes")
    told = {"epochs": 1, "transport": transport, "workdir": folder / "server", "ids": pseudonyms(IDS, KEY)} | changes
    strategy = over_nodes(**told)
    result = grid.fit(strategy)
    kept = b"".join(path.read_bytes() for path in (folder / "server").rglob("*") if path.is_file())
    assert len(grid.carried) > 1_000
    assert len(kept) > 1_000
    return bytes(grid.carried) + bytes(streamed) + kept + held([strategy, result])


@pytest.mark.parametrize("transport", ["stream", "flower"])
def test_the_server_sees_no_id_and_no_key(
    transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = seen(tmp_path, monkeypatch, transport)
    assert shown(data + caplog.text.encode()) == []
    digest = bytes.fromhex(pseudonyms(IDS[:1], KEY)[0].rpartition("-")[2])
    assert digest in data, "the search looks where digests are"


def test_the_search_finds_what_a_server_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = seen(tmp_path, monkeypatch, "stream", metrics={IDS[3]: lambda outputs, targets: 1.0})
    assert b"somebody-0003" in shown(data)
    assert shown(KEY.hex().encode())


def test_an_error_shows_no_id(tmp_path: Path) -> None:
    def party(name: str, context: Any) -> PartySide:
        ids = [*IDS[:-1], IDS[0].upper()] if name == "fare" else IDS
        return PartySide(plain.net(name), plain.columns()[name], ADAM, ids=ids, id_key=KEY)

    grid = Watched(party, tmp_path / "nodes")
    with pytest.raises(PslError, match="party 'fare': the ids of rows 0 and 59 are the same") as caught:
        grid.fit(over_nodes(workdir=tmp_path / "server", ids=pseudonyms(IDS, KEY), node_timeout_s=5.0))
    assert shown(str(caught.value).encode() + bytes(grid.carried)) == []
