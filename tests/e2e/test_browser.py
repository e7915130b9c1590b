"""The check of pages itself: what is wrong with a page must fail it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.browser import at_both_widths, needs_browser

pytest.importorskip("playwright", reason="extra dev is not installed")

_SIZED = '<meta name="viewport" content="width=device-width">'


@needs_browser
@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "<script>console.log('said')</script>",
        "<script>throw new Error('thrown')</script>",
        "<img src='other.png'>",
        "<p style='width: 600px'>wide",
    ],
    ids=["nothing", "logs", "throws", "fetches", "too wide"],
)
def test_what_is_wrong_with_a_page_fails_it(tmp_path: Path, wrong: str) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html>{_SIZED}<p>text</p>{wrong}")
    if not wrong:
        assert [text for _, text in at_both_widths(page, "document.body.innerText")] == ["text", "text"]
    else:
        with pytest.raises(AssertionError):
            list(at_both_widths(page, "1"))
