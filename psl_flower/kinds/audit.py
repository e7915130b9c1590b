"""A run that measures, over a trained run's nodes, what smashed data reveal of images that the auditor brings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from psl_flower.config.fields import RUN_NAME, setting
from psl_flower.errors import ConfigError
from psl_flower.kinds.kind import OfTrainedRun, Work, trained_run
from psl_flower.runs.folder import RunFolder

FOLDER = "leak"


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit(OfTrainedRun):
    """Let the nodes' trained Uppers run on the auditor's images, and attack what they send; the run stays as it is."""

    handler: ClassVar[str] = "server.auditing:audit"
    unit: ClassVar[str] = "attack"

    audit: str = setting(
        "", "audit this run: nodes with audit=true run their Uppers on your images (docs/privacy.md)", form=RUN_NAME
    )
    audit_images: str = setting("", "dataset of these images, such as a folder; its test split is used", path=True)
    audit_victims: int = setting(
        0, "images of it to rebuild, 2 or more; 0: 500, or a fifth of few", least=0, most=10_000
    )
    audit_auxiliary: int = setting(5000, "other images of it that the attacker learns from", least=20, most=100_000)
    audit_epochs: int = setting(30, "passes of a decoder over them at most", least=1)

    def _check(self) -> None:
        if not self.audit_images:
            raise ConfigError("audit-images: is needed with audit: a folder of images, or another dataset")
        if self.audit_victims == 1:
            raise ConfigError("audit-victims: expected 2 or more, or 0 to choose, got 1")

    def find(self) -> Work:
        """Return the trained run, and the folder of its audit."""
        run, settings = trained_run(self.config, "audit", self.audit, "nothing to audit")
        return Work(config=settings, source=run, folder=RunFolder(run.path / FOLDER))
