"""Sealing and inspecting leave no copy of the images in the clear, wherever the libraries keep theirs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from psl_flower.cli.main import main
from psl_flower.data.sources import open_dataset
from psl_flower.sealed import keyfile
from psl_flower.sealed.identities import Identity, Role
from tests.paths import ROOT
from tests.unit.tiny_pictures import colour, encode

IMAGES = [encode(colour(level, (16, 16))) for level in range(0, 240, 10)]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a home in which the library's cache lies, too."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "home" / "cache")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture(params=["parquet", "arrow"])
def tables(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    import pyarrow as pa
    from pyarrow import parquet

    rows = pa.table({"image": IMAGES, "label": [number % 2 for number in range(len(IMAGES))]})
    (tmp_path / "tables").mkdir()
    if request.param == "parquet":
        parquet.write_table(rows, tmp_path / "tables" / "train.parquet")
    else:
        with pa.ipc.new_stream(str(tmp_path / "tables" / "train.arrow"), rows.schema) as writer:
            writer.write_table(rows)
    return str(tmp_path / "tables")


def copies(home: Path) -> list[Path]:
    files = [path for path in home.rglob("*") if path.is_file()] if home.exists() else []
    return [path for path in files if any(image in path.read_bytes() for image in IMAGES)]


def seal(tables: str, out: Path) -> int:
    keys = out.parent / "keys"
    if not keys.exists():
        keyfile.save(Identity.generate(Role.OWNER, "owner"), keys / "owner.key")
        for name in "ab":
            keyfile.save(Identity.generate(Role.NODE, name), keys / f"{name}.key")
    arguments = ["ingest", tables, "--out", str(out), "--owner-key", str(keys / "owner.key")]
    return main([*arguments, "--node-key", str(keys / "a.key.pub"), "--node-key", str(keys / "b.key.pub")])


def test_sealing_removes_also_what_a_training_has_kept(home: Path, tables: str, tmp_path: Path) -> None:
    open_dataset(tables)
    (kept,) = copies(home)
    assert kept.stat().st_uid == os.geteuid()
    assert any(folder.stat().st_mode & 0o077 == 0 for folder in kept.parents), "others can read it"
    assert seal(tables, tmp_path / "sealed") == 0
    assert copies(home) == []


def test_inspecting_keeps_none(home: Path, tables: str) -> None:
    assert main(["inspect", tables, "--all"]) == 0
    assert copies(home) == []


KILLED = """
import datasets, os, signal, sys
from psl_flower.data import sources
from psl_flower.data.copies import no_copies_kept
datasets.config.HF_DATASETS_CACHE = sys.argv[2]
with no_copies_kept():
    sources.open_dataset(sys.argv[1])
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_command_leaves_is_removed_by_the_next(home: Path, tables: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, tables, str(home / "cache")], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(copies(home)) == 1
    assert main(["inspect", tables]) == 0
    assert copies(home) == []
