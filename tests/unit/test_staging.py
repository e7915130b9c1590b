"""Flower is given a copy of the app's files, and builds the same bundle of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.cli.utils import collect_files

from psl_flower.errors import RunError
from psl_flower.launch.staging import staged
from tests.paths import ROOT

APP = """
[project]
name = "small"
version = "1.0"

[tool.flwr.app]
publisher = "someone"
fab-include = [{patterns}]

[tool.flwr.app.components]
serverapp = "small.server:app"
clientapp = "small.client:app"
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "app"
    for name in ("small/server.py", "small/client.py", "small/deep/more.py", "left/out.py", ".venv/lib/big.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"# {name}\n", "utf-8")
    (folder / ".gitignore").write_text("more.py\n", "utf-8")
    return folder


def _write(app: Path, *patterns: str) -> None:
    (app / "pyproject.toml").write_text(APP.format(patterns=", ".join(f'"{text}"' for text in patterns)), "utf-8")


def test_the_bundle_of_this_app_is_the_same_and_nothing_else_is_looked_at(tmp_path: Path) -> None:
    copy = staged(ROOT, tmp_path / "copy")
    assert copy != ROOT
    assert len(collect_files(copy)) < 400
    assert build_fab_from_disk(copy) == build_fab_from_disk(ROOT)


def test_what_git_ignores_and_links_stay_out_as_in_the_app_itself(app: Path, tmp_path: Path) -> None:
    _write(app, "/small/**/*.py")
    (app / "small" / "link.py").symlink_to(app / "left" / "out.py")
    copy = staged(app, tmp_path / "copy")
    assert collect_files(copy).keys() == {
        "pyproject.toml", ".gitignore", "small/server.py", "small/client.py", "small/deep/more.py",
    }  # fmt: skip
    assert build_fab_from_disk(copy) == build_fab_from_disk(app)


@pytest.mark.parametrize(
    "patterns",
    [
        (),
        ("*.py",),
        ("/**/*.py",),
        ("/small/",),
        ("/small",),
        ("!/small/*.py",),
        ("/small/*.py", "*.md"),
        ("/no/*.py",),
    ],
)
def test_an_app_whose_patterns_do_not_begin_at_the_top_is_not_copied(
    app: Path, patterns: tuple[str, ...], tmp_path: Path
) -> None:
    _write(app, *patterns)
    assert staged(app, tmp_path / "copy") == app
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("text", ["", "[", "[tool]\nflwr = 1\n"])
def test_a_damaged_project_is_left_to_flower(app: Path, text: str, tmp_path: Path) -> None:
    (app / "pyproject.toml").write_text(text, "utf-8")
    assert staged(app, tmp_path / "copy") == app


def test_a_disk_that_refuses_is_named(app: Path, tmp_path: Path) -> None:
    _write(app, "/small/*.py")
    (tmp_path / "copy").write_text("a file", "utf-8")
    with pytest.raises(RunError, match=r"copy.*: cannot be written: "):
        staged(app, tmp_path / "copy")
