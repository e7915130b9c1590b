"""A training's folder on disk: how it was begun, its rounds, and its checkpoints.

<workdir>/run.json           what the training is made of; a resumed one must be made of the same
<workdir>/rounds.jsonl       one record for each round
<workdir>/lock               held by the process that trains
<workdir>/top/               checkpoints of the model behind the cut
<workdir>/parties/<name>/    those of the parties, where they are on this machine
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from psl_flower.engine.checkpoints import Checkpoints
from psl_flower.errors import AlignmentError, RunError
from psl_flower.system.files import disk_errors, locked, read_file, write_file

log = logging.getLogger("psl_flower")

# Keys whose values may change when a training is resumed.
_MAY_CHANGE = ("torch",)
# Seconds for a process that is just ending.
_LOCK, _PATIENCE_S = "lock", 10.0


class TrainingFolder:
    """The folder of one training; made when first written to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = Checkpoints(path / "top")
        self.parties = path / "parties"

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the folder against other processes; raises RunError if another one trains here, or the disk refuses."""
        with disk_errors(self.path, "made", RunError):
            self.path.mkdir(parents=True, exist_ok=True)
        taken = (
            f"{self.path}: another process is training here; wait for its end, or end it (a run of Flower's: "
            "flwr stop RUN-ID), and run this again then"
        )
        with locked(self.path / _LOCK, _PATIENCE_S, RunError, lambda: taken):
            yield

    def begin(self, made_of: dict[str, Any]) -> str:
        """Record the make-up of a new training, or compare a resumed one with it; return the run's identity.

        Raises
        ------
        RunError
            If the training that began here was made of something else.
        """
        file = self.path / "run.json"
        if not file.exists():
            # Nodes keep their states under this name: another training of the same folder name must not meet them.
            begun = made_of | {"run": f"{_plain(self.path.name)}-{secrets.token_hex(4)}"}
            write_file(file, json.dumps(begun, indent=1).encode(), RunError, mode=0o600, parents=True)
            return str(begun["run"])
        try:
            before: dict[str, Any] = json.loads(read_file(file, RunError))
            identity = str(before["run"])
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise RunError(f"{file}: cannot be read: {error}; use another workdir") from error
        for key, value in made_of.items():
            if before.get(key) == value:
                continue
            what = f"{self.path}: {key}: the training began with {before.get(key)!r}, it is now {value!r}"
            if key not in _MAY_CHANGE:
                raise RunError(f"{what}; use another workdir, or the value of before")
            log.warning("%s; the weights may differ in their last bits from those of an uninterrupted training", what)
        return identity

    def check_alignment(self, alignment: str) -> None:
        """Record which party has which samples, or compare with what the folder recorded before.

        `alignment` is that of `psl_flower.split.samples.Samples`.

        Raises
        ------
        AlignmentError
            If the samples, or who has which, are others than when the training began.
        RunError
            If the file cannot be read or written.
        """
        file = self.path / "run.json"
        begun: dict[str, Any] = json.loads(read_file(file, RunError))
        before = begun.setdefault("alignment", alignment)
        if before != alignment:
            raise AlignmentError(
                f"{self.path}: the samples, or which party has which of them, are others than when this training "
                "began; let the parties give the records of before, or use another workdir"
            )
        write_file(file, json.dumps(begun, indent=1).encode(), RunError, mode=0o600)

    def rounds(self, up_to: int) -> list[dict[str, Any]]:
        """Return the records of rounds that end at step `up_to` or before; later ones were never committed."""
        file = self.path / "rounds.jsonl"
        if not file.exists():
            return []
        kept = []
        for line in read_file(file, RunError).decode("utf-8", "replace").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                break  # cut by a crash
            if record["step"] <= up_to:
                kept.append(record)
        return kept

    def write_rounds(self, records: list[dict[str, Any]]) -> None:
        """Write the records of all rounds, in one piece; raises RunError if the disk refuses."""
        text = "".join(json.dumps(record) + "\n" for record in records)
        write_file(self.path / "rounds.jsonl", text.encode(), RunError, mode=0o600, parents=True)


def _plain(name: str) -> str:
    """Return a name of the characters that a run's identity may have."""
    kept = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in name)[:64]
    return kept if kept[:1].isalnum() else f"run{kept}"
