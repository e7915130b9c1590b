"""The documentation site: it builds without a warning, has every setting, command and public name, and shows that."""

import html
import os
import re
import shutil
import subprocess
import sys

import pytest

import psl_flower
from psl_flower.cli.main import make_app
from psl_flower.config.fields import fields_of
from psl_flower.kinds import setting_groups
from tests.paths import ROOT

pytest.importorskip("sphinx", reason="the extra docs is not installed")


def build(docs, site):
    # The notebook is executed by `make docs` alone.
    off = ["-D", "nb_execution_mode=off"]
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", *off, "-b", "html", docs, site]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=280, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )


@pytest.fixture(scope="module")
def docs(tmp_path_factory):
    return shutil.copytree(
        ROOT / "docs", tmp_path_factory.mktemp("site") / "docs", ignore=shutil.ignore_patterns("reference", "results")
    )


@pytest.fixture(scope="module")
def site(docs):
    done = build(docs, docs.parent / "site")
    assert done.returncode == 0, done.stderr
    return docs.parent / "site"


def words_of(page):
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text("utf-8")))


def test_every_setting_command_and_name_is_there(site):
    settings = words_of(site / "reference" / "settings.html")
    assert not [f.key for group in setting_groups().values() for f in fields_of(group) if f.key not in settings]
    commands = words_of(site / "reference" / "commands.html")
    assert not [info.name for info in make_app().registered_commands if f"psl {info.name}" not in commands]
    names = words_of(site / "reference" / "python.html")
    assert not [name for name in psl_flower.__all__ if f"psl_flower.{name}" not in names]


def test_every_page_can_be_reached(docs, site):
    pages = {page.relative_to(docs).with_suffix("").as_posix() for page in docs.rglob("*.md")}
    start = (site / "index.html").read_text("utf-8")
    assert not [page for page in pages - {"index"} if f'href="{page}.html"' not in start]


def test_marks_in_a_meaning_are_shown(site):
    assert "*.nef,notes/*" in words_of(site / "reference" / "settings.html")


def test_a_broken_link_fails(docs, site):
    page = docs / "index.md"
    page.write_text(page.read_text("utf-8") + "\n[nowhere](no-such-page.md)\n", "utf-8")
    done = build(docs, docs.parent / "broken")
    assert done.returncode and "no-such-page" in done.stderr
