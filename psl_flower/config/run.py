"""Settings: the run itself, where it lies and what it does."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from psl_flower.config.fields import Settings, setting
from psl_flower.errors import ConfigError
from psl_flower.text import expanded

_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings(Settings):
    """Where a run lies, what it does, and what it writes."""

    workspace: str = setting("", "folder of stores and runs; empty: $PSL_WORKSPACE, or ~/psl-flower")
    run_name: str = setting("", "name of the run; empty: made of the dataset and the time")
    resume: str = setting("", "continue the run of this name")
    restore: str = setting("", "file of psl authorise: nodes answer it, nothing is trained")
    predict: str = setting("", "predict with the model of the run of this name where it lies; nothing is trained")
    predict_split: str = setting("test", "which split to predict", choices=("test", "train"))
    predict_images: str = setting("", "instead: images such as 17,test:5, or a file of them")
    predict_without: str = setting("", "Uppers to leave out, such as 0,3: zeros replace their smashed data")
    predict_light: bool = setting(False, "predict with the light Uppers and Lower that psl lighten has put in place")
    lighten: str = setting("", "find a light model of the run of this name, over the federation (docs/lightening.md)")
    lighten_with: str = setting("", "its goals, such as max-drop=0.01 min-speed=2000: the options of psl lighten")
    checkpoint_every: int = setting(
        0, "steps between checkpoints; one is always written at the end of a round", least=0
    )
    collect_model: bool = setting(True, "collect the Upper models at the end into runs/<name>/model")
    progress_every_s: float = setting(2.0, "seconds between lines of progress", least=0)

    def uppers_left_out(self) -> frozenset[int]:
        """Return the Uppers that a prediction is to do without."""
        return frozenset(int(text) for text in self.predict_without.split(",") if text)

    def _check(self) -> None:
        if not re.fullmatch(r"(\d{1,6}(,\d{1,6})*)?", self.predict_without):
            raise ConfigError(
                f'predict-without: expected numbers of Uppers, such as "0,3", got {self.predict_without!r}'
            )
        for key in ("run-name", "resume", "predict", "lighten"):
            name = getattr(self, key.replace("-", "_"))
            if name and not _RUN_NAME.fullmatch(name):
                raise ConfigError(f"{key}: expected letters, digits, '.', '_' and '-', 100 at most, got {name!r}")
        if self.resume and self.run_name:
            raise ConfigError("resume and run-name contradict each other: a resumed run keeps its name")
        if self.restore and self.resume:
            raise ConfigError("restore and resume contradict each other: a run trains, or it restores images")
        self._check_prediction()
        self._check_lightening()

    def _check_prediction(self) -> None:
        if self.predict:
            for key, given in (("resume", self.resume), ("restore", self.restore)):
                if given:
                    raise ConfigError(f"predict and {key} contradict each other: a run does one of them")
            return
        default = {name: field.default for name, field in type(self).__dataclass_fields__.items()}
        for name in ("predict_split", "predict_images", "predict_without", "predict_light"):
            if getattr(self, name) != default[name]:
                raise ConfigError(f"{name.replace('_', '-')}: is set, but predict is not; name the run with predict")

    def _check_lightening(self) -> None:
        if not self.lighten:
            if self.lighten_with:
                raise ConfigError("lighten-with: is set, but lighten is not; name the run with lighten")
            return
        for key in ("run-name", "resume", "restore", "predict"):
            if getattr(self, key.replace("-", "_")):
                raise ConfigError(f"lighten and {key} contradict each other: leave one out")


def default_workspace(setting: str = "") -> Path:
    """Return the absolute workspace folder: `setting`, else $PSL_WORKSPACE, else ~/psl-flower."""
    return expanded(setting or os.environ.get("PSL_WORKSPACE") or "~/psl-flower", "workspace").absolute()
