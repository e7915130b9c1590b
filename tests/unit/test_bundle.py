"""What `flwr run` ships: all of the app's modules and nothing else, within the limits of Flower's hub, and it imports."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from flwr.cli.utils import collect_files, filter_paths_for_publish
from flwr.common.constant import FAB_MAX_SIZE
from flwr.supercore.constant import MAX_DIR_DEPTH, MAX_FILE_BYTES, MAX_FILE_COUNT, MAX_NAME_LENGTH, MAX_TOTAL_BYTES

from tests.paths import ROOT

FOLDERS = ("psl_flower", "strategies", "clients", "server")
BESIDES = {"pyproject.toml", "README.md", "LICENSE", ".info/CONTENT"}
# `flwr run` sends the bundle, which Flower does not compress, with every run. It is our code alone, 2.1 MB of it.
MOST_BYTES = 3 * 2**20
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of this checkout without what tools have made."""
    copy = tmp_path_factory.mktemp("checkout") / "psl-flower"
    made = shutil.ignore_patterns(".git", ".venv", "__pycache__", "workspace", ".*_cache", ".hypothesis", "*.fab")
    shutil.copytree(ROOT, copy, ignore=made)
    return copy


@pytest.fixture(scope="module")
def bundle(checkout: Path) -> zipfile.ZipFile:
    """Return the bundle that Flower's own command builds."""
    command = [Path(sys.executable).with_name("flwr"), "build", "--app", checkout]
    environment = {**os.environ, "FLWR_HOME": str(checkout.parent / "flwr"), "FLWR_TELEMETRY_ENABLED": "0"}
    done = subprocess.run(
        command, cwd=checkout.parent, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = checkout.parent.glob("*.fab")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def unpacked(bundle: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    bundle.extractall(folder)
    return folder


def test_it_holds_every_module_of_the_app_and_nothing_else(bundle: zipfile.ZipFile) -> None:
    # Those on the disk, not those that git knows: a pattern of .gitignore hides from git and from Flower alike.
    modules = {path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    assert len(modules) > 150
    assert "psl_flower/runs/folder.py" in modules
    assert set(bundle.namelist()) == modules | BESIDES


def test_a_pattern_that_hides_a_room_is_noticed(checkout: Path) -> None:
    """The room psl_flower/runs was hidden so once."""
    files = {name: path for name, path in collect_files(checkout).items() if name.startswith("psl_flower/runs/")}
    assert files
    assert filter_paths_for_publish({**files, ".gitignore": b"/runs/\n"}).keys() > files.keys()
    assert filter_paths_for_publish({**files, ".gitignore": b"runs/\n"}).keys() == {".gitignore"}


def test_it_is_small(bundle: zipfile.ZipFile) -> None:
    assert bundle.filename is not None
    assert Path(bundle.filename).stat().st_size < min(MOST_BYTES, FAB_MAX_SIZE)
    assert len(bundle.namelist()) < MAX_FILE_COUNT
    assert max(info.file_size for info in bundle.infolist()) < MAX_FILE_BYTES
    assert max(len(Path(name).parts) for name in bundle.namelist()) <= MAX_DIR_DEPTH


def test_both_apps_import_from_it_alone(unpacked: Path) -> None:
    code = (
        "import sys, clients.upper_app, server.app\n"
        "for name, module in sys.modules.items():\n"
        f"    if name.split('.')[0] in {(*FOLDERS, 'simulations', 'tests')}:\n"
        "        print(name, getattr(module, '__file__', None))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=unpacked, env=environment, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    loaded = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert loaded.keys() >= {"clients.upper_app", "server.app", "psl_flower.runs.folder"}
    assert [name for name, file in loaded.items() if not file.startswith(str(unpacked))] == []


def test_the_hub_takes_the_whole_app(checkout: Path) -> None:
    """What `flwr app publish` uploads is the folder, not the bundle."""
    published = filter_paths_for_publish(collect_files(checkout))
    sizes = {name: path.stat().st_size for name, path in published.items() if isinstance(path, Path)}
    assert sizes.keys() == published.keys()
    assert {"README.md", "LICENSE", "pyproject.toml"} <= sizes.keys()
    assert len(sizes) < MAX_FILE_COUNT
    assert {name for name, size in sizes.items() if size > MAX_FILE_BYTES} == set()
    assert sum(sizes.values()) < MAX_TOTAL_BYTES
    for name in sizes:
        (checkout / name).read_text("utf-8")
    assert re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", PROJECT["name"])
    assert len(PROJECT["name"]) <= MAX_NAME_LENGTH
    assert 0 < len(PROJECT["description"]) < 200


def imported(path: Path) -> tuple[set[str], set[str]]:
    """Return the packages that a module imports when it is loaded, and all that it imports."""
    everywhere, inside = set(), set()
    tree = ast.parse(path.read_text("utf-8"))
    deferred = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) or type_checking(node)]
    for found, roots in ((everywhere, [tree]), (inside, deferred)):
        for node in (node for root in roots for node in ast.walk(root)):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                found.add(node.module.split(".")[0])
    return everywhere - inside, everywhere


def type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\s\[<>=;]", requirement)[0].lower().replace("_", "-") for requirement in requirements}


def test_all_that_its_modules_import_is_declared(unpacked: Path) -> None:
    """Flower installs `[project].dependencies` for a run; constraints.txt does not travel."""
    declared = names(PROJECT["dependencies"]) | {"ray", "uvicorn"}  # of flwr[simulation]
    assert any(requirement.startswith("flwr[simulation]") for requirement in PROJECT["dependencies"])
    optional = names([each for extra in PROJECT["optional-dependencies"].values() for each in extra])
    providers = packages_distributions()
    assert "pillow" in {name.lower() for name in providers["PIL"]}
    at_once: dict[str, Path] = {}
    ever: dict[str, Path] = {}
    for path in unpacked.rglob("*.py"):
        loaded, imports = imported(path)
        at_once |= dict.fromkeys(loaded, path)
        ever |= dict.fromkeys(imports, path)

    def missing(found: dict[str, Path], known: set[str]) -> dict[str, Path]:
        outside = {name: path for name, path in found.items() if name not in {*sys.stdlib_module_names, *FOLDERS}}
        assert "torch" in outside
        return {
            name: path
            for name, path in outside.items()
            if not {provider.lower().replace("_", "-") for provider in providers.get(name, [])} & known
        }

    assert missing(at_once, declared) == {}
    assert missing(ever, declared | optional) == {}
