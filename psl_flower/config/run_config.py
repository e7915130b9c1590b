"""Settings of a training, in groups; parsed from Flower's flat run configuration by `psl_flower.kinds.kind_of`.

The keys in `[tool.flwr.app.config]` of pyproject.toml are the fields of these groups and of the kinds of runs in kebab
case, with these defaults; a test holds the two together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from psl_flower.config.data import DataSettings
from psl_flower.config.fields import Settings, Value, fields_of, flat, parse
from psl_flower.config.machine import MachineSettings
from psl_flower.config.network import NetworkSettings
from psl_flower.config.patches import PatchSettings
from psl_flower.config.run import OutputSettings, RunSettings, default_workspace
from psl_flower.config.training import TrainingSettings
from psl_flower.config.wire import WireSettings
from psl_flower.errors import ConfigError
from psl_flower.models.architectures import check_context
from psl_flower.text import counted, expanded

GROUPS: dict[str, type[Settings]] = {
    "data": DataSettings,
    "patches": PatchSettings,
    "network": NetworkSettings,
    "training": TrainingSettings,
    "machine": MachineSettings,
    "wire": WireSettings,
    "run": RunSettings,
    "output": OutputSettings,
}
# Field -> the group that it belongs to; no two groups share a name.
GROUP_OF = {field.name: name for name, group in GROUPS.items() for field in fields_of(group)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """What a training is made of; sizes are (height, width) in pixels, (0, 0) where the default depends on the images.

    Raises
    ------
    ConfigError
        At construction, if settings of two groups contradict each other; each group checks its own.
    """

    data: DataSettings = dataclasses.field(default_factory=DataSettings)
    patches: PatchSettings = dataclasses.field(default_factory=PatchSettings)
    network: NetworkSettings = dataclasses.field(default_factory=NetworkSettings)
    training: TrainingSettings = dataclasses.field(default_factory=TrainingSettings)
    machine: MachineSettings = dataclasses.field(default_factory=MachineSettings)
    wire: WireSettings = dataclasses.field(default_factory=WireSettings)
    run: RunSettings = dataclasses.field(default_factory=RunSettings)
    output: OutputSettings = dataclasses.field(default_factory=OutputSettings)

    def __post_init__(self) -> None:
        if self.patches.margin:
            self.check_margin(self.patches.margin)
        elif self.patches.patch_size != (0, 0):
            self.training.check_shift(self.patches.patch_size)
        if self.network.stem != "auto" or self.data.image_size != (0, 0):
            check_context(self.network.context, self.network.cut, self.network.stem_for(self.data.image_size))

        if self.network.protection == "code" and self.wire.wire_activations != "float32":
            raise ConfigError(
                "wire-activations and protection=code contradict each other: codes are packed in as few bits as they "
                "have; leave wire-activations out"
            )

        if self.network.code_noise and self.training.mixup:
            raise ConfigError(
                "code-noise and mixup contradict each other: with every weight of the mixing a code would have other "
                "noise, which averages out; leave one out"
            )

        if self.training.freeze_uppers_after == 0 and (self.network.average_every or self.network.adaptation_server):
            key = "average-every" if self.network.average_every else "adaptation-server"
            raise ConfigError(
                f"{key} and freeze-uppers-after=0 contradict each other: Uppers that never change are not averaged, "
                "and learn from no Adaptation Net; leave one out"
            )

    def check_margin(self, margin: int) -> None:
        """Raise ConfigError if stores with this margin, in pixels, lack some of what shifts and context bring in."""
        shift, context = self.training.shift, self.network.context
        kept = f"the {counted(margin, 'pixel')} that the stores keep around each patch"
        if context and margin < shift + context:
            raise ConfigError(
                f"context: context={context} and shift={shift} together reach beyond {kept}; choose stores with "
                f"margin={shift + context} or more, or less of these two"
            )
        if 0 < margin < shift:
            raise ConfigError(
                f"shift: shift={shift} reaches beyond {kept}; choose shift={margin} or less, or stores with "
                f"margin={shift} or more, or with none, whose patches' borders are repeated"
            )

    @property
    def smashed_codec(self) -> str:
        """Wire codec of smashed data: that of the setting, or that of codes."""
        return self.network.cut_protection.codec(self.wire.wire_activations)

    @classmethod
    def of(cls, **values: Any) -> RunConfig:
        """Return the settings with these fields, of any group, and the defaults of the others; raises as `replace`."""
        return cls().replace(**values)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> RunConfig:
        """Parse a flat mapping with kebab-case keys; keys that are absent take their defaults.

        Raises
        ------
        ConfigError
            If a key is unknown, a value has the wrong type (a bool is not an int), or as at construction.
        """
        parsed = parse(GROUPS.values(), values, "psl settings lists all")
        return cls.of_groups(dict(zip(GROUPS, parsed, strict=True)))

    @classmethod
    def of_groups(cls, parsed: Mapping[str, Mapping[str, Any]]) -> RunConfig:
        """Return the settings with these fields, by the names of their groups; others are left aside."""
        groups: dict[str, Any] = {name: group(**parsed[name]) for name, group in GROUPS.items()}
        return cls(**groups)

    def to_mapping(self) -> dict[str, Value]:
        """Return all settings as a flat mapping with kebab-case keys, as `from_mapping` takes it."""
        return {key: value for name in GROUPS for key, value in flat(getattr(self, name)).items()}

    def replace(self, **changes: Any) -> RunConfig:
        """Return a copy with some fields, of any group, changed; checked again.

        Raises
        ------
        ConfigError
            As at construction; TypeError if there is no such field.
        """
        by_group: dict[str, dict[str, Any]] = {}
        for field, value in changes.items():
            if field not in GROUP_OF:
                raise TypeError(f"no setting {field}")
            by_group.setdefault(GROUP_OF[field], {})[field] = value
        groups: dict[str, Any] = {
            name: dataclasses.replace(getattr(self, name), **own) for name, own in by_group.items()
        }
        return dataclasses.replace(self, **groups)

    def value(self, field: str) -> Any:
        """Return a setting by the name of its field, of whichever group."""
        return getattr(getattr(self, GROUP_OF[field]), field)

    def workspace_path(self) -> Path:
        """Return the absolute folder of stores and runs: the setting, else $PSL_WORKSPACE, else ~/psl-flower."""
        return default_workspace(self.run.workspace)

    def keys_path(self) -> Path:
        """Return the absolute folder of this machine's private keys: the setting, else keys/ in the workspace."""
        return expanded(self.data.keys, "keys").absolute() if self.data.keys else self.workspace_path() / "keys"
