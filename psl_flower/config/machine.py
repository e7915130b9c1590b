"""Settings: what each machine computes with."""

from __future__ import annotations

import re
from dataclasses import dataclass

from psl_flower.config.fields import Settings, setting
from psl_flower.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSettings(Settings):
    """What each party computes with on its own machine."""

    device: str = setting("auto", "auto, cpu, cuda or cuda:N; each party chooses on its own machine")
    autocast: bool = setting(False, "bfloat16 autocast: faster on processors and GPUs with bfloat16 instructions")
    lower_threads: int = setting(0, "threads of the Lower; 0: all cores", least=0)
    upper_threads: int = setting(0, "threads of a node; 0: its share of the cores", least=0)

    def _check(self) -> None:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f'device: expected "auto", "cpu", "cuda" or "cuda:N", got {self.device!r}')
