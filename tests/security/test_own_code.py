"""What a node does with the app that comes with a run: it runs its own, if that is the same, and no other code."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.supercore.constant import TASK_TYPE_TO_COMMAND, TaskType

from psl_flower.errors import ConfigError
from psl_flower.flower.supernode import PROGRAMS, check, check_programs, search_path, write_programs
from tests.paths import ROOT


@pytest.fixture(scope="module")
def bundle() -> bytes:
    """Return what `flwr run` sends of this app."""
    return build_fab_from_disk(ROOT)


def changed(bundle: bytes, files: Mapping[str, bytes]) -> bytes:
    """Return a bundle with other, or further, files."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(bundle)) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as new:
        for name in {*old.namelist(), *files}:
            new.writestr(name, files[name] if name in files else old.read(name))
    return made.getvalue()


def test_the_same_app_is_taken(bundle: bytes) -> None:
    check(bundle, ROOT)


HOSTILE = {
    "another ClientApp": {"clients/upper_app.py": b"import os\n"},
    "a module more": {"clients/spy.py": b"import os\n"},
    "a module of a package's name": {"torch.py": b"import os\n"},
    "a line more": {"psl_flower/errors.py": (ROOT / "psl_flower/errors.py").read_bytes() + b"\n"},
    "a module elsewhere": {"../../tmp/spy.py": b""},
    "an absolute name": {str(ROOT / "clients/upper_app.py"): (ROOT / "clients/upper_app.py").read_bytes()},
    "a bomb": {"clients/upper_app.py": bytes(200_000_000)},
}


@pytest.mark.parametrize("files", HOSTILE.values(), ids=HOSTILE)
def test_another_app_is_refused(bundle: bytes, files: dict[str, bytes]) -> None:
    with pytest.raises(ConfigError, match="differs from the one installed on this node"):
        check(changed(bundle, files), ROOT)


def test_all_programs_of_flower_are_ours(tmp_path: Path) -> None:
    """Whatever a SuperLink asks a SuperNode to start; but for the ClientApp's, they refuse."""
    folder = write_programs(tmp_path / PROGRAMS)
    names = set(TASK_TYPE_TO_COMMAND.values())
    assert {"flwr-clientapp", "flwr-agentapp", "flwr-serverapp"} <= names
    assert {path.name for path in folder.iterdir()} == names | {"flower-superexec"}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in names - {"flwr-clientapp"}:
        done = subprocess.run([folder / name, "--token", "x"], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1 and "starts nothing for it" in done.stderr


def test_nothing_of_flowers_stands_in_for_a_program_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_programs(tmp_path / PROGRAMS)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin", "/bin"]))
    assert search_path(folder).split(os.pathsep) == [str(folder), "/usr/bin", "/bin"]
    check_programs(folder)
    for program in folder.iterdir():
        program.chmod(0o600)
    with pytest.raises(ConfigError, match="cannot be started .Permission denied.; set FLWR_HOME"):
        check_programs(folder)
    done = subprocess.run(
        ["/bin/sh", "-c", "flwr-clientapp --help"], env={**os.environ, "PATH": search_path(folder)}, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode in (126, 127)


def test_programs_are_found_where_paths_have_blanks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "a place"
    place.mkdir()
    (place / "python").symlink_to("/bin/echo")
    monkeypatch.setattr(sys, "executable", str(place / "python"))
    folder = write_programs(tmp_path / "our programs")
    done = subprocess.run([folder / "flwr-clientapp", "--x"], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split()[-1] == "--x"


def test_programs_of_others_are_refused(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("psl-supernode")
    done = subprocess.run(
        [program, "--isolation", "process", "--insecure"], env={**os.environ, "FLWR_HOME": str(tmp_path / "flwr")},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.startswith("error: --isolation")


def test_the_program_for_messages_is_flowers_with_its_loading_replaced(tmp_path: Path) -> None:
    folder = write_programs(tmp_path / PROGRAMS)
    done = subprocess.run(
        [folder / "flwr-clientapp", "--help"], env={**os.environ, "PSL_NODE_APP": str(ROOT)}, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "Run a Flower ClientApp" in done.stdout, done.stderr


def test_an_app_that_is_not_there_is_one_error(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("psl-supernode")
    done = subprocess.run(
        [program, "--app", tmp_path, "--insecure"], env={**os.environ, "FLWR_HOME": str(tmp_path / "flwr")},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path}: no Flower app here") and done.stderr.count("\n") == 1


def test_no_module_of_the_folder_it_was_started_in(tmp_path: Path) -> None:
    """The program of a ClientApp is started wherever the SuperNode was: in a folder of stores, or one that all share."""
    programs = write_programs(tmp_path / PROGRAMS)
    place = tmp_path / "shared"
    place.mkdir()
    for name in ("psl_flower", "flwr", "json"):
        (place / f"{name}.py").write_text(f"open({str(tmp_path / 'came')!r}, 'w'); raise ImportError", "utf-8")
    served = programs / TASK_TYPE_TO_COMMAND[TaskType.CLIENT_APP]
    known = os.environ | {"PSL_NODE_APP": str(ROOT)}
    done = subprocess.run([served, "--help"], cwd=place, env=known, capture_output=True, text=True, check=False)
    assert not (tmp_path / "came").exists()
    assert done.returncode == 0, done.stderr


def test_it_answers_flower_before_torch_is_loaded() -> None:
    """Flower gives a program 30 s to say its first word, in which a busy host may not get through torch's import."""
    program = (
        "import_module('flwr.supernode.cli.flwr_clientapp'); import_module('flwr.supernode.runtime.run_clientapp')"
    )
    code = f"from importlib import import_module; import psl_flower.flower.supernode, sys; {program}; "
    subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], timeout=300, check=True)
