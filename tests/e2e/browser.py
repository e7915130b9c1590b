"""Opens a page in Debian's Chromium, driven by Playwright, and notes what goes wrong in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")
_CHROMIUM = os.environ.get("PSL_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)

needs_browser = pytest.mark.skipif(_CHROMIUM is None, reason="no Chromium: install it, or set PSL_CHROMIUM")


def at_both_widths(page: Path, measure: str) -> Iterator[tuple[int, Any]]:
    """Open a page at a desktop's and a telephone's width; yield the width and the value of a JavaScript expression.

    Asserts that nothing is wider than the page, and that the page logs, throws and fetches nothing.
    """
    for width in (1280, 390):
        with _opened(page, width) as (tab, trouble):
            # Not innerWidth, which a telephone makes as wide as what it shows.
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            found = tab.evaluate(measure)
            assert trouble == []
            yield width, found


@contextmanager
def _opened(page: Path, width: int) -> Iterator[tuple[Page, list[str]]]:
    """Give the loaded page with the list of what it logs, throws and fetches."""
    from playwright.sync_api import sync_playwright

    trouble: list[str] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 900}, is_mobile=width < 500)
        tab.on("console", lambda message: trouble.append(message.text))
        tab.on("pageerror", lambda error: trouble.append(str(error)))
        tab.on("request", lambda request: None if _is_own(request.url, page) else trouble.append(request.url))
        tab.goto(page.as_uri())
        yield tab, trouble
        browser.close()


def _is_own(url: str, page: Path) -> bool:
    return url == page.as_uri() or url.startswith("data:")
