"""The patch stores that a run's settings ask for: sealed or plain, or those that an owner has filled."""

from __future__ import annotations

from psl_flower.config import RunConfig, size_text
from psl_flower.errors import ConfigError
from psl_flower.patches.assignment import assign
from psl_flower.patches.description import StoreSetDescription
from psl_flower.sealed import manifest as manifests
from psl_flower.sealed.identities import Role
from psl_flower.sealed.keyring import KeyRing
from psl_flower.sealed.matching import place_of
from psl_flower.sealed.seen import SeenBook
from psl_flower.stores.ingest import ensure_stores
from psl_flower.stores.sealed_set import ensure_sealed, is_sealed_dataset, open_sealed_dataset
from psl_flower.stores.store_set import StoreSet, store_request, stores_root
from psl_flower.text import OnProgress, expanded


def prepare_stores(
    config: RunConfig, progress: OnProgress | None = None, *, labels_version: int | None = None
) -> StoreSet:
    """Return the stores of a run, made first if they are missing.

    `progress` is called as progress(stage, done, total) while stores are made; stage is "train" or "test".
    `labels_version` is the version of the labels that a resumed run began with; by default the newest.

    Raises
    ------
    ConfigError
        If settings contradict an owner's dataset, or the keys that they name are not there.
    PslError
        As `ensure_stores`, `ensure_sealed` and `open_sealed_dataset`.
    """
    workspace = config.workspace_path()
    if config.data.keys and not config.keys_path().exists():
        # A mistyped path must not become a new set of everybody's keys.
        raise ConfigError(f"keys: {config.keys_path()}: no such folder, or key file; correct it, or leave keys out")
    if is_sealed_dataset(config.data.dataset):
        folder, seen = expanded(config.data.dataset, "dataset").absolute(), SeenBook()
        seen.absorb(workspace / "seen")  # where earlier versions remembered what runs had seen
        stores = open_sealed_dataset(folder, config.keys_path(), config.data.owner, seen, labels_version=labels_version)
        check_settings(config, stores.description)
        return stores
    config.check_margin(config.patches.margin)  # before stores are made that the run could not use
    request, root = store_request(config), stores_root(workspace)
    if config.data.stores == "plain":
        return ensure_stores(root / "plain", request, progress)
    return ensure_sealed(root, request, config.keys_path(), progress, labels_version=labels_version)


def find_dataset(config: RunConfig) -> None:
    """Raise PslError if a run's dataset cannot be opened, before anything is made for it."""
    if not is_sealed_dataset(config.data.dataset):
        store_request(config).locate(stores_root(config.workspace_path()))


def stores_are_here(config: RunConfig) -> bool:
    """Check if this machine holds, or can make, all patch stores of a run, with the keys that open them."""
    if not is_sealed_dataset(config.data.dataset):
        return True
    folder = expanded(config.data.dataset, "dataset").absolute()
    manifest = manifests.load(folder).manifest
    keys = config.keys_path()
    held = {str(public) for public, _ in KeyRing(keys).public(Role.NODE)} if keys.exists() else set()
    return all(entry.node in held and place_of(folder, manifest, entry.upper).is_dir() for entry in manifest.stores)


def check_settings(config: RunConfig, description: StoreSetDescription) -> None:
    """Raise ConfigError if settings say otherwise than the owner, who has cut the images already."""
    if config.data.stores == "plain":
        raise ConfigError(f"stores: plain is given, but {config.data.dataset} holds sealed stores")
    if config.patches.grid == "auto":
        raise ConfigError(
            f"grid: auto is given, but {config.data.dataset} holds stores that are cut already; leave it out"
        )
    cut: dict[str, tuple[object, object]] = {
        "image-size": (size_text(config.data.image_size), size_text(description.image_size)),
        "patch-size": (size_text(config.patches.patch_size), size_text(description.patch_size)),
        "stride": (size_text(config.patches.stride), size_text(description.stride)),
        "margin": (config.patches.margin, description.margin),
        "uppers": (config.patches.uppers, description.num_uppers),
        "max-train": (config.data.max_train, 0),
        "max-test": (config.data.max_test, 0),
        # Its default looks like a setting that was left out.
        "fit": ("pad" if config.patches.fit == "pad" else "", description.fit),
    }
    for key, (given, found) in cut.items():
        if given and given != found:
            if not found:
                raise ConfigError(
                    f"{key}: {given} is given, but the images of {config.data.dataset} were chosen when they were "
                    "sealed; leave it out"
                )
            raise ConfigError(f"{key}: {given} is given, but {config.data.dataset} holds stores made with {found}")
    for key in (
        "read-as", "train-split", "test-split", "split-column", "class-folder", "leave-out", "pixel-range",
    ):  # fmt: skip
        if given := config.value(key.replace("-", "_")):
            raise ConfigError(
                f"{key}: {given} is given, but {config.data.dataset} holds images that are read and sealed already; "
                "leave it out"
            )
    # Its default looks like a setting that was left out, and the owner's rotations may have moved positions.
    if config.patches.assignment != RunConfig().patches.assignment:
        asked = assign(description.grid(), description.num_uppers, config.patches.assignment)
        if asked != description.assignment:
            raise ConfigError(
                f"assignment: {config.patches.assignment} is given, but {config.data.dataset} holds stores with the "
                f"assignment {description.assignment}"
            )
