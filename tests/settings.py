"""All settings that a run may be given."""

from typing import Any

from psl_flower.config.fields import defaults
from psl_flower.kinds import setting_groups


def known_settings() -> dict[str, Any]:
    """Return the defaults of all settings by their keys, in the order in which the app lists them."""
    return {key: value for group in setting_groups().values() for key, value in defaults(group).items()}
