"""Settings: one frozen object in groups, parsed once from Flower's flat run configuration. Loads no torch."""

from psl_flower.config.data import EMBEDDED
from psl_flower.config.fields import Size, Value, parse_size, size_text
from psl_flower.config.network import BORDERLESS, UNPROTECTED
from psl_flower.config.run import default_workspace
from psl_flower.config.run_config import GROUP_OF, GROUPS, RunConfig
from psl_flower.config.training import SCHEDULES, UNFROZEN
from psl_flower.config.wire import CODECS, TRANSPORTS

__all__ = [
    "BORDERLESS",
    "CODECS",
    "EMBEDDED",
    "GROUPS",
    "GROUP_OF",
    "SCHEDULES",
    "TRANSPORTS",
    "UNFROZEN",
    "UNPROTECTED",
    "RunConfig",
    "Size",
    "Value",
    "default_workspace",
    "parse_size",
    "size_text",
]
