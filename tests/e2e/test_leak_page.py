"""The page of `psl leak` in a real browser: from file://, at desktop and telephone width."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from psl_flower.leakage.complete import Pictures
from psl_flower.leakage.page import render
from psl_flower.leakage.report import CODES, QUERY, WEIGHTS
from tests.e2e.browser import at_both_widths, needs_browser
from tests.unit.leaks import finding, found_by

pytest.importorskip("playwright", reason="extra dev is not installed")

MEASURE = """({
  rows: [...document.querySelectorAll("figure img")].map(row => [row.naturalWidth, row.getBoundingClientRect().width]),
})"""


@needs_browser
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    report = found_by(
        finding(CODES, 0.3, 0, QUERY), finding(CODES, 0.4, 0, QUERY, 5), finding(CODES, 0.5, 0.1, WEIGHTS, 5)
    )
    page = tmp_path / "page.html"
    page.write_text(render(report, [Pictures(title, torch.rand(8, 3, 32, 32)) for title in ("originals", "5 looks")]))
    for width, found in at_both_widths(page, MEASURE):
        assert [natural for natural, _ in found["rows"]] == [8 * 32 * 3] * 2
        assert all(0.85 * min(width, 768) <= shown <= width for _, shown in found["rows"])
