"""Settings: where a run lies, and what it writes. What it does is in `psl_flower.kinds`, with the settings of that."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from psl_flower.config.fields import RUN_NAME, Settings, setting
from psl_flower.errors import ConfigError
from psl_flower.text import expanded


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings(Settings):
    """Name and folder of a run."""

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
    tracker: Literal["none", "mlflow", "wandb"] = setting(
        "none", "record settings and metrics in MLflow or Weights & Biases, too; needs the extra of that name"
    )
    tracker_uri: str = setting(
        "",
        "the tracker's server, such as https://mlflow.example or https://api.wandb.ai; empty: files in the workspace",
    )

    def _check(self) -> None:
        if self.tracker_uri and self.tracker == "none":
            raise ConfigError("tracker-uri goes with tracker=mlflow or tracker=wandb")
        _check_uri(self.tracker_uri)


def _check_uri(uri: str) -> None:
    """Refuse an address with a password in it, which the run's folder would keep and others be shown."""
    try:
        found = urlsplit(uri)
        secret = found.username is not None or found.password is not None
    except ValueError as error:
        raise ConfigError(f"tracker-uri: is no address: {error}") from error
    if secret:
        raise ConfigError(
            "tracker-uri: leave user and password out of the address: MLflow takes them from ~/.mlflow/credentials, "
            "Weights & Biases from `wandb login`"
        )
    if uri and not found.scheme:
        raise ConfigError(f"tracker-uri: expected an address such as https://mlflow.example, got {uri!r}")


def default_workspace(setting: str = "") -> Path:
    """Return the absolute workspace folder: `setting`, else $PSL_WORKSPACE, else ~/psl-flower."""
    return expanded(setting or os.environ.get("PSL_WORKSPACE") or "~/psl-flower", "workspace").absolute()
