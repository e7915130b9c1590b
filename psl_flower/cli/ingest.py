"""The owner's command `psl ingest`: from images to sealed stores."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from psl_flower.cli.output import Json, tell
from psl_flower.cli.progress import Progress
from psl_flower.cli.reading import ReadingSettings, account_json, reading_options
from psl_flower.cli.terminal import OwnerPrivate, PassphraseFile, load_identity, named_public, numbered
from psl_flower.errors import ConfigError
from psl_flower.patches.assignment import Method
from psl_flower.patches.grid import Fit
from psl_flower.sealed import keyfile
from psl_flower.sealed.keys import Identity, Role
from psl_flower.sealed.manifest import Manifest, SignedManifest
from psl_flower.sealed.matching import place_of
from psl_flower.sealed.seen import SeenBook
from psl_flower.text import counted

if TYPE_CHECKING:
    from psl_flower.data.account import Account
    from psl_flower.data.options import SourceOptions
    from psl_flower.data.sources import ImageSource
    from psl_flower.sealed.ingest import Ingested, Plan
    from psl_flower.stores.store_set import StoreRequest


def ingest(
    dataset: Annotated[str, typer.Argument(help="Hub name, local folder, or digits.")],
    out: Annotated[
        list[str],
        typer.Option("--out", help="Folder for manifest, labels and stores; UPPER=URL puts one store elsewhere."),
    ],
    owner_key: OwnerPrivate,
    patch: Annotated[
        str,
        typer.Option(
            "--patch",
            "--patch-size",
            help="Patch height x width, or auto: chosen from image detail (default: half the image).",
        ),
    ] = "",
    stride: Annotated[str, typer.Option(help="Stride; as the patch: no overlap.")] = "",
    uppers: Annotated[int, typer.Option(help="Upper nodes; 0: one per node key.")] = 0,
    node_key: Annotated[
        list[str] | None,
        typer.Option(help="Public key of a node (or file), one per Upper, in order; repeatable."),
    ] = None,
    restorer: Annotated[list[str] | None, typer.Option(help="NAME=PUBLIC-KEY of a restorer; repeatable.")] = None,
    threshold: Annotated[int, typer.Option(help="Restorers needed together; 0: more than half.")] = 0,
    lower_key: Annotated[str, typer.Option(help="Public key of the Lower server: seals the labels to it.")] = "",
    image_column: Annotated[str, typer.Option(help="Column of the images (default: by type).")] = "",
    label_column: Annotated[str, typer.Option(help="Column of the labels (default: by type).")] = "",
    image_size: Annotated[str, typer.Option(help="Bring all images to this height x width.")] = "",
    fit: Annotated[str, typer.Option(help="exact, or pad where the grid does not fit.")] = "exact",
    margin: Annotated[
        int, typer.Option(min=0, help="Pixels around each patch that its node also holds; see psl settings margin.")
    ] = 0,
    assignment: Annotated[str, typer.Option(help="scatter or round-robin.")] = "scatter",
    max_train: Annotated[int, typer.Option(help="Largest number of training images; 0: all.")] = 0,
    max_test: Annotated[int, typer.Option(help="Largest number of test images; 0: all.")] = 0,
    append: Annotated[bool, typer.Option("--append", help="Add the images to the dataset that OUT holds.")] = False,
    spool: Annotated[
        Path | None,
        typer.Option(help="Folder for one sealed bundle per node, to be carried to it (psl receive)."),
    ] = None,
    passphrase_file: PassphraseFile = None,
    settings: ReadingSettings = None,
    as_json: Json = False,
) -> None:
    """Cut images into patches and seal them into one store per node. Rerun an interrupted ingest: it continues."""
    from psl_flower.sealed.ingest import Plan
    from psl_flower.stores.grid_choice import grid_for
    from psl_flower.stores.store_set import StoreRequest

    base, places = _places(out, spool)
    nodes = tuple(keyfile.load_public(text, Role.NODE) for text in node_key or ())
    if not append and (not nodes or uppers not in (0, len(nodes))):
        raise ConfigError(f"--node-key: expected one for each Upper ({uppers or 'at least 1'}), got {len(nodes)}")
    owner = load_identity(owner_key, Role.OWNER, passphrase_file)
    seen = SeenBook()
    seen.prepare()
    options = reading_options(
        settings or (), image_column=image_column, label_column=label_column, max_train=max_train, max_test=max_test
    )
    request = StoreRequest(
        dataset=dataset,
        num_uppers=len(nodes),
        fit=cast(Fit, fit),
        margin=margin,
        assignment=cast(Method, assignment),
        **_sizes(image_size, patch, stride),
        **(_as_before(options, base) if append else options).values(),
    )
    source = request.open_source()
    # Images are appended in the existing grid.
    grid, reason = (None, "") if append else grid_for(request, source)
    plan = Plan(
        patch_size=grid.patch_size if grid else (0, 0),
        stride=grid.stride if grid else (0, 0),
        nodes=nodes,
        restorers=named_public(restorer or (), Role.RESTORER),
        threshold=threshold or len(restorer or ()) // 2 + 1,
        fit=request.fit,
        margin=margin,
        assignment=assignment,
        lower=keyfile.load_public(lower_key, Role.LOWER) if lower_key else None,
    )
    start = time.monotonic()
    sealed, account = None, source.account()
    if spool is not None and not append:
        sealed = _sealed_before(base, owner, seen)
    if sealed is None:
        sealed, account = _seal(request, source, base, owner, plan, places, append, seen, progress=not as_json)
    bundles = _spool(spool, base, sealed.signed) if spool is not None else []
    report = _report(sealed, base, places, bundles, account, time.monotonic() - start)
    lines = _lines(report, account, sealed.signed.manifest, reason, base / "labels")
    tell(report | ({"grid": reason} if reason else {}), lines, as_json)


def _sizes(image_size: str, patch: str, stride: str) -> dict[str, Any]:
    """Return the sizes of a request for stores."""
    from psl_flower.config import parse_size

    automatic = patch == "auto"
    if automatic and stride:
        raise ConfigError("--patch auto chooses the stride, too; leave --stride out")
    return {
        "image_size": parse_size("--image-size", image_size),
        "patch_size": parse_size("--patch", "" if automatic else patch),
        "stride": parse_size("--stride", stride),
        "pattern": "auto" if automatic else "",
    }


def _sealed_before(base: Path, owner: Identity, seen: SeenBook) -> Ingested | None:
    """Return the earlier ingest, if it is complete and only the bundles are missing."""
    from psl_flower.sealed.ingest import Ingested
    from psl_flower.sealed.newest import read_newest
    from psl_flower.sealed.sealing import is_complete

    if not is_complete(base):
        return None
    signed = read_newest(base, seen, owner.public).signed
    return Ingested(signed, signed.manifest.num_samples, 0, 0)


def _seal(
    request: StoreRequest,
    source: ImageSource,
    base: Path,
    owner: Identity,
    plan: Plan,
    places: Mapping[int, str],
    append: bool,
    seen: SeenBook,
    *,
    progress: bool,
) -> tuple[Ingested, Account]:
    """Seal the images, and return the result with the account of the reading, which is saved beside the stores."""
    from psl_flower.data.account import account_file
    from psl_flower.sealed.ingest import ingest as do_ingest

    account = source.account()

    def note_account(draft: Manifest, known: Mapping[tuple[str, int], int]) -> None:
        nonlocal account
        account = source.account().without(known)
        account.save(base / account_file(draft.generation))

    with Progress(enabled=progress) as display:
        done = do_ingest(
            request.sized(source),
            base,
            owner,
            plan,
            places=places,
            append=append,
            progress=display.steps,
            on_read=note_account,
            seen=seen,
        )
    return done, account


def _places(out: list[str], spool: Path | None) -> tuple[Path, dict[int, str]]:
    """Return the owner's folder and the stores that are to lie elsewhere, by Upper."""
    folders, places = numbered(out)
    if len(folders) != 1:
        raise ConfigError("--out: name exactly one folder; further ones as UPPER=URL, such as 2=ssh://host/path")
    if "://" in folders[0]:
        raise ConfigError(
            "--out: the owner's folder, with manifest and labels, is local; UPPER=URL puts a store elsewhere"
        )
    if spool is not None and places:
        raise ConfigError("--spool and stores at other places exclude each other")
    return Path(folders[0]), places


