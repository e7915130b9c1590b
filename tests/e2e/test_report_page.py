"""The page of `psl report` in a real browser: from file://, at desktop and telephone width."""

from __future__ import annotations

from pathlib import Path

import pytest

from psl_flower.runs.page import render
from psl_flower.runs.summary import Summary
from tests.e2e.browser import at_both_widths, needs_browser
from tests.unit.tiny_run import finish, make_run

pytest.importorskip("matplotlib", reason="extra plots is not installed")
pytest.importorskip("playwright", reason="extra dev is not installed")

MEASURE = """({
  plots: [...document.querySelectorAll("svg")].map(plot => plot.getBoundingClientRect().width),
  drawn: [...document.querySelectorAll("svg")].every(plot => plot.querySelectorAll("path, image").length > 5),
})"""


@needs_browser
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path, lr=0.07, protection="none")
    finish(run)
    page = tmp_path / "page.html"
    page.write_text(render(Summary.of(run)), "utf-8")
    for width, found in at_both_widths(page, MEASURE):
        assert len(found["plots"]) == 2 and found["drawn"]
        curves, confusion = found["plots"]
        assert 0.85 * min(width, 806) <= curves <= width and 200 <= confusion <= width
