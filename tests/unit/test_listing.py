"""Names in a web server's page of links, as servers of several makers write it."""

import pytest

from psl_flower.sealed.listing import names_in

FOLDER = "http://user:secret@patches.example:8080/my%20sets/store-000"
NAME = "epoch-0001-segment-000000.psl"


@pytest.mark.parametrize(
    "link",
    [
        f'<a href="{NAME}">{NAME}</a>',
        f"<A class=x HREF = '{NAME}'>",
        f"<a\n href={NAME}>",
        f'<a href="./{NAME}">',
        f'<a href="/my%20sets/store-000/{NAME}">',
        f'<a href="/my sets/store-000/{NAME}">',
        f'<a href="http://patches.example:8080/my%20sets/store-000/{NAME}?x=1&amp;y=2#z">',
        f'<a href="{NAME.replace("-", "&#45;")}">',
        f'<a href="{NAME}/">',
    ],
)
@pytest.mark.parametrize("end", ["", "/"])
def test_a_link_to_a_file(link: str, end: str) -> None:
    page = f"<html><body><h1>Index of /</h1><pre>{link} 1-Jan 2026</pre></body></html>"
    assert names_in(page, FOLDER + end) == {NAME}


@pytest.mark.parametrize(
    "link",
    [
        '<a href="../">Parent</a>',
        '<a href="..">',
        '<a href="?C=N;O=D">Name</a>',
        '<a href="#top">',
        '<a href="">',
        "<a>",
        '<a data-href="file.psl">',
        '<abbr href="file.psl">',
        '<a href="/file.psl">',
        '<a href="deeper/file.psl">',
        '<a href="http://elsewhere.example/my%20sets/store-000/file.psl">',
        '<a href="http://[">',
        f'<a href="&#{"9" * 5000};">',
        f'<a href="{"x" * 3000}">',
        'see http://patches.example:8080/my%20sets/store-000/file.psl',
    ],
)  # fmt: skip
def test_anything_else(link: str) -> None:
    assert names_in(link, FOLDER) == set()
