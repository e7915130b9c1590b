"""What a node's programs do when one of them is killed: a ClientApp before and after its answer, the one that starts them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from psl_flower.flower import last_answer
from psl_flower.flower.supernode import PROGRAMS, write_programs

# In Python's place: as a ClientApp it writes its note, if it is to, and ends as it is told to.
_PYTHON = """#!/bin/sh
case "$3" in
*client_app*)
    [ "$4" = unnoted ] || echo message > "$PSL_NODE_MESSAGE"
    eval "$5"
    ;;
*killed*) echo "in its place: $(cat "$PSL_NODE_MESSAGE") $4" ;;
esac
"""
ENDS = {
    "well": ("noted", "exit 0", 0, ""),
    "with an error": ("noted", "exit 1", 1, ""),
    "killed": ("noted", "kill -9 $$", 137, "in its place: message noted\n"),
    "killed before it had a message": ("unnoted", "kill -9 $$", 137, ""),
}


@pytest.mark.parametrize(("noted", "end", "status", "said"), ENDS.values(), ids=ENDS)
def test_the_program_speaks_for_one_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noted: str, end: str, status: int, said: str
) -> None:
    python = tmp_path / "python"
    python.write_text(_PYTHON)
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    folder = write_programs(tmp_path / "our place" / PROGRAMS)
    done = subprocess.run([folder / "flwr-clientapp", noted, end], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (status, said), done.stderr
    assert not list((tmp_path / "our place" / "psl-messages").iterdir())


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Put Flower's ClientApp program, which talks to a SuperNode, out of the way; return what it was to send."""
    sent: list[Any] = []
    client = SimpleNamespace(close=lambda: None)
    fake = SimpleNamespace(
        RuntimeHttpClient=SimpleNamespace(from_server_address=lambda **_: client),
        RuntimeVersionHttpInterceptor=lambda **_: None,
        RuntimeTokenHttpInterceptor=lambda token: None,
        push_message=lambda client, reply, context: sent.append((reply, context)),
        push_task_output=lambda client, context, status, details: sent.append(status),
    )
    monkeypatch.setattr(last_answer, "import_module", lambda name: fake)
    monkeypatch.setenv(last_answer.NOTE, str(tmp_path / "note"))
    return sent


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Message:
    """Return a message of run 11 from server 1 to node 7."""
    for name, value in (("_run_id", 11), ("_node_id", 1), ("_task_id", 3)):
        monkeypatch.setattr(TaskIdentity, name, value)
    message = Message(RecordDict({"c": ConfigRecord({"secret": "words"})}), 7, "query.inventory")
    message.metadata.__dict__["_message_id"] = "m"
    return message


def test_a_message_without_an_answer_is_answered_with_flowers_error(
    sent: list[Any], asked: Message, tmp_path: Path
) -> None:
    last_answer.note(asked)
    assert b"secret" not in (tmp_path / "note").read_bytes()
    last_answer.answer_in_its_place("127.0.0.1:1", "token", True)
    (reply, context), status = sent
    assert reply.error.code == ErrorCode.CLIENT_APP_CRASHED and "was killed" in reply.error.reason
    assert (reply.metadata.reply_to_message_id, reply.metadata.dst_node_id) == ("m", 1)
    assert isinstance(context, Context) and (context.run_id, context.node_id) == (11, 7)
    assert status == "failed"


def test_what_was_answered_is_not_answered_again(sent: list[Any], asked: Message) -> None:
    """Two answers to one message would put Flower's SuperNode (1.42) one answer behind from then on."""
    last_answer.note(asked)
    last_answer.note(None)
    last_answer.answer_in_its_place("127.0.0.1:1", "token", True)
    assert sent == ["failed"]


_SUPEREXEC = """#!/bin/sh
echo "started $1" >> "$0.log"
kill -9 $$
"""


def test_the_program_that_starts_others_is_started_again_while_its_supernode_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    superexec, log = tmp_path / "flower-superexec", tmp_path / "flower-superexec.log"
    superexec.write_text(_SUPEREXEC)
    superexec.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    program = write_programs(tmp_path / "place" / PROGRAMS) / "flower-superexec"
    supernode = subprocess.Popen(
        ["/bin/sh", "-c", f'"{program}" --insecure & sleep 600'], start_new_session=True, stdin=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: log.exists() and len(log.read_text().splitlines()) >= 3, "three starts")
        supernode.kill()
        supernode.wait()
        wait_until(lambda: not _of_session(supernode.pid), "the end of all but its sleep")
    finally:
        os.killpg(supernode.pid, signal.SIGKILL)
    assert set(log.read_text().splitlines()) == {"started --insecure"}


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def _of_session(leader: int) -> list[str]:
    """Return the command lines of a session's shells."""
    found = []
    for process in psutil.process_iter(["pid", "name"]):
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == leader and process.pid != leader and "sleep" not in process.name():
                found.append(" ".join(process.cmdline()))
    return found
