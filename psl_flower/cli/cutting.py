"""Derives how to cut an owner's images from the options and settings of `psl ingest`, or from the set appended to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psl_flower.cli.reading import given_settings
from psl_flower.errors import ConfigError

if TYPE_CHECKING:
    from psl_flower.data.account import Account
    from psl_flower.sealed.ingest import IngestPlan
    from psl_flower.sealed.manifest import Manifest
    from psl_flower.stores.store_set import StoreRequest

_CUT = ("image_size", "grid", "patch_size", "stride", "fit", "margin", "uppers", "assignment")


def cut_settings(words: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that an ingest was given, as `given_settings`; `--patch auto` is grid=auto.

    Raises
    ------
    ConfigError
        As `given_settings`, or if `grid=auto` comes with a patch size or stride.
    """
    own = dict(options)
    if own["patch_size"] == "auto":
        own |= {"patch_size": "", "grid": "auto"}
    given = given_settings(words, own, _CUT)
    if given.get("grid") == "auto":
        if given.get("stride"):
            raise ConfigError("--patch auto also chooses the stride; leave --stride out")
        if given.get("patch_size"):
            raise ConfigError("grid: auto chooses patch-size and stride from the images; leave these two out")
    return given


def request_of(dataset: str, given: Mapping[str, Any], num_uppers: int) -> StoreRequest:
    """Return the request for stores that settings state; raises ConfigError if a value is out of its range."""
    from psl_flower.config.patches import PatchSettings
    from psl_flower.stores.store_set import StoreRequest

    PatchSettings(**{name: given[name] for name in ("fit", "margin", "assignment") if name in given})  # its checks
    named = {name: value for name, value in given.items() if name not in ("grid", "uppers")}
    return StoreRequest(dataset=dataset, num_uppers=num_uppers, pattern=given.get("grid", ""), **named)


def as_before(given: Mapping[str, Any], base: Path, manifest: Manifest) -> dict[str, Any]:
    """Return the settings for appending to a set: the size and the grid of its first images.

    `given` is as `cut_settings` returns it, `base` the owner's folder.

    Raises
    ------
    ConfigError
        If a setting is given that contradicts the set.
    """
    from psl_flower.config import size_text
    from psl_flower.data.account import FILE, Account
    from psl_flower.patches.assignment import assign

    grid, first = manifest.grid, Account.load(base / FILE)
    held: dict[str, Any] = {
        "image_size": grid.image, "patch_size": grid.patch, "stride": grid.stride, "fit": grid.fit,
        "margin": grid.margin, "uppers": len(manifest.stores),
    }  # fmt: skip
    if first is not None:
        held["background"] = first.background
    for name, found in held.items():
        value = given.get(name, found)
        if value not in (found, (0, 0)) and (name, value) != ("uppers", 0):
            said, instead = (size_text(size) if isinstance(size, tuple) else size for size in (value, found))
            raise _contradiction(name.replace("_", "-"), said, base, instead)
    asked = given.get("assignment")
    if asked and assign(grid.patch_grid, len(manifest.stores), asked) != manifest.assignment:
        raise _contradiction("assignment", asked, base, manifest.assignment)
    # Grid and holders are the manifest's.
    kept = {name: value for name, value in given.items() if name not in _CUT}
    stated = given.get("image_size", (0, 0))
    kept |= {"image_size": stated, "pixel_range": _range_as_before(given.get("pixel_range", ""), base, first)}
    if first is not None:
        kept |= {"image_size": first.image_size or stated, "background": first.background}
    return kept


def _range_as_before(asked: str, base: Path, first: Account | None) -> str:
    """Return the `pixel-range` with which the first images were read."""
    from psl_flower.config.data import BY_DATASET, parse_pixel_range, pixel_range_text

    found = None if first is None else first.pixel_range
    if asked == BY_DATASET and found is None:
        raise ConfigError(f"pixel-range: {base} does not say what the first images were mapped by; state the range")
    if first is None:
        return asked
    if asked not in ("", BY_DATASET) and parse_pixel_range(asked) != found:
        raise _contradiction("pixel-range", asked, base, pixel_range_text(found) or "what the images' format says")
    return pixel_range_text(found)


def check_people(plan: IngestPlan, threshold: int, base: Path, manifest: Manifest) -> None:
    """Raise ConfigError if keys or a threshold are given that are not those of the set that images are appended to."""
    nodes, restorers = [entry.node for entry in manifest.stores], [(m.name, m.public) for m in manifest.restorers]
    wrong = {
        "--node-key": plan.nodes and [str(node) for node in plan.nodes] != nodes,
        "--restorer": plan.restorers
        and sorted((name, str(public)) for name, public in plan.restorers.items()) != sorted(restorers),
        "--threshold": threshold and threshold != manifest.threshold,
        "--lower-key": plan.lower is not None and str(plan.lower) != manifest.lower,
    }
    for option in (option for option, is_wrong in wrong.items() if is_wrong):
        raise ConfigError(
            f"{option}: is not what {base} was sealed with; leave it out, since --append takes it from there, and "
            "change it with psl rotate"
        )


def _contradiction(key: str, value: object, base: Path, found: object) -> ConfigError:
    return ConfigError(
        f"{key}: {value} is given, but {base} was sealed with {found}; leave it out, since --append takes it from there"
    )
