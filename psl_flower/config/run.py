"""Settings: where a run lies, and what it writes. What it does is in `psl_flower.kinds`, with the settings of that."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from psl_flower.config.fields import RUN_NAME, Settings, setting
from psl_flower.text import expanded


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings(Settings):
    """Where a run lies."""

    workspace: str = setting("", "folder of stores and runs; empty: $PSL_WORKSPACE, or ~/psl-flower")
    run_name: str = setting("", "name of the run; empty: made of the dataset and the time", form=RUN_NAME)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSettings(Settings):
    """What a run writes."""

    checkpoint_every: int = setting(
        0, "steps between checkpoints; one is always written at the end of a round", least=0
    )
    keep_checkpoints: int = setting(
        1, "newest checkpoints that stay once all rounds are done; three during the run", least=1, most=3
    )
    collect_model: bool = setting(True, "collect the Upper models at the end into runs/<name>/model")
    progress_every_s: float = setting(2.0, "seconds between lines of progress", least=0)


def default_workspace(setting: str = "") -> Path:
    """Return the absolute workspace folder: `setting`, else $PSL_WORKSPACE, else ~/psl-flower."""
    return expanded(setting or os.environ.get("PSL_WORKSPACE") or "~/psl-flower", "workspace").absolute()
