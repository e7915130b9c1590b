"""A sealed store on another machine: read over HTTP, record by record, by the node that it is sealed to."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from psl_flower.config import RunConfig
from psl_flower.errors import PatchServerLost, RecordDamaged, StoreNotFound, TruncatedFile, WrongNodeKey
from psl_flower.sealed.keyring import KeyRing
from psl_flower.sealed.url_folder import UrlFolder
from psl_flower.stores.opening import open_store
from psl_flower.stores.prepare import prepare_stores
from psl_flower.stores.store_set import StoreSet
from tests.web_server import server

SAMPLES = np.array([5, 39, 0, 17, 58])


@pytest.fixture
def stores(tmp_path: Path) -> StoreSet:
    config = RunConfig.of(dataset="digits", max_train=40, max_test=20, uppers=2, workspace=str(tmp_path))
    return prepare_stores(config)


@pytest.fixture
def url(stores: StoreSet) -> Iterator[str]:
    with server("127.0.0.1", 0, str(stores.folder)) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{web.server_address[1]}"
        web.shutdown()
        thread.join()


def test_a_store_is_read_over_http(stores: StoreSet, url: str, tmp_path: Path) -> None:
    near, far = stores.open(1), open_store(f"{url}/store-001", KeyRing(tmp_path / "keys" / "node-001.key"))
    assert far.meta == near.meta
    np.testing.assert_array_equal(far.read(SAMPLES), near.read(SAMPLES))
    assert near.read(SAMPLES).any()
    with pytest.raises(WrongNodeKey):
        open_store(f"{url}/store-001", KeyRing(tmp_path / "keys" / "lower.key"))
    with pytest.raises(StoreNotFound):
        open_store(f"{url}/store-002", KeyRing(tmp_path / "keys"))


def test_a_record_changed_on_the_far_side_is_noticed(stores: StoreSet, url: str, tmp_path: Path) -> None:
    far = open_store(f"{url}/store-000", KeyRing(tmp_path / "keys" / "node-000.key"))
    far.read(SAMPLES)
    (segment,) = stores.store_path(0).glob("epoch-*-segment-*.psl")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1  # of a record: digests follow the records
    segment.write_bytes(data)
    with pytest.raises(RecordDamaged):
        far.read(np.arange(len(far)))


def test_a_file_cut_or_removed_on_the_far_side_is_noticed(stores: StoreSet, url: str, tmp_path: Path) -> None:
    far = open_store(f"{url}/store-000", KeyRing(tmp_path / "keys" / "node-000.key"))
    (segment,) = stores.store_path(0).glob("epoch-*-segment-*.psl")
    os.truncate(segment, 1000)
    with pytest.raises(TruncatedFile):
        far.read(np.arange(len(far)))
    segment.unlink()
    with pytest.raises(StoreNotFound):
        far.read(SAMPLES)


def test_a_folder_is_listed_over_http(stores: StoreSet, url: str) -> None:
    (stores.store_path(0) / "a stranger's & other.txt").touch()
    near = sorted(path.name for path in stores.store_path(0).iterdir())
    assert len(near) > 2
    for end in ("", "/"):
        assert [unquote(name) for name in UrlFolder(f"{url}/store-000{end}").list()] == near
    assert UrlFolder(f"{url}/store-002").list() == []


def test_a_server_that_is_gone_is_one_error(stores: StoreSet, tmp_path: Path) -> None:
    with pytest.raises(PatchServerLost, match="127.0.0.1"):
        open_store("http://127.0.0.1:9/store-000", KeyRing(tmp_path / "keys"))
