"""A process that is killed while it writes a checkpoint: what it leaves is removed by the next that uses the folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from clients.host import Host
from psl_flower.config import RunConfig
from psl_flower.kinds import kind_of
from psl_flower.runs.folder import RunFolder, create_run
from psl_flower.wire.node_messages import NodeTask

# Writes a checkpoint of step 2 beside that of step 1, and stops when all of it is in the temporary file.
WRITER = """
import sys, time
from pathlib import Path
import torch
from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.system.files import DISK

def stay(descriptor, path):
    print("written", flush=True)
    time.sleep(600)

checkpoints = Checkpoints(Path(sys.argv[1]))
checkpoints.save(1, {"weights": torch.ones(1000)})
DISK.sync = stay
checkpoints.save(2, {"weights": torch.ones(1_000_000)})
"""


def hidden(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob(".*.tmp") if path.is_file())


@pytest.fixture
def writing() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Return a function that starts a process which is writing a checkpoint when it returns."""
    with ExitStack() as stack:

        def start(folder: Path) -> subprocess.Popen[str]:
            process = stack.enter_context(
                subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)
            )
            stack.callback(process.kill)
            assert process.stdout is not None and process.stdout.readline() == "written\n"
            return process

        yield start


def killed(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_of_the_lower(tmp_path: Path, writing: Callable[[Path], subprocess.Popen[str]]) -> None:
    run = create_run(tmp_path, "cut", "digits")
    run.write_config(RunConfig())
    killed(writing(run.path / "checkpoints"))
    (left,) = hidden(run.path)
    assert left.stat().st_size > 4_000_000
    kind_of({"resume": "cut", "workspace": str(tmp_path)}).find()
    assert hidden(run.path) == []
    assert run.checkpoints.steps() == [1] and run.checkpoints.load(1)["weights"].sum() == 1000


def test_of_a_living_process_it_is_kept(tmp_path: Path, writing: Callable[[Path], subprocess.Popen[str]]) -> None:
    run = create_run(tmp_path, "cut", "digits")
    run.write_config(RunConfig())
    checkpoints = run.path / "checkpoints"
    killed(writing(checkpoints))
    dead = hidden(run.path)
    alive = writing(checkpoints)  # does not remove it: here the names differ
    renamed = dead[0].with_name(dead[0].name.replace("00000002", "00000007"))
    assert dead[0] not in hidden(run.path)  # the next to write that checkpoint had removed it already
    renamed.write_bytes(b"left by a run with other settings")
    (living,) = set(hidden(run.path)) - {renamed}
    kind_of({"resume": "cut", "workspace": str(tmp_path)}).find()
    assert hidden(run.path) == [living]
    killed(alive)
    kind_of({"resume": "cut", "workspace": str(tmp_path)}).find()
    assert hidden(run.path) == []


def test_of_a_node(tmp_path: Path, writing: Callable[[Path], subprocess.Popen[str]]) -> None:
    folder = tmp_path / "run-0" / "upper-003"
    killed(writing(folder))
    assert len(hidden(tmp_path)) == 1
    task = NodeTask(
        run="run-0", parties=(3,), settings=b"", activations="float32", gradients="float32", timeout_s=1.0, stores="",
        keys="", owner="", state="", threads=0, epoch=0, part="",
    )  # fmt: skip
    config = {"store": "nowhere", "state": str(tmp_path)}
    host = Host(Context(1, 1, config, RecordDict(), {}), task)
    assert host.checkpoints(3).steps() == [1]
    assert hidden(tmp_path) == []


def test_a_whole_folder_and_strangers_files(tmp_path: Path) -> None:
    """Half a folder goes as well; what has another kind of name, or is no file, stays."""
    run = create_run(tmp_path, "cut", "digits")
    run.write_config(RunConfig())
    half = run.path / "predictions" / ".first.0123456789abcdef.tmp"
    half.mkdir(parents=True)
    (half / "predictions.npz").write_bytes(b"part")
    stays = [".notes.tmp", "step.0123456789abcdef.tmp", ".step.0123456789ABCDEF.tmp", ".step.0123.tmp"]
    for name in stays:
        (run.path / name).write_bytes(b"it")
    os.mkfifo(run.path / ".pipe.0123456789abcdef.tmp")
    (run.path / ".link.0123456789abcdef.tmp").symlink_to(run.path / "config.toml")
    kind_of({"resume": "cut", "workspace": str(tmp_path)}).find()
    assert not half.exists() and (run.path / "config.toml").exists()
    assert {path.name for path in run.path.glob("*.tmp")} >= {*stays, ".pipe.0123456789abcdef.tmp"}
    assert RunFolder(run.path).read_config() == RunConfig()
