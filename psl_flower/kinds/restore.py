"""A run that restores images: the nodes answer restorers' authorisation, nothing is trained."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from psl_flower.config.fields import setting
from psl_flower.kinds.kind import Kind, Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore(Kind):
    """Let the nodes answer an authorisation; answers and status go to the folder of a new run."""

    handler: ClassVar[str] = "server.restoring:restore"

    restore: str = setting("", "file of psl authorise: nodes answer it, nothing is trained", path=True)

    def begin(self) -> Work:
        """Make the folder; nodes are asked by single messages, since none of them needs the others."""
        work = Kind.begin(self)
        return dataclasses.replace(work, config=work.config.replace(transport="flower"))
