"""Settings: what each machine computes with."""

from __future__ import annotations

from dataclasses import dataclass

from psl_flower.config.fields import Form, Settings, setting

_DEVICE = Form(r"auto|cpu|cuda(:\d+)?", '"auto", "cpu", "cuda" or "cuda:N"')


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSettings(Settings):
    """What each party computes with on its own machine."""

    device: str = setting("auto", "auto, cpu, cuda or cuda:N; each party chooses on its own machine", form=_DEVICE)
    autocast: bool = setting(False, "bfloat16 autocast: faster on processors and GPUs with bfloat16 instructions")
    lower_threads: int = setting(0, "threads of the Lower; 0: all cores", least=0)
    upper_threads: int = setting(0, "threads of a node; 0: its share of the cores", least=0)