def _report(
    done: Ingested, base: Path, places: Mapping[int, str], bundles: list[str], account: Account, seconds: float
) -> dict[str, Any]:
    """Return the report that --json prints."""
    from psl_flower.sealed.url_folder import shown

    manifest = done.signed.manifest
    return {
        "manifest": str(base / "manifest.psl"),
        "dataset": manifest.dataset.hex(),
        "generation": manifest.generation,
        "images": manifest.num_samples,
        "added": done.added,
        "resumed": done.resumed,
        "known": done.known,
        "relabelled": done.relabelled,
        "seconds": round(seconds, 3),
        "images_per_minute": round(done.added / seconds * 60) if seconds > 0 else 0,
        "stores": [shown(places.get(s.upper) or str(place_of(base, manifest, s.upper))) for s in manifest.stores],
        "bundles": bundles,
        "account": account_json(account),
    }


def _lines(report: Mapping[str, Any], account: Account, manifest: Manifest, reason: str, labels: Path) -> Iterator[str]:
    """Yield the lines that an ingest prints."""
    yield from account.lines()
    if report["relabelled"]:
        have = "has" if report["relabelled"] == 1 else "have"
        yield f"{report['relabelled']} of those sealed before {have} another class here: psl relabel corrects labels"
    resumed = f", {report['resumed']} were there from an interrupted run" if report["resumed"] else ""
    rate = f"{report['seconds']:.1f} s ({report['images_per_minute']} a minute)"
    yield f"{counted(report['added'], 'image')} sealed in {rate}{resumed}"
    yield (
        f"generation {manifest.generation}: {counted(manifest.num_samples, 'image')} in "
        f"{counted(len(manifest.stores), 'store')}, "
        f"{manifest.grid.patch[0]}x{manifest.grid.patch[1]} patches{_around(manifest)}; {report['manifest']}"
    )
    if reason:
        yield reason
    yield from (f"  {place}" for place in (*report["stores"], *report["bundles"]))
    if not manifest.lower:
        yield f"labels: {labels} is signed but not encrypted: give it to the Lower server only (--lower-key seals it)"
    if not manifest.restorers:
        yield "no restorer is named: nobody can reassemble images until psl rotate --restorer names one"


def _around(manifest: Manifest) -> str:
    margin = manifest.grid.margin
    return f" with {counted(margin, 'pixel')} around each" if margin else ""


def _as_before(options: SourceOptions, base: Path) -> SourceOptions:
    """Return options that map the pixels of more images as those of the images sealed first were mapped."""
    from dataclasses import replace

    from psl_flower.config.data import BY_DATASET, pixel_range_text
    from psl_flower.data.account import FILE, Account

    if options.pixel_range != BY_DATASET:
        return options
    first = Account.load(base / FILE)
    if first is None or first.pixel_range is None:
        raise ConfigError(f"pixel-range: {base} does not say what the first images were mapped by; state the range")
    return replace(options, pixel_range=pixel_range_text(first.pixel_range))


def _spool(spool: Path, base: Path, signed: SignedManifest) -> list[str]:
    """Write one bundle per node; the stores stay, so that images can be appended later."""
    from psl_flower.sealed.bundle import pack

    targets = []
    for entry in signed.manifest.stores:
        target = spool / f"node-{entry.upper:03d}.pslbundle"
        pack(place_of(base, signed.manifest, entry.upper), entry, signed, target)
        targets.append(str(target))
    return targets
