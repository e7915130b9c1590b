"""A new run's folder, or an old run's with the settings that it began with."""

from __future__ import annotations

from psl_flower.config import GROUP_OF, RunConfig
from psl_flower.errors import ConfigError
from psl_flower.runs.folder import RunFolder, create_run, open_run

# What may differ when a run is continued: it changes how the run goes, not what comes out.
_OPERATIONAL = (
    "transport", "lower_threads", "upper_threads", "exchange_host", "exchange_port", "exchange_advertise",
    "exchange_cert", "exchange_key", "exchange_client_ca", "exchange_plaintext_on_untrusted_network",
    "node_timeout_s", "step_timeout_s", "checkpoint_every", "progress_every_s", "collect_model", "evaluate_every",
    "keys", "keys_in_open_simulation", "owner", "on_missing_node",
)  # fmt: skip


def continue_or_create(config: RunConfig) -> tuple[RunConfig, RunFolder]:
    """Return the settings to train with, and the run's folder.

    For a new run these are the settings given. With `resume`, they are those that the run began with; of the settings
    given, those that cannot change the result replace the old ones, if they are not the defaults.

    Raises
    ------
    RunError
        If there is no such run, or one of this name already, or the workspace cannot be written.
    ConfigError
        If a setting is given that would make a resumed run another one.
    """
    workspace = config.workspace_path()
    if not config.run.resume:
        run = create_run(workspace, config.run.run_name, config.data.dataset)
        run.write_config(config)
        return config, run
    run = open_run(workspace, config.run.resume)
    resumed = resumed_config(run, config)
    run.forget_stop()
    return resumed, run


def resumed_config(run: RunFolder, config: RunConfig) -> RunConfig:
    """Return the settings with which a run goes on; see `continue_or_create`.

    Raises
    ------
    ConfigError
        If a setting is given that would make it another run.
    """
    return settings_of(run, config, "resume").replace(run_name="", resume="")


def settings_of(run: RunFolder, config: RunConfig, doing: str) -> RunConfig:
    """Return the settings of an old run, with those of the settings given that cannot change what comes out of it.

    Parameters
    ----------
    run : RunFolder
        The old run.
    config : RunConfig
        The settings given.
    doing : str
        The setting that names the old run, for the error's text.

    Raises
    ------
    ConfigError
        If a setting is given that would make it another run.
    """
    began = run.read_config()
    default = RunConfig()
    changes: dict[str, object] = {}
    for name in (field for field in GROUP_OF if not _about_the_call(field)):
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
    return began.replace(workspace=str(config.workspace_path()), **changes)


def _about_the_call(field: str) -> bool:
    return field in ("resume", "run_name", "workspace") or field.startswith(("predict", "lighten"))
