"""A user's function that travels to the workers of a simulation, where packages of the same name are installed."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

from tests.paths import ROOT

WORKER = """
import pickle, sys
import clients  # this project's, as a worker may have loaded it
assert "somewhere" not in clients.__path__[0]
party = pickle.loads(bytes.fromhex(sys.argv[1]))
print(party("x", None))
"""


def test_the_apps_own_module_is_found(tmp_path: Path) -> None:
    app = tmp_path / "somewhere"
    for folder, text in (("clients", "from strategies import MARK\ndef party(name, context):\n    return MARK + name\n"),
                         ("strategies", "MARK = 'own '\n")):  # fmt: skip
        (app / folder).mkdir(parents=True)
        (app / folder / "__init__.py").write_text("" if folder == "clients" else text)
        (app / folder / "parts.py").write_text(text)
    pickled = subprocess.run(
        [sys.executable, "-c", "import pickle, clients.parts as c; from psl_flower.flower.app_function import AppFunction; "
         "print(pickle.dumps(AppFunction(c.party)).hex())"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": f"{app}{os.pathsep}{ROOT}"}, capture_output=True, text=True,
        check=True, timeout=120,
    ).stdout.strip()  # fmt: skip
    answer = subprocess.run(
        [sys.executable, "-c", WORKER, pickled], cwd=tmp_path, env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{app}"},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert answer.stdout.strip() == "own x", answer.stderr


def test_a_function_of_no_module_is_pickled_as_it_is() -> None:
    import cloudpickle

    from psl_flower.flower.app_function import AppFunction

    number = 3
    assert pickle.loads(cloudpickle.dumps(AppFunction(lambda name, context: (name, number))))("x", None) == ("x", 3)
