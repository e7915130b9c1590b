"""A node's part in an audit: its trained Uppers run on images that the auditor sends, if its operator allows it."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Annotated

import msgspec
from flwr.app import Context

from clients.asked import Asked
from psl_flower.errors import ConfigError, FrameMismatch, RunError
from psl_flower.flower.answering import LOWER
from psl_flower.flower.node_config import is_simulated, own_count, permission
from psl_flower.system.files import disk_errors, locked, read_file, write_file
from psl_flower.text import counted
from psl_flower.wire import questions
from psl_flower.wire.questions import Parcel, Tensors

LOG = "audits.jsonl"
# Images of one run that an Upper answers, in all audits together, unless its operator allows more or fewer.
MOST_IMAGES = 20_000
_AUDIT, _MOST = "audit", "audit-images"

log = logging.getLogger("psl_flower")


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question that was answered: when, as the clock here has it, UTC, and how many images."""

    when: str
    images: Annotated[int, msgspec.Meta(ge=1)]


def smash(asked: Asked[questions.SmashImages]) -> Parcel:
    """Return smashed data of the patches that came, from the Uppers here as they were when the run ended."""
    host = asked.host()
    check_audit_allowed(host.context)
    host.prepare_process()
    smashed: dict[int, Tensors] = {}
    for m in host.task.parties:
        patches_BKChw = asked.received.tensors("patches", m).get("patches")
        if patches_BKChw is None:
            raise FrameMismatch(f"{LOWER}: expected patches of Upper {m}, received none")
        with host.upper_after(m, asked.question.saved) as engine:
            engine.check_patches(patches_BKChw)
            most = None if is_simulated(host.context) else own_count(host.context, _MOST) or MOST_IMAGES
            note(host.checkpoints(m).folder / LOG, len(patches_BKChw), most, more=asked.question.more)
            smashed[m] = {"smashed": engine.of_patches(patches_BKChw)}
    return Parcel(tensors={"smashed": smashed})


def check_audit_allowed(context: Context) -> None:
    """Raise ConfigError unless a real node's own configuration allows `audit`.

    Query access to an Upper is enough to train decoders for the smashed data of this node's own patches.
    """
    if not is_simulated(context) and not permission(context, _AUDIT):
        raise ConfigError(
            "this node answers no audit: that is query access to its Upper; its operator can allow it with "
            f'--node-config "{_AUDIT}=true" (docs/privacy.md)'
        )


def note(path: Path, images: int, most: int | None, *, more: int = 0) -> None:
    """Log the number of images of an answer in an Upper's log of audits, before answering.

    An audit that would exceed the limit with the `more` images that follow is refused at its first question, so that no
    answer is wasted. With `most` None there is no limit.

    Raises
    ------
    ConfigError
        If earlier images, these and those that follow exceed `most`.
    RunError
        If the log cannot be read or written; then nothing is answered.
    """
    with disk_errors(path, "written", RunError):
        path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock")):
        written = read_file(path, RunError) if path.exists() else b""
        try:
            before = sum(msgspec.json.decode(line, type=_Entry).images for line in written.splitlines())
        except msgspec.MsgspecError as error:
            raise RunError(
                f"{path}: is damaged ({error}), so how much this node has answered is not known; it answers no audit"
            ) from None
        if most is not None and before + images + more > most:
            raise ConfigError(
                f"this node has answered audits of this run for {counted(before, 'image')}, {images + more} more "
                f"are asked for, and it answers {most} in all; its operator can set another limit ({_MOST} in "
                "--node-config)"
            )
        entry = _Entry(when=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), images=images)
        write_file(path, written + msgspec.json.encode(entry) + b"\n", RunError, mode=0o600)
    log.warning("audit: answers for %s, %d so far (%s)", counted(images, "image"), before + images, path)
