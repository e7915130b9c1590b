"""Which run a lightening over the federation is of, and its folder; and the light model that it has put in place."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from psl_flower.config import RunConfig
from psl_flower.engine.build import OnnxInference
from psl_flower.errors import ConfigError, OtherDataset, RunError
from psl_flower.lightening.artefacts import LOWER_FILE, upper_file
from psl_flower.lightening.folder import FOLDER, THIRD, LighteningFolder
from psl_flower.lightening.on_node import IN_PLACE
from psl_flower.lightening.request import parse_request
from psl_flower.patches.description import StoreSetDescription
from psl_flower.runs.folder import RunFolder, open_run
from psl_flower.runs.resuming import settings_of
from psl_flower.system.files import write_atomically

# In <run>/light/: the name of the lightening whose third model is in place on the nodes.
_IN_PLACE_FILE = "in-place"


class LightModel(NamedTuple):
    """A light model in place on the nodes.

    Attributes
    ----------
    lower : Path
        The Lower's file.
    shipped : OnnxInference
        What nodes are told.
    part : str
        Of the lightening; see `NodeTask.part`.
    """

    lower: Path
    shipped: OnnxInference
    part: str


def begin(config: RunConfig) -> tuple[RunConfig, RunFolder, LighteningFolder]:
    """Return the settings to lighten with, the run that is lightened, and the lightening's folder, new or begun.

    Raises
    ------
    RunError
        If there is no such run, it has no model, or the disk refuses.
    ConfigError
        If a setting is given that the run did not train with.
    """
    run = open_run(config.workspace_path(), config.run.lighten)
    settings = settings_of(run, config, "lighten")
    try:
        request = parse_request(config.run.lighten_with)
    except ConfigError as error:
        raise ConfigError(f"lighten-with: {error}") from None
    folder = LighteningFolder(run, request.settings, federated=True)
    # A node that is not there is waited for: without it, other weights would come out.
    asked = {"lighten": config.run.lighten, "lighten_with": config.run.lighten_with, "on_missing_node": "wait"}
    return settings.replace(run_name="", resume="", restore="", **asked), run, folder


def check_stores(run: RunFolder, description: StoreSetDescription) -> None:
    """Raise OtherDataset unless these patch stores are those that a run was trained on."""
    if description.fingerprint != run.read_description().fingerprint:
        raise OtherDataset(
            f"{description.dataset}: its patch stores are not those that run {run.name} was trained on; put those "
            "back, or train anew"
        )


def note_in_place(run: RunFolder, folder: LighteningFolder) -> None:
    """Note that the third model of a lightening is in place on all nodes.

    Raises
    ------
    RunError
        If the disk refuses.
    """
    path = run.path / FOLDER / _IN_PLACE_FILE
    try:
        write_atomically(path, folder.path.name.encode())
    except OSError as error:
        raise RunError(f"{path}: cannot write: {error.strerror or error}") from error


def light_model(run: RunFolder, num_uppers: int) -> LightModel:
    """Return the light model of a run that is in place on the nodes.

    Raises
    ------
    RunError
        If there is none, or its files have gone.
    """
    try:
        name = (run.path / FOLDER / _IN_PLACE_FILE).read_text("ascii")
    except (OSError, UnicodeDecodeError):
        raise RunError(f"{run.path}: no light model is in place; find one with: psl lighten {run.name}") from None
    third = run.path / FOLDER / name / THIRD
    return LightModel(third / LOWER_FILE, shipped_from(third, num_uppers), f"{name}/{IN_PLACE}")


def shipped_from(folder: Path, num_uppers: int) -> OnnxInference:
    """Return what nodes are told of the Uppers' files in a folder; raises RunError if one cannot be read."""
    return OnnxInference(
        digests={m: hashlib.sha256(file).hexdigest() for m, file in enumerate(files_in(folder, num_uppers))}
    )


def files_in(folder: Path, num_uppers: int) -> list[bytes]:
    """Return the Uppers' files in a folder; raises RunError if one cannot be read."""
    files = []
    for path in (folder / upper_file(m) for m in range(num_uppers)):
        try:
            files.append(path.read_bytes())
        except OSError as error:
            raise RunError(f"{path}: cannot be read: {error.strerror or error}") from error
    return files
