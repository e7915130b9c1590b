"""Sizes and words that a stranger wrote: bounded before anything is allocated, escaped wherever they are printed."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import resource
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from subprocess import run

import msgspec
import pytest

from psl_flower.cli.main import main
from psl_flower.errors import AuthenticationError, LabelError, ManifestError, RunError
from psl_flower.runs.folder import create_run
from psl_flower.sealed import envelope
from psl_flower.sealed import manifest as manifests
from psl_flower.sealed.identities import Identity, Role
from psl_flower.sealed.labels import LabelBook
from psl_flower.wire.frames import encode_frame
from psl_flower.wire.messages import Abort, Hello
from psl_flower.wire.stream import connect
from server.reporting import Reporter
from tests.vectors.sealed_support import World

HUGE = 10**10
EVIL = "evil\x1b]0;owned\x07\x1b[2J\u202egnp\r\nerror: forged"


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Two gibibytes more than now."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def _signed(world: World, **changes: object) -> bytes:
    """Return the manifest as a stranger changes and signs it."""
    stranger = Identity.generate(Role.OWNER, "stranger")
    manifest = msgspec.structs.replace(world.signed.manifest, owner=str(stranger.public), **changes)
    return envelope.sign(manifests.KIND, envelope.encode(manifest), [stranger])


@pytest.mark.parametrize(
    "grid",
    [
        {"image": (HUGE, 1), "patch": (1, 1), "stride": (1, 1)},
        {"image": (100_000, 100_000), "patch": (1, 1), "stride": (1, 1)},
        {"image": (HUGE, HUGE), "patch": (3, 7), "stride": (2, 5)},
        {"image": (1 << 20, 1 << 20), "patch": (1 << 20, 1 << 20), "stride": (1 << 20, 1 << 20)},
        {"image": (0, 0), "patch": (0, 0), "stride": (0, 0)},
        {"image": (-4, 4), "patch": (2, 2), "stride": (2, 2)},
        {"image": (5, 5), "patch": (2, 2), "stride": (2, 2)},
        {"channels": 1 << 40},
    ],
    ids=str,
)
@pytest.mark.usefixtures("little_memory")
def test_a_grid_of_a_stranger(world: World, grid: dict[str, object]) -> None:
    data = _signed(world, grid=msgspec.structs.replace(world.signed.manifest.grid, **grid))
    with pytest.raises(ManifestError):
        manifests.parse(data, "a stranger's")


@pytest.mark.usefixtures("little_memory")
def test_samples_of_a_stranger(world: World) -> None:
    """A manifest that agrees with itself, of ever more samples."""
    manifest = world.signed.manifest

    def of(count: int) -> manifests.Manifest:
        stores = tuple(
            msgspec.structs.replace(store, segments=(msgspec.structs.replace(store.segments[0], count=count),))
            for store in manifest.stores
        )
        splits = (manifests.SplitRange(name="train", first=0, count=count),)
        return msgspec.structs.replace(manifest, num_samples=count, splits=splits, stores=stores)

    large = of(HUGE)
    large.check("a stranger's")
    with pytest.raises(LabelError, match="no label for"):
        LabelBook(world.out).read(large, world.owner)
    with pytest.raises(ManifestError, match="not supported"):
        of(1 << 41).check("a stranger's")


def _harmless(told: str) -> None:
    assert "owned" in told
    assert told.isascii()
    assert all(line.isprintable() for line in told.split("\n"))
    assert not any(line.startswith("error: forged") for line in told.split("\n"))


def test_names_of_files(world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSL_STATE", str(world.out.parent / "state"))
    (world.place(0) / EVIL).write_bytes(b"")
    arguments = ["verify", *map(str, world.places), "--manifest", str(world.out)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "not part of the store: evil\\x1b]0;owned" in printed
    _harmless(printed)
    assert main(["verify", EVIL, "--manifest", str(world.out / EVIL)]) == 1
    _harmless(capsys.readouterr().err)


def test_reasons_in_the_log(world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from psl_flower.sealed.audit import AuditLog

    monkeypatch.setenv("PSL_STATE", str(world.out.parent / "state"))
    AuditLog(world.out / "audit.log").append(world.signed, [world.owner], "restore", [0], EVIL)
    assert main(["audit-log", "--manifest", str(world.out)]) == 0
    printed = capsys.readouterr().out
    _harmless(printed)
    # The entry, that the log is unbroken, and which command shows reasons of relabellings.
    assert len(printed.splitlines()) == 3


@pytest.mark.parametrize("as_json", [False, True])
def test_names_that_are_not_utf8(world: World, tmp_path: Path, as_json: bool) -> None:
    """Of files in a store, of the store's folder, and of the dataset's folder."""
    (Path(os.fsdecode(bytes(world.place(0)) + b"/\xff\xfe"))).write_bytes(b"")
    folder = Path(os.fsdecode(bytes(tmp_path) + b"/out\xff"))
    world.out.rename(folder)
    world = world.at(folder)
    command = [sys.executable, "-m", "psl_flower.cli.main", "verify", *world.places, "--manifest", world.out]
    environment = os.environ | {"PSL_STATE": str(tmp_path / "state"), "LC_ALL": "C.UTF-8"}
    for status in (0, 1):
        done = run(
            [*command, *(["--json"] if as_json else [])], capture_output=True, env=environment, timeout=100, check=False
        )
        assert b"Traceback" not in done.stderr
        assert done.returncode == status, done.stderr
        assert (b"\\udcff" if as_json else b"out\\udcff/store-000") in done.stdout or status
        (world.out / "manifest.psl").write_bytes(b"none")


def _lines(run: Path) -> list[str]:
    return (run / "log.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")


@pytest.mark.parametrize("how", ["say", "fail", "other error", "logged"])
def test_in_the_log_of_a_run(tmp_path: Path, how: str) -> None:
    """Such as a restoration's reason, which the authorisation's maker wrote."""
    run = create_run(tmp_path, "tiny", "digits")
    reporter = Reporter(run, run_id="1", every_s=0)
    if how == "say":
        reporter.say("starting", f"asking the nodes for their patches of 1 image: {EVIL}")
    elif how == "logged":
        logging.getLogger("psl_flower").warning("%s; waiting for it", EVIL)
    else:
        reporter.fail(RunError(EVIL) if how == "fail" else ValueError(EVIL))
    (line,) = _lines(run.path)
    _harmless(line)
    status = run.read_status()
    assert how == "logged" or (status is not None and "owned" in status.message and status.message.isprintable())


def test_every_module_logs_where_lines_are_made_harmless() -> None:
    """A filter sees the records of its own logger alone, not those of loggers below it."""
    packages = [Path(__file__).parents[2] / name for name in ("psl_flower", "server", "clients", "strategies")]
    sources = {path: path.read_text() for package in packages for path in package.rglob("*.py")}
    assert any('getLogger("psl_flower")' in source for source in sources.values())
    # httpx's own logger only gets a level, and no line of ours.
    others = re.compile(r"getLogger\((?!\"(psl_flower|flwr|httpx)\"\))")
    assert [path for path, source in sources.items() if others.search(source)] == []


def test_why_a_lower_refuses_a_node() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def refuse() -> None:
            with contextlib.suppress(OSError):
                sock, _ = listening.accept()
                with sock:
                    sock.sendall(b"".join(encode_frame(Abort(EVIL), ())))
                    while sock.recv(65_536):
                        pass

        thread = threading.Thread(target=refuse)
        thread.start()
        hello = Hello("run-1", 7, 0, (1, 2), 50, "data", bytes(32))
        with pytest.raises(AuthenticationError) as caught:
            connect("127.0.0.1", listening.getsockname()[1], hello, cafile_pem=None, timeout_s=5)
        thread.join()
    _harmless(str(caught.value))
