"""Answers of an untrusted web server, with limits on size, time and redirects."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Any

from psl_flower.sealed.listing import LISTING_BYTES

if TYPE_CHECKING:
    from aiohttp import ClientResponse

# A server that sends less than this on average is taken for lost.
_LEAST_BYTES_PER_S = 1000
_REDIRECTS = (301, 302, 303, 307, 308)


class AnswerTooLong(Exception):
    """A web server sends more than was asked for."""


class ListingTooLong(AnswerTooLong):
    """A web server sends a listing longer than any of a store."""


class RedirectedElsewhere(Exception):
    """A web server redirects to another origin; the message is the target as sent."""


def bounded(silent_s: float) -> type:
    """Return a class of aiohttp's answers that are read no further than the part of a file that was asked for.

    aiohttp reads without limit and follows every redirect: a web server could send endlessly or very slowly, or
    redirect its reader to addresses that only the reader can reach. An answer that has not begun after `silent_s`
    seconds is abandoned.
    """
    import aiohttp

    class Bounded(aiohttp.ClientResponse):
        async def start(self, connection: Any) -> aiohttp.ClientResponse:
            answer = await asyncio.wait_for(super().start(connection), silent_s)
            _check_redirect(answer)
            return answer

        async def read(self) -> bytes:
            if self._body is None:
                began = time.monotonic()
                asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.request_info.headers.get("Range", ""))
                limit = int(asked[2]) - int(asked[1]) + 1 if asked else LISTING_BYTES
                content = bytearray()
                async for part in self.content.iter_any():
                    content += part
                    if len(content) > limit:
                        self.close()
                        raise AnswerTooLong if asked else ListingTooLong
                    if time.monotonic() - began > silent_s + len(content) / _LEAST_BYTES_PER_S:
                        self.close()
                        raise TimeoutError
                self._body = bytes(content)
            return self._body

    return Bounded


def _check_redirect(answer: ClientResponse) -> None:
    """Raise RedirectedElsewhere if an answer leads to another scheme, host or port."""
    location = answer.headers.get("Location") or answer.headers.get("URI")
    if answer.status not in _REDIRECTS or not location:
        return
    try:
        target = answer.url.join(type(answer.url)(location))  # read as aiohttp reads it
        same = target.origin() == answer.url.origin()
    except ValueError:
        same = False
    if not same:
        raise RedirectedElsewhere(location)
