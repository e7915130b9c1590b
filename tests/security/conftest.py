"""What the tests of changed sealed datasets share: a tiny one, and copies of it to be damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.security.sealed_bytes import SOURCE
from tests.security.sealed_commands import make_keys
from tests.vectors.sealed_support import World


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("sealed") / "out")
    world.seal(SOURCE)
    return world


@pytest.fixture
def world(original: World, tmp_path: Path) -> World:
    """A copy to be damaged."""
    shutil.copytree(original.out, tmp_path / "out")
    return original.at(tmp_path / "out")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keys for everyone, and a memory of its own."""
    monkeypatch.setenv("PSL_STATE", str(tmp_path / "state"))
    make_keys(tmp_path)
    return tmp_path
