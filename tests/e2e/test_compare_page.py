"""The comparison's page in a real browser: from file://, at desktop and telephone width."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.browser import at_both_widths, needs_browser
from tests.unit.tiny_comparison import holdings, report

pytest.importorskip("matplotlib", reason="extra compare is not installed")
pytest.importorskip("playwright", reason="extra dev is not installed")

MEASURE = """({
  plots: [...document.querySelectorAll("figure svg")].map(plot => plot.getBoundingClientRect().width),
  drawn: [...document.querySelectorAll("figure svg")].every(plot => plot.querySelectorAll("path, image").length > 5),
})"""


@needs_browser
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    from simulations.compare.files import write_files

    page = write_files(tmp_path, report(), holdings())
    for width, found in at_both_widths(page, MEASURE):
        assert len(found["plots"]) == 10
        assert found["drawn"]
        # Over the whole telephone; at a desk two beside each other.
        least, most = (400, 0.6 * width) if width > 500 else (0.85 * width, width)
        assert all(least < plot <= most for plot in found["plots"])
