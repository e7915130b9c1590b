"""The settings that an old run began with, and what may be changed about them."""

from __future__ import annotations

from psl_flower.config import GROUP_OF, RunConfig
from psl_flower.errors import ConfigError
from psl_flower.runs.folder import RunFolder

# Settings that may differ when a run is continued: they do not change its weights.
_OPERATIONAL = (
    "transport", "lower_threads", "upper_threads", "exchange_host", "exchange_port", "exchange_advertise",
    "exchange_cert", "exchange_key", "exchange_client_ca", "exchange_plaintext_on_untrusted_network",
    "node_timeout_s", "step_timeout_s", "checkpoint_every", "keep_checkpoints", "progress_every_s", "collect_model",
    "tracker", "tracker_uri",
    "evaluate_every", "keys", "keys_in_open_simulation", "owner", "on_missing_node", "adaptation_node",
    "allow_whole_images",
)  # fmt: skip


def settings_of(run: RunFolder, config: RunConfig, doing: str) -> RunConfig:
    """Return the settings of an old run, with those given that cannot change its weights.

    `doing` is the setting that names the old run, for the error's text.

    Raises
    ------
    ConfigError
        If a setting is given that would make it another run.
    """
    began = run.read_config()
    default = RunConfig()
    changes: dict[str, object] = {}
    for name in (field for field in GROUP_OF if field not in ("run_name", "workspace")):
        given = config.value(name)
        if given in (default.value(name), began.value(name)):
            continue
        if name not in _OPERATIONAL:
            key = name.replace("_", "-")
            raise ConfigError(
                f"{key}: run {run.name} began with {began.value(name)!r}, {doing} was given {given!r}; "
                f"leave {key} out, or start a new run"
            )
        changes[name] = given
    return began.replace(workspace=str(config.workspace_path()), run_name="", **changes)
