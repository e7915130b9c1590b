"""The documentation site, for Sphinx: `make docs`. The reference pages are written from the code."""

from __future__ import annotations

import re
from pathlib import Path

import click
import typer
from sphinx.application import Sphinx
from typer.cli import get_docs_for_click

import psl_flower
from psl_flower.cli.main import make_app
from psl_flower.config.fields import defaults, fields_of
from psl_flower.kinds import setting_groups

project = "psl-flower"
release = psl_flower.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["results"]
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
html_theme = "furo"
html_title = project
myst_heading_anchors = 4
napoleon_google_docstring = False
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings have the types
# Docstrings are plain text with names in single backquotes.
default_role = "code"
copybutton_exclude = ".linenos, .gp"
suppress_warnings = ["misc.highlighting_failure"]


def settings_page() -> str:
    """Return a table for each group of settings."""
    lines = [
        "# Settings",
        "",
        "Give them as `psl train KEY=VALUE`, or in `flwr run . --run-config 'key=\"value\"'`; also `psl settings`.",
    ]
    for name, group in setting_groups().items():
        shown = defaults(group)
        lines += ["", f"## {name.capitalize()}", "", "| setting | default | meaning |", "| --- | --- | --- |"]
        for field in fields_of(group):
            choices = ", ".join(f"`{choice}`" for choice in field.about.choices if choice)
            meaning = field.about.doc + (f" ({choices})" if choices else "")
            default = shown[field.key]
            text = str(default).lower() if isinstance(default, bool) else str(default)
            lines.append(f"| `{field.key}` | {f'`{text}`' if text else ''} | {_literal(meaning)} |")
    return "\n".join(lines) + "\n"


def _literal(text: str) -> str:
    """Escape the characters that a cell of a table in Markdown would take for marks."""
    return re.sub(r"([*_|<])", r"\\\1", text)


def commands_page() -> str:
    """Return the help of all commands."""
    command = typer.main.get_command(make_app())
    return get_docs_for_click(obj=command, ctx=click.Context(command, info_name="psl"), name="psl", title="Commands")


def python_page() -> str:
    """Return directives that show each public name's docstring."""
    lines = ["# Python", "", "`import psl_flower` has these names; importing it loads no torch.", ""]
    for name in psl_flower.__all__:
        kind = "autoclass" if isinstance(getattr(psl_flower, name), type) else "autofunction"
        members = "   :members:\n" if kind == "autoclass" else ""
        lines += [f"## {name}", "", f"```{{eval-rst}}\n.. {kind}:: psl_flower.{name}\n{members}```", ""]
    return "\n".join(lines)


def setup(app: Sphinx) -> None:
    """Write the reference pages before Sphinx looks for pages."""
    folder = Path(__file__).parent / "reference"
    folder.mkdir(exist_ok=True)
    pages = {"settings": settings_page(), "commands": commands_page(), "python": python_page()}
    for page, text in pages.items():
        path = folder / f"{page}.md"
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
