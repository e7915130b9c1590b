"""Who may import whom (README, How it works), from the source and from a fresh process."""

import ast
import subprocess
import sys

import pytest

from tests.paths import ROOT

# Folder -> what it may import of ours and of Flower. Nothing may import simulations.
ALLOWED = {
    "psl_flower": {"psl_flower"},
    "strategies": {"psl_flower", "strategies", "flwr"},
    "clients": {"psl_flower", "clients", "flwr", "flwr_datasets"},
    "server": {"psl_flower", "strategies", "server", "flwr"},
    "simulations": {"psl_flower", "strategies", "clients", "server", "simulations", "flwr"},
}
WATCHED = {*ALLOWED, "flwr", "flwr_datasets", "tests"}


def imports(path):
    """Return the top-level packages that a module imports, wherever in it, also under TYPE_CHECKING."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports here are absolute"
            found.add((node.module or "").split(".")[0])
    return found


MODULES = sorted(path for folder in ALLOWED for path in (ROOT / folder).rglob("*.py"))


def test_there_are_modules_to_walk():
    names = {path.relative_to(ROOT).parts[0] for path in MODULES}
    assert names >= {"psl_flower", "strategies", "clients", "server"}
    assert len(MODULES) > 50
    # The walk sees what it must see.
    assert "flwr" in imports(ROOT / "strategies" / "patch_split.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_stay_within_their_layer(path):
    folder = path.relative_to(ROOT).parts[0]
    assert imports(path) & WATCHED <= ALLOWED[folder]


def test_benchmarks_share_modules_and_do_not_import_one_another():
    benchmarks = {path.parent.name for path in (ROOT / "simulations").glob("*/__init__.py")}
    assert benchmarks >= {
        "throughput",
        "sealed_cost",
        "chaos",
        "separate_hosts",
        "compare",
        "grid_choice",
        "lightening",
    }
    # Throughput between hosts is measured against the throughput benchmark's own opponent; a light model's reference is
    # trained as the comparison trains it.
    also = {"separate_hosts": {"throughput"}, "lightening": {"compare"}}
    for path in (ROOT / "simulations").rglob("*.py"):
        own = path.relative_to(ROOT / "simulations").parts[0]
        # Only the page tells of all of them.
        if own != "page.py":
            assert own in benchmarks or own.endswith(".py")
            assert benchmarks & parts_of_simulations(path) <= {own, *also.get(own, ())}, path


def parts_of_simulations(path):
    """Return the modules and packages of simulations that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.ImportFrom) and node.module == "simulations":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("simulations."):
            found.add(node.module.split(".")[1])
    return found


def test_flower_is_not_loaded_by_the_core():
    code = "import sys, psl_flower.engine.build, psl_flower.engine.streams, psl_flower.engine.rounds; "
    code += "print(sorted({name.split('.')[0] for name in sys.modules} & {'flwr', 'ray', 'strategies', 'server'}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"
