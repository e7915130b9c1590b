"""A run brings a ClientApp that reads a node's store: Flower's SuperNode runs it, `psl-supernode` does not.

And it tells the server at once when the ClientApp that it does run is killed, or ended because the program that starts
ClientApps is; which is started again.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flwr.common.constant import ErrorCode

from tests.e2e.conftest import BIN, Place, free_port, wait_until

_PROJECT = """
[project]
name = "psl-flower"
version = "0.1.0"
dependencies = ["flwr"]
[tool.flwr.app]
publisher = "psl-flower"
[tool.flwr.app.components]
serverapp = "hostile:server"
clientapp = "hostile:client"
"""
# The beginning of every app here; `ask` waits for the node.
_HEAD = """
import os, signal, time
from pathlib import Path
import psutil
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client = ClientApp()
server = ServerApp()

def ask(grid, timeout=None):
    while not (nodes := list(grid.get_node_ids())):
        pass
    asked = Message(RecordDict(), dst_node_id=nodes[0], message_type="query")
    return list(grid.send_and_receive([asked], timeout=timeout))
"""
# What a node's store and key would be to it, a file is here.
_APP = f"""{_HEAD}
@client.query()
def query(message, context):
    key = Path(context.node_config["key"]).read_text()
    return Message(RecordDict({{"found": ConfigRecord({{"key": key}})}}), reply_to=message)

@server.main()
def main(grid, context):
    (reply,) = ask(grid)
    said = reply.error.reason if reply.has_error() else reply.content.config_records["found"]["key"]
    Path(REPORT).write_text(said)
"""
_KEY = "the node's key"
# A ClientApp that kills itself, or the program that started it, while it works on its first message; the server notes
# how long it took until it heard.
_DYING = f"""{_HEAD}
@client.query()
def query(message, context):
    killed = Path(REPORT + ".killed")
    if killed.exists():
        return Message(RecordDict(), reply_to=message)
    killed.write_text(str(time.time()))
    os.kill(VICTIM, signal.SIGKILL)
    while True:
        time.sleep(0.1)  # Flower's signal, from a thread, would not end a longer one

@server.main()
def main(grid, context):
    (reply,) = ask(grid)
    after_s = time.time() - float(Path(REPORT + ".killed").read_text())
    (again,) = ask(grid, timeout=120)
    Path(REPORT).write_text(f"{{reply.error.code}} {{after_s}} {{again.has_content()}}")
"""
# As on a host that has far too much to do: to load Flower's program for ClientApps takes longer than Flower waits.
_SLOW = """
import sys, time

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "flwr.supernode.cli.flwr_clientapp":
            time.sleep(40)

sys.meta_path.insert(0, Slow())
"""
_QUICK = f"""{_HEAD}
@client.query()
def query(message, context):
    return Message(RecordDict(), reply_to=message)

@server.main()
def main(grid, context):
    Path(REPORT).write_text(str([reply.has_content() for reply in ask(grid, timeout=150)]))
"""


@contextmanager
def _running(command: list[str | Path], log: Path, environment: dict[str, str]) -> Iterator[None]:
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _report_of(
    place: Place, folder: Path, program: str, code: str, *options: str | Path, modules: Path | None = None
) -> tuple[str, str]:
    """Run an app on a SuperNode, with further modules; return what it reported, and all words of the programs."""
    app, report, key = folder / "app", folder / "report", folder / "node.key"
    app.mkdir()
    (app / "pyproject.toml").write_text(_PROJECT)
    (app / "hostile.py").write_text(code.replace("REPORT", repr(str(report))))
    key.write_text(_KEY)
    port = free_port()
    environment = {**place.environment, "PATH": f"{BIN}{os.pathsep}{place.environment['PATH']}"}
    node_environment = {**environment, "FLWR_HOME": str(folder / "node-flwr")}
    if modules is not None:
        node_environment["PYTHONPATH"] = os.pathsep.join([str(modules), node_environment.get("PYTHONPATH", "")])
    place.flower_home.mkdir()
    (place.flower_home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    server = [BIN / "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)]
    node: list[str | Path] = [
        BIN / program, "--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(free_port()),
        "--host", "127.0.0.1", "--node-config", f"key='{key}'", *options,
    ]  # fmt: skip
    logs = folder / "superlink.log", folder / "supernode.log"
    with _running(server, logs[0], environment):
        wait_until(lambda: place.flwr("list", "here").returncode == 0, 60, "the SuperLink")
        with _running(node, logs[1], node_environment):
            done = place.flwr("run", str(app), "here", "--stream", timeout=270)
            reported = report.read_text() if report.exists() else ""
    return reported, done.stdout + done.stderr + "".join(log.read_text() for log in logs)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("program", ["flower-supernode", "psl-supernode"])
def test_of_a_run(place: Place, tmp_path: Path, program: str) -> None:
    reported, words = _report_of(place, tmp_path, program, _APP)
    if program == "flower-supernode":
        assert reported == _KEY, words  # why there is the other
    else:
        assert "the run's app differs from the one installed on this node (hostile.py)" in reported, words
        assert _KEY not in reported


# The ClientApp's own process; its parent is a shell, whose parent starts all apps.
VICTIMS = {"a ClientApp": "os.getpid()", "what starts ClientApps": "psutil.Process().parent().ppid()"}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", VICTIMS.values(), ids=VICTIMS)
def test_that_is_killed(place: Place, tmp_path: Path, victim: str) -> None:
    """Flower itself would say so after a minute of heartbeats that stay out, or never."""
    code = _DYING.replace("VICTIM", victim)
    reported, words = _report_of(place, tmp_path, "psl-supernode", code, "--app", tmp_path / "app")
    assert reported, words
    error, after_s, answered = reported.split()
    assert error == str(ErrorCode.CLIENT_APP_CRASHED)
    assert float(after_s) < 45
    assert answered == "True", words


@pytest.mark.timeout(600)
def test_that_takes_long_to_load_is_waited_for(place: Place, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(_SLOW)
    reported, words = _report_of(place, tmp_path, "psl-supernode", _QUICK, "--app", tmp_path / "app", modules=tmp_path)
    assert reported == "[True]", words
