"""`import psl_flower`: its names, the map in its docstring, and that it loads nothing heavy."""

import ast
import inspect
import json
import subprocess
import sys
import textwrap

import pytest
import typer

import psl_flower
from psl_flower.cli.main import COMMANDS, main, make_app
from tests.paths import ROOT

PACKAGE = ROOT / "psl_flower"
HEAVY = {"datasets", "flwr", "onnx", "ray", "sklearn", "torch"}


def section(title):
    """Return a section of the docstring, by the title above its underline."""
    _, _, rest = psl_flower.__doc__.partition(f"\n{title}\n---")
    assert rest, title
    return rest.split("\n---")[0]


def test_there_are_public_names():
    assert len(psl_flower.__all__) > 10
    assert psl_flower.__all__ == sorted(set(psl_flower.__all__))
    assert set(dir(psl_flower)) == set(psl_flower.__all__)


@pytest.mark.parametrize("name", psl_flower.__all__)
def test_a_public_name_resolves_and_is_documented(name):
    found = getattr(psl_flower, name)
    assert found.__name__ == name
    assert found.__module__.startswith("psl_flower.")
    assert len(inspect.getdoc(found) or "") > 40
    assert name in section("Tasks").partition("For example")[0], "no task names it"


def test_a_type_checker_sees_the_same_names():
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    assert sorted(alias.asname for node in block.body for alias in node.names) == psl_flower.__all__


def test_the_map_names_every_room():
    on_disk = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    rows = [line.split()[0] for line in section("Rooms").splitlines() if "  " in line and not line.startswith("=")]
    assert len(rows) > 15
    assert sorted(rows) == sorted(on_disk - {"__init__"})


def test_the_example_trains(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PSL_WORKSPACE", str(tmp_path))
    example = section("Tasks").partition("::\n")[2].partition("\nRooms")[0]
    exec(textwrap.dedent(example), {})
    assert float(capsys.readouterr().out) > 0.2  # ten classes


@pytest.mark.parametrize(
    ("code", "least"),
    [
        ("import psl_flower", 1),
        ("import psl_flower; psl_flower.RunConfig, psl_flower.PslError", 5),
        ("from psl_flower.cli.main import main; assert main(['settings', '--help']) == 0", 10),
    ],
)
def test_nothing_heavy_is_loaded(code, least):
    modules = loaded_by(code)
    assert len([name for name in modules if name.startswith("psl_flower")]) >= least
    assert not {name.split(".")[0] for name in modules} & HEAVY


def test_the_list_of_commands_loads_none_of_them_and_says_what_they_say(capsys):
    modules = loaded_by("from psl_flower.cli.main import main; assert main(['--help']) == 0")
    assert not modules & ({f"psl_flower.cli.{module}" for module in COMMANDS.values()} | {"numpy", "rich.console"})
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    whole = typer.main.get_command(make_app())
    assert shown == whole.get_help(whole.make_context("psl", ["train"], resilient_parsing=True)) + "\n"


def test_a_command_loads_no_other():
    modules = loaded_by("from psl_flower.cli.main import main; assert main(['runs', '--help']) == 0")
    assert "psl_flower.cli.runs" in modules
    assert not modules & {f"psl_flower.cli.{module}" for module in set(COMMANDS.values()) - {"runs"}}


def loaded_by(code):
    """Return the names of the modules that a fresh process has loaded after some code."""
    code += "; import json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))
