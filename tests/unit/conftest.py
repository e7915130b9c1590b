"""Fixtures that several files of unit tests share."""

import os
import socket

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from psl_flower.config import RunConfig
from tests.authority import Authority
from tests.unit.tiny_pictures import make_pictures


@pytest.fixture
def pictures(tmp_path):
    return make_pictures(tmp_path / "My Pictures")


@pytest.fixture(scope="session")
def datasets():
    """Return the library that reads hub datasets and parquet files, without its progress bars."""
    import datasets

    datasets.disable_progress_bars()
    return datasets


@pytest.fixture
def plain(stores_for):
    """Return a set of two plain stores."""
    return stores_for(RunConfig.of(max_train=8, max_test=4, uppers=2))


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def closed_folder(tmp_path):
    """Return a folder that the test, which is not root while it runs, may not look into."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o000)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    folder.chmod(0o700)


@pytest.fixture
def closed_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take it
        yield f"127.0.0.1:{sock.getsockname()[1]}"


@pytest.fixture
def parquet(tmp_path, datasets, monkeypatch):
    """Return a writer of plain parquet files, without the library's notes on columns: parquet(train={...})."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(**splits):
        folder = tmp_path / "tables"
        folder.mkdir(exist_ok=True)
        for split, columns in splits.items():
            pq.write_table(pa.table(columns), folder / f"{split}.parquet", compression="none")
        return str(folder)

    return write
