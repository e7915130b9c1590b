"""File names in a web server's folder listing, an untrusted HTML page."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from urllib.parse import unquote, urljoin, urlsplit

# The most that is taken of a listing; about 5,000 files of a store.
LISTING_BYTES = 1 << 20
_TAG_CHARS = 8192
_LINK_CHARS = 2048
# Unambiguous, so that matching takes time linear in the tag's length.
_HREF = re.compile(r"""(?<=\s)href\s*+=\s*+(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""", re.IGNORECASE)


def names_in(page: str, folder: str) -> set[str]:
    """Return the names, URL-encoded, of the page's links to files directly in the folder at a URL.

    Links to other hosts or folders and overlong links are left out, as are unterminated tags. Takes time linear in the
    page's length.
    """
    base = urlsplit(folder.rstrip("/") + "/")
    inside = unquote(base.path)
    found = set()
    for link in _links(page):
        try:
            target = urlsplit(urljoin(base.geturl(), link))
        except ValueError:  # such as http://[
            continue
        path = target.path.rstrip("/")
        parent, _, name = path.rpartition("/")
        if name and _host(target.netloc) == _host(base.netloc) and unquote(parent) + "/" == inside:
            found.add(name)
    return found


def _links(page: str) -> Iterator[str]:
    """Yield the links of the page's `<a href=...>` tags."""
    for tag in page.split("<"):
        if tag[:1] not in ("a", "A") or not tag[1:2].isspace():
            continue
        match = _HREF.search(tag, 0, _TAG_CHARS)
        link = next(filter(None, match.groups()), "") if match else ""
        if len(link) <= _LINK_CHARS:
            yield html.unescape(link).strip()


def _host(netloc: str) -> str:
    """Return host and port, without user and password."""
    return netloc.rpartition("@")[2].lower()
