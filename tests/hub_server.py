"""A hub of datasets on this machine: as much of the Hugging Face hub's API as loading a dataset asks for."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

REVISION = "c0ffee" + "0" * 34


class Hub(http.server.BaseHTTPRequestHandler):
    """Gives out the datasets FOLDER/OWNER/NAME, each as it is, at one revision."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *args: Any, folder: Path, **kwargs: Any) -> None:
        self.folder = folder
        super().__init__(*args, **kwargs)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        match = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/paths-info/[^/]+", urlsplit(self.path).path)
        repository = self.folder / match[1] if match else None
        if repository is None or not repository.is_dir():
            return self.refuse("RepoNotFound")
        found = [repository / path for path in form["paths"] if (repository / path).exists()]
        return self.say([entry(path, repository) for path in found])

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        match = re.fullmatch(r"/(api/)?datasets/([^/]+/[^/]+)(?:/(revision|tree|resolve)/[^/]+(?:/(.*))?)?", path)
        if path == "/":
            return self.say({})
        if match is None or not (repository := self.folder / match[2]).is_dir():
            return self.refuse("RepoNotFound")
        place = repository / (match[4] or "")
        if match[3] == "resolve":
            return self.give(place) if place.is_file() else self.refuse("EntryNotFound")
        if match[3] == "tree":
            if not place.is_dir():
                return self.refuse("EntryNotFound")
            deep = parse_qs(url.query).get("recursive", [""])[0].lower() == "true"
            return self.say([entry(each, repository) for each in sorted(place.glob("**/*" if deep else "*"))])
        return self.say({"id": match[2], "sha": REVISION, "private": False, "siblings": [], "tags": []})

    def give(self, place: Path) -> None:
        self.answer(200, place.read_bytes(), ETag=f'"{digest(place)}"', X_Repo_Commit=REVISION)

    def say(self, content: object) -> None:
        self.answer(200, json.dumps(content).encode(), Content_Type="application/json")

    def refuse(self, why: str) -> None:
        self.answer(404, b"", X_Error_Code=why)

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def digest(place: Path) -> str:
    return hashlib.sha1(place.read_bytes(), usedforsecurity=False).hexdigest()


def entry(path: Path, repository: Path) -> dict[str, object]:
    """Return what the hub says of a file or folder of a repository."""
    about: dict[str, object] = {"path": path.relative_to(repository).as_posix()}
    if path.is_dir():
        return about | {"type": "directory", "oid": "0" * 40}
    return about | {"type": "file", "oid": digest(path), "size": path.stat().st_size}


def server(folder: Path) -> http.server.ThreadingHTTPServer:
    """Return a hub at a free port of this machine, not serving yet."""
    return http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Hub, folder=folder))
