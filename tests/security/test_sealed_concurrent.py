"""Honest commands at the same time: none takes what another has just written for tampering."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.security.sealed_commands import another_label, psl, sealing

NUM_RESTORE, NUM_RELABEL = 12, 6
PSL = [sys.executable, "-c", "import sys; from psl_flower.cli.main import main; sys.exit(main())"]


def at_once(commands: Sequence[Sequence[str | Path]]) -> list[str]:
    """Run all commands in processes of their own at the same time; return what those say that fail."""
    running = [
        subprocess.Popen([*PSL, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    ended = [(process.communicate(timeout=240)[0], process.returncode) for process in running]
    return [told for told, code in ended if code]


def test_restoring_and_relabelling_at_once(folder: Path) -> None:
    psl(*sealing(folder))
    manifest = ["--manifest", folder / "sealed"]
    both = ["--identity", folder / "alice.key", "--identity", folder / "bob.key"]
    restoring = [
        ["restore", *manifest, *both, "--image", str(k), "--out", folder / f"restored-{k}"] for k in range(NUM_RESTORE)
    ]
    relabelling = [
        ["relabel", *manifest, "--identity", folder / "bob.key", "--image", str(image), "--label", label]
        for image, label in ((image, another_label(folder, image)) for image in range(NUM_RELABEL))
    ]
    assert at_once([*restoring, *relabelling]) == []

    entries = json.loads(psl("audit-log", *manifest, "--json").stdout)["entries"]
    assert sorted(entry["images"] for entry in entries) == [[k] for k in range(NUM_RESTORE)]
    told = psl("relabel", *manifest, "--identity", folder / "bob.key", "--history", "--json").stdout
    changed = [change[0] for version in json.loads(told)["versions"] for change in version["changes"]]
    assert sorted(changed) == list(range(NUM_RELABEL))
