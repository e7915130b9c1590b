"""`psl-supernode`: Flower's SuperNode, which runs the installed app, and no code that comes with a run.

Flower's SuperLink sends nodes the app with each run, and `flower-supernode` runs it. So anyone who has the
SuperLink, or may start runs there, could send a program that reads a node's store and key. The SuperNode starts its
programs by names that it finds along PATH. `psl-supernode` puts others in their place: one runs the
installed ClientApp for a message if the run's modules are those installed, the others refuse. It serves a run's
messages only to programs of the same user (`psl_flower.flower.guarded`).
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path, PurePosixPath
from shlex import quote
from types import ModuleType
from typing import Any

from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ISOLATION_MODE_SUBPROCESS
from flwr.supercore.constant import TASK_TYPE_TO_COMMAND, TaskType
from flwr.supercore.exit import add_exit_handler
from flwr.supercore.utils import get_flwr_home

from psl_flower.errors import ConfigError, PslError, RunError
from psl_flower.flower.guarded import SUPERNODE, become
from psl_flower.flower.last_answer import NOTE, answer_in_its_place, answer_unanswered, note
from psl_flower.launch.running import app_folder
from psl_flower.system.files import write_file
from psl_flower.system.folders import make_private_folder
from psl_flower.text import printable

PROGRAMS = "psl-programs"
_MESSAGES = "psl-messages"
_APP = "PSL_NODE_APP"
_SERVED = TASK_TYPE_TO_COMMAND[TaskType.CLIENT_APP]
_CLIENT_APP = (
    "import sys; from psl_flower.flower.first_word import speak; speak(sys.argv); "
    "from psl_flower.flower.supernode import client_app; client_app()"
)
# Shell, so that a path of Python with blanks, or a long one, does as well. A status above 128 is that of a signal.
_SERVING = f"""#!/bin/sh
{NOTE}={{messages}}/$$
export {NOTE}
rm -f "${NOTE}"
{{python}} -P -c '{_CLIENT_APP}' "$@"
status=$?
if [ $status -gt 128 ] && [ -f "${NOTE}" ]; then
    {{python}} -P -c 'from psl_flower.flower.supernode import killed; killed()' "$@"
fi
rm -f "${NOTE}"
exit $status
"""
# Flower starts this one once, and without it nothing is started any more.
_STARTING = """#!/bin/sh
trap exit INT TERM
while kill -0 $PPID 2>/dev/null; do
    {superexec} "$@"
    sleep 1
done
"""
# Replaces every other program that a run may ask a node to start.
_REFUSAL = "error: a run asked this node for something else than its ClientApp; psl-supernode starts nothing for it"
_REFUSING = f"""#!/bin/sh
echo "{_REFUSAL}" >&2
exit 1
"""
_SUPEREXEC = "flower-superexec"
_MODULE = ".py"
# Modules whose packages export a function of the same name.
_PROGRAM, _RUNTIME = "flwr.supernode.cli.flwr_clientapp", "flwr.supernode.runtime.run_clientapp"


def supernode(arguments: Sequence[str] | None = None) -> int:
    """Become `flower-supernode`, with the programs of this module before Flower's; return 1 if that fails.

    `--app FOLDER` names the installed Flower app to serve, this project's by default; all else is for Flower.
    """
    parser = argparse.ArgumentParser("psl-supernode", add_help=False, allow_abbrev=False)
    parser.add_argument("--app", default="")
    parser.add_argument("--isolation", default=ISOLATION_MODE_SUBPROCESS)
    own, others = parser.parse_known_args(arguments)
    try:
        if own.isolation != ISOLATION_MODE_SUBPROCESS:
            raise ConfigError("--isolation: psl-supernode starts a node's programs itself; leave the option out")
        _become(app_folder(own.app), others)
    except (PslError, OSError) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
    return 1


def _become(app: Path, arguments: Sequence[str]) -> None:
    folder = write_programs(get_flwr_home() / PROGRAMS)
    check_programs(folder)
    environment = {**os.environ, "PATH": search_path(folder), _APP: str(app)}
    become(SUPERNODE, arguments, environment)


def search_path(folder: Path) -> str:
    """Return PATH with our programs, and without folders that have Flower's: one of ours that fails has no stand-in."""
    own = {path.name for path in folder.iterdir()}
    others = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join([str(folder), *(other for other in others if not own & _names_in(other))])


def _names_in(folder: str) -> set[str]:
    try:
        return set(os.listdir(folder or "."))
    except OSError:
        return set()


