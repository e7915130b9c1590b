"""A patch server: gives out the files of a folder over HTTP, parts of files too, as any web server does.

python web_server.py ADDRESS PORT FOLDER
"""

from __future__ import annotations

import functools
import http.server
import io
import re
import sys
from pathlib import Path


class Ranges(http.server.SimpleHTTPRequestHandler):
    """SimpleHTTPRequestHandler with ranges."""

    protocol_version = "HTTP/1.1"

    def send_head(self) -> io.BytesIO | io.BufferedReader | None:
        path = Path(self.translate_path(self.path))
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None or not path.is_file():
            return super().send_head()
        first, last = int(asked[1]), min(int(asked[2]), path.stat().st_size - 1)
        if last < first:
            self.send_error(416)
            return None
        with path.open("rb") as file:
            file.seek(first)
            data = file.read(last + 1 - first)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{path.stat().st_size}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        return io.BytesIO(data)


def server(address: str, port: int, folder: str) -> http.server.ThreadingHTTPServer:
    return http.server.ThreadingHTTPServer((address, port), functools.partial(Ranges, directory=folder))


if __name__ == "__main__":
    server(sys.argv[1], int(sys.argv[2]), sys.argv[3]).serve_forever()
