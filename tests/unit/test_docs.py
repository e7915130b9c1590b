"""README and docs name only what exists: modules, functions, files, links; docs/architecture.md names every room."""

import importlib
import re
import tomllib
from xml.etree import ElementTree

import pytest
import typer
import yaml

import psl_flower
from psl_flower.cli.main import make_app
from tests.paths import ROOT

FOLDERS = ("psl_flower", "strategies", "clients", "server", "simulations")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
DOTTED = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})(?:\.[A-Za-z_]\w*)+")
# Files of a deployment, which deploy.md has beside modules of the same beginning.
FILES = {"server.pem", "server.key", "server.crt"}
PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)}|tests|deploy|docs)/[\w./-]*")
COMMAND = re.compile(r"(?<![\w/.:-])psl ([a-z][a-z-]*)([^`;&#\n]*)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
SOURCE = "\n".join(
    path.read_text("utf-8")
    for folder in (*FOLDERS, "tests")
    for path in (ROOT / folder).rglob("*.py")
    if path.name != "test_docs.py"
)
WORDS = set(re.findall(r"\w+", SOURCE + (ROOT / "pyproject.toml").read_text("utf-8")))


def text_of(name):
    return (ROOT / name).read_text("utf-8")


def exists(dotted):
    """Return whether a dotted name is a module, or an attribute of one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            # Attributes that only instances have are not looked for.
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def paths_in(text):
    """Yield the paths of the repository that a text names; those with a placeholder such as NAME are not."""
    for found in PATH.findall(text):
        path = found.rstrip("./-")
        if not re.search(r"[A-Z]{3}", path):
            yield path


def commands_in(text):
    """Yield (command, its arguments) of every `psl ...` in code: between backticks, or indented."""
    text = re.sub(r"\\\n\s*", " ", text)
    code = re.findall(r"`([^`]+)`", text) + re.findall(r"^    .*$", text, re.MULTILINE)
    for piece in code:
        yield from COMMAND.findall(" ".join(piece.split()))


def anchors(text):
    """Return the anchors that a forge makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.replace("`", "").lower()).replace(" ", "-") for heading in headings}


def test_there_are_pages_and_names():
    assert {"README.md", "docs/architecture.md", "docs/deploy.md"} <= set(NAMES)
    everything = "\n".join(map(text_of, NAMES))
    assert len(set(DOTTED.findall(everything))) > 15
    assert len(set(paths_in(everything))) > 30
    assert len(set(commands_in(everything))) > 40


@pytest.mark.parametrize("name", NAMES)
def test_a_page_names_no_module_that_is_gone(name):
    dotted = set(DOTTED.findall(text_of(name))) - FILES
    assert sorted(wrong for wrong in dotted if not exists(wrong)) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_page_names_no_file_that_is_gone(name):
    assert sorted(path for path in set(paths_in(text_of(name))) if not (ROOT / path).exists()) == []


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    for target in LINK.findall(text_of(name)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        page = (ROOT / name).parent / path if path else ROOT / name
        assert page.exists(), target
        if anchor:
            assert anchor in anchors(page.read_text("utf-8")), target


@pytest.mark.parametrize("name", [name for name in NAMES if name != "CHANGELOG.md"])
def test_commands_options_and_settings_exist(name):
    known = typer.main.get_command(make_app()).commands
    settings = tomllib.loads(text_of("pyproject.toml"))["tool"]["flwr"]["app"]["config"].keys()
    for command, arguments in commands_in(text_of(name)):
        assert command in known, f"psl {command}"
        options = {option for parameter in known[command].params for option in parameter.opts}
        assert set(re.findall(r"(?<!\S)--[a-z-]+", arguments)) <= options | {"--help"}, (command, arguments)
        if command == "train":
            keys = re.findall(r"(?<!\S)([a-z][a-z-]*)=", arguments)
            assert set(keys) <= settings, arguments


def test_names_that_are_gone_are_found():
    assert exists("psl_flower.models.split.PatchSplitNet") and exists("strategies.PatchSplit")
    assert not exists("psl_flower.monolith") and not exists("psl_flower.engine.lower.Monolith")
    assert list(paths_in("see psl_flower/models.py, docs/results/NAME.json and tests/unit.")) == [
        "psl_flower/models.py", "tests/unit",
    ]  # fmt: skip
    assert list(commands_in("Not psl so, but `psl train x=1` and\n\n    node$ psl doctor --json # says\n")) == [
        ("train", " x=1"), ("doctor", " --json "),
    ]  # fmt: skip
    assert anchors("## What each can learn\n### `grid=auto`, why\n") == {"what-each-can-learn", "gridauto-why"}


def test_the_architecture_names_what_is_in_the_code():
    words = set(re.findall(r"`(\w+)`", text_of("docs/architecture.md")))
    assert len(words) > 30
    assert sorted(words - WORDS - set(FOLDERS)) == []


def test_the_picture_and_the_page_have_every_room_in_order():
    contracts = tomllib.loads(text_of("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["id"] == "rooms"]
    rooms = [room.strip() for layer in layers for room in layer.split("|")]
    assert len(rooms) > 15
    picture = ElementTree.fromstring(text_of("docs/architecture.svg"))
    drawn = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert [text for text in drawn if text in rooms] == rooms
    assert set(FOLDERS[1:]) <= set(drawn)
    described = set(re.findall(r"\*\*(\w+)\*\*", text_of("docs/architecture.md")))
    assert {*rooms, *FOLDERS[1:]} <= described


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load(text_of("CITATION.cff"))
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    assert citation["version"] == project["version"] == psl_flower.__version__
    assert citation["license"] == project["license"]
    assert {reference["type"] for reference in citation["references"]} == {"conference-paper", "patent"}
    for entry in (citation, *citation["references"]):
        assert entry["title"] and entry["authors"]


CLAIMS = re.findall(
    r"^\| .* \| `(tests/\S+\.py)::(test_\w+)` \|$", (ROOT / "docs/threat-model.md").read_text(), re.MULTILINE
)


@pytest.mark.parametrize(("path", "test"), CLAIMS)
def test_a_claim_of_the_threat_model_names_the_test_that_attacks_it(path, test):
    assert len(CLAIMS) > 15
    assert f"def {test}(" in (ROOT / path).read_text()


def test_every_row_of_the_claims_names_a_test():
    _, _, table = (ROOT / "docs/threat-model.md").read_text().partition("| claim |")
    rows = [line for line in table.partition("\n\n")[0].splitlines()[2:] if line.startswith("|")]
    assert len(rows) == len(CLAIMS)