def write_programs(folder: Path) -> Path:
    """Write the programs that a SuperNode is to find, and no other; return their folder, which is this user's alone.

    Raises
    ------
    OSError, RunError
        If the disk refuses.
    """
    messages = folder.with_name(_MESSAGES)
    for place in (folder, messages):
        make_private_folder(place)
    for left in messages.iterdir():  # when the host went down
        left.unlink(missing_ok=True)
    python = Path(sys.executable)
    programs = dict.fromkeys(TASK_TYPE_TO_COMMAND.values(), _REFUSING)
    programs |= {_SERVED: _SERVING, _SUPEREXEC: _STARTING}
    for name, program in programs.items():
        text = program.format(
            python=quote(str(python)), superexec=quote(str(python.with_name(_SUPEREXEC))), messages=quote(str(messages))
        )
        write_file(folder / name, text.encode(), RunError, mode=0o700)
    return folder


def check_programs(folder: Path) -> None:
    """Raise ConfigError if programs there cannot be started, as on a file system mounted with noexec."""
    refusing = next(name for name in TASK_TYPE_TO_COMMAND.values() if name != _SERVED)
    try:
        done = subprocess.run([folder / refusing], capture_output=True, text=True, timeout=60, check=False)
        why = "" if _REFUSAL in done.stderr else done.stderr.strip() or "it says nothing"
    except OSError as error:
        why = str(error.strerror)
    if why:
        raise ConfigError(
            f"{folder}: programs there cannot be started ({why}); set FLWR_HOME to a folder where they can"
        )


def client_app() -> None:
    """Serve one message, as Flower's program of this name does, with the installed app."""
    program, run_clientapp = map(import_module, (_PROGRAM, _RUNTIME))
    app = app_folder(os.environ[_APP])
    load: Callable[..., Callable[..., ClientApp]] = _replaced(run_clientapp, "get_load_client_app_fn", None)
    pull, push = (_replaced(run_clientapp, name, None) for name in ("pull_task_input", "push_message"))

    def pulled(client: object) -> tuple[Message, object, object, object]:
        task: tuple[Message, object, object, object] = pull(client)
        note(task[0])
        add_exit_handler(lambda: answer_unanswered(client))  # which runs before Flower's own
        return task

    def pushed(*arguments: object) -> None:
        push(*arguments)
        note(None)

    _replaced(run_clientapp, "pull_task_input", pulled)
    _replaced(run_clientapp, "push_message", pushed)
    _replaced(run_clientapp, "install_from_fab", lambda fab, **_: check(fab, app))
    _replaced(run_clientapp, "install_app_dependencies", _nothing_installed)
    _replaced(
        run_clientapp, "get_load_client_app_fn", lambda **_: load(default_app_ref="", app_path=str(app), multi_app=True)
    )
    program.flwr_clientapp()


def killed() -> None:
    """Answer the message of a ClientApp that was killed, as `client_app` would have been called."""
    program = import_module(_PROGRAM)
    _replaced(program, "run_clientapp", answer_in_its_place)
    program.flwr_clientapp()


def check(bundle: bytes, app: Path) -> None:
    """Check that a run's modules are those of the installed app, byte for byte.

    `bundle` is the app that has come with the run, as Flower packs it; `app` is the folder of the installed one.

    Raises
    ------
    ConfigError
        Naming the first module that differs.
    """
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        for brought in archive.infolist():
            name = PurePosixPath(brought.filename)
            if name.suffix != _MODULE:
                continue
            own = app / name
            inside = not name.is_absolute() and ".." not in name.parts and own.is_file()
            # The size first: a few bytes may unpack to gigabytes.
            if not inside or own.stat().st_size != brought.file_size or own.read_bytes() != archive.read(brought):
                raise ConfigError(
                    f"the run's app differs from the one installed on this node ({printable(name, 200)}), which "
                    "runs no other code; install the same version on all hosts"
                )


def _replaced(module: ModuleType, name: str, replacement: object) -> Callable[..., Any]:
    """Return a function of Flower's and, unless the replacement is None, replace it; RunError if there is none."""
    found: Callable[..., Any] | None = getattr(module, name, None)
    if found is None:
        raise RunError(f"this Flower's ClientApp does without {name}, so psl-supernode cannot keep code out of it")
    if replacement is not None:
        setattr(module, name, replacement)
    return found


def _nothing_installed(*_: object, **__: object) -> None:
    """Install nothing: a run's packages come from a source of its author's choice."""
    raise ConfigError("a run may not install packages on this node; drop --allow-runtime-dependency-installation")
