"""Who may import whom (docs/architecture.md), from the source and from a fresh process."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

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


FORBIDDEN = [
    ("psl_flower/errors.py", "from psl_flower.config import RunConfig", "The rooms"),
    ("psl_flower/wire/frames.py", "from psl_flower.engine.round_driver import RoundDriver", "The rooms"),
    ("psl_flower/sealed/store.py", "from psl_flower.stores.opening import open_store", "The rooms"),
    ("psl_flower/stores/prepare.py", "from psl_flower.runs.folder import RunFolder", "The rooms"),
    ("psl_flower/engine/lower.py", "import flwr", "The core knows no Flower"),
    ("psl_flower/launch/running.py", "import ray", "The core knows no Flower"),
    ("psl_flower/split/engines.py", "import flwr", "The core knows no Flower"),
    ("psl_flower/split/engines.py", "from psl_flower.flower.link import NodeLink", "The rooms"),
    ("psl_flower/cli/main.py", "from psl_flower.flower import SplitLearning", "The rooms"),
    ("psl_flower/flower/link.py", "from strategies import PatchSplit", "The folders"),
    ("clients/host.py", "from strategies import PatchSplit", "Clients know no strategy"),
    ("clients/host.py", "from server import app", "The folders"),
    ("server/app.py", "from clients import host", "The folders"),
    ("psl_flower/errors.py", "from simulations import tables", "The folders"),
]

MODULES = sorted(path for folder in ALLOWED for path in (ROOT / folder).rglob("*.py"))


def test_there_are_modules_to_walk():
    names = {path.relative_to(ROOT).parts[0] for path in MODULES}
    assert names >= {"psl_flower", "strategies", "clients", "server"}
    assert len(MODULES) > 50
    # The walk sees what it must see.
    assert "flwr" in imports(ROOT / "psl_flower" / "flower" / "rounds.py")


def test_a_forbidden_import_breaks_a_contract(tmp_path):
    """The contracts of pyproject.toml hold as things are, and each of these imports breaks the one that is named."""
    for folder in ALLOWED:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    assert lint(tmp_path) == (0, [])
    for module, line, contract in FORBIDDEN:
        path = tmp_path / module
        kept = path.read_text("utf-8")
        path.write_text(f"{kept}\n{line}\n", "utf-8")
        status, broken = lint(tmp_path)
        path.write_text(kept, "utf-8")
        assert status == 1, module
        assert any(name.startswith(contract) for name in broken), (module, broken)


def lint(folder):
    """Return import-linter's exit status in a folder, and the names of the contracts that are broken."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(folder)}
    )
    # A contract that allows for exceptions says how many behind it.
    return done.returncode, re.findall(r"^(.*) BROKEN(?: \(\d+ ignored imports\))?$", done.stdout, re.MULTILINE)


def test_benchmarks_share_modules_and_do_not_import_one_another():
    benchmarks = {"throughput", "sealed_cost", "chaos", "separate_hosts", "compare", "grid_choice", "lightening"}
    benchmarks |= {"first_model", "reading", "recipe", "leakage", "seams", "vertical"}
    found = {path.stem for path in (ROOT / "simulations").glob("*.py") if "sys.exit(main())" in path.read_text("utf-8")}
    found |= {path.parent.name for path in (ROOT / "simulations").glob("*/__main__.py")}
    assert found - {"quoting"} == benchmarks
    # Throughput between hosts is measured against the throughput benchmark's own opponent; a light model's reference is
    # trained as the comparison trains it; the federation that chaos disturbs is deployed on separate hosts.
    also = {"separate_hosts": {"throughput"}, "lightening": {"compare"}, "chaos": {"separate_hosts"}}
    for path in (ROOT / "simulations").rglob("*.py"):
        own = path.relative_to(ROOT / "simulations").parts[0].removesuffix(".py")
        # Only the page tells of all of them.
        if own != "page":
            assert own in benchmarks or path.parent.name == "simulations"
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
    code = "import sys, psl_flower.engine.build, psl_flower.engine.streams, psl_flower.split; "
    code += "print(sorted({name.split('.')[0] for name in sys.modules} & {'flwr', 'ray', 'strategies', 'server'}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"
