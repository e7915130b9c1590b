"""The owner's command `psl ingest`: from images to sealed stores."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from psl_flower.cli.cutting import as_before, check_people, cut_settings, request_of
from psl_flower.cli.image_selection import image_name
from psl_flower.cli.output import Json, tell
from psl_flower.cli.progress import Progress
from psl_flower.cli.reading import ReadingSettings
from psl_flower.cli.terminal import OwnerPrivate, PassphraseFile, load_identity, named_public, numbered
from psl_flower.data.copies import no_copies_kept
from psl_flower.errors import ConfigError
from psl_flower.sealed import keyfile
from psl_flower.sealed import manifest as manifests
from psl_flower.sealed.identities import Identity, PublicIdentity, Role
from psl_flower.sealed.manifest import Manifest, SignedManifest
from psl_flower.sealed.matching import place_of
from psl_flower.sealed.seen import SeenBook
from psl_flower.text import counted, printable

if TYPE_CHECKING:
    from psl_flower.data.account import Account
    from psl_flower.data.sources import ImageSource
    from psl_flower.patches import PatchGrid
    from psl_flower.sealed.ingest import Ingested, IngestPlan
    from psl_flower.stores.store_set import StoreRequest


# Images that a line names; --json names all.
_NAMED = 5


@no_copies_kept()
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
    fit: Annotated[str, typer.Option(help="exact (default), or pad where the grid does not fit.")] = "",
    margin: Annotated[
        int | None,
        typer.Option(min=0, help="Pixels around each patch that its node also holds [0]; see psl settings margin."),
    ] = None,
    assignment: Annotated[str, typer.Option(help="scatter (default) or round-robin.")] = "",
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
    from psl_flower.stores.grid_choice import grid_for

    base, places = _places(out, spool)
    nodes = tuple(keyfile.load_public(text, Role.NODE) for text in node_key or ())
    given = cut_settings(
        settings or (),
        {
            "image_column": image_column, "label_column": label_column, "max_train": max_train or None,
            "max_test": max_test or None, "image_size": image_size, "patch_size": patch, "stride": stride, "fit": fit,
            "margin": margin, "uppers": uppers or None, "assignment": assignment,
        },
    )  # fmt: skip
    if not append:
        _check_nodes(len(nodes), given.get("uppers", 0))
    owner = load_identity(owner_key, Role.OWNER, passphrase_file)
    seen = SeenBook()
    seen.prepare()
    before = manifests.load(base, owner.public).manifest if append and (base / manifests.FILE).exists() else None
    request = request_of(dataset, given if before is None else as_before(given, base, before), len(nodes))
    source = request.open_source()
    # Images are appended in the existing grid.
    grid, reason = (None, "") if append else grid_for(request, source)
    plan = _plan(request, grid, nodes, restorer or (), threshold, lower_key)
    if before is not None:
        check_people(plan, threshold, base, before)
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


def _plan(
    request: StoreRequest,
    grid: PatchGrid | None,
    nodes: tuple[PublicIdentity, ...],
    restorers: Sequence[str],
    threshold: int,
    lower_key: str,
) -> IngestPlan:
    """Return the plan of grid, nodes and people; without a grid, that of the set to append to is kept."""
    from psl_flower.sealed.ingest import IngestPlan

    return IngestPlan(
        patch_size=grid.patch_size if grid else (0, 0),
        stride=grid.stride if grid else (0, 0),
        nodes=nodes,
        restorers=named_public(restorers, Role.RESTORER),
        threshold=threshold or len(restorers) // 2 + 1,
        fit=request.fit,
        margin=request.margin,
        assignment=request.assignment,
        lower=keyfile.load_public(lower_key, Role.LOWER) if lower_key else None,
        secret_order=True,
    )


def _check_nodes(count: int, asked: int) -> None:
    """Raise ConfigError unless there is a node, and as many as Uppers were asked for; 0 asks for no number."""
    if not count or asked not in (0, count):
        raise ConfigError(f"--node-key: expected one for each Upper ({asked or 'at least 1'}), got {count}")


def _sealed_before(base: Path, owner: Identity, seen: SeenBook) -> Ingested | None:
    """Return the earlier ingest, if it is complete and only the bundles are missing."""
    from psl_flower.sealed.ingest import Ingested
    from psl_flower.sealed.newest_dataset import read_newest_dataset
    from psl_flower.sealed.sealing import is_complete

    if not is_complete(base):
        return None
    signed = read_newest_dataset(base, seen, owner.public).signed
    return Ingested(signed, signed.manifest.num_samples, 0, 0)


def _seal(
    request: StoreRequest,
    source: ImageSource,
    base: Path,
    owner: Identity,
    plan: IngestPlan,
    places: Mapping[int, str],
    append: bool,
    seen: SeenBook,
    *,
    progress: bool,
) -> tuple[Ingested, Account]:
    """Seal the images, and return the result with the account of the reading, which is saved beside the stores."""
    from psl_flower.data.account import account_file
    from psl_flower.sealed.ingest import ingest as do_ingest

    sized = request.sized(source)
    account = sized.account()

    def note_account(draft: Manifest, known: Mapping[tuple[str, int], int]) -> None:
        nonlocal account
        account = sized.account().without(known)
        if not append or any(split.count for split in account.splits):
            account.save(base / account_file(draft.generation))

    with Progress(enabled=progress) as display:
        done = do_ingest(
            sized,
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
        "relabelled": len(done.relabelled),
        "classes_here": {image_name(manifest, n): manifest.classes[k] for n, k in done.relabelled.items()},
        "seconds": round(seconds, 3),
        "images_per_minute": round(done.added / seconds * 60) if seconds > 0 else 0,
        "stores": [shown(places.get(s.upper) or str(place_of(base, manifest, s.upper))) for s in manifest.stores],
        "bundles": bundles,
        "account": msgspec.to_builtins(account),
    }


def _lines(report: Mapping[str, Any], account: Account, manifest: Manifest, reason: str, labels: Path) -> Iterator[str]:
    """Yield the lines that an ingest prints."""
    yield from account.lines()
    if report["relabelled"]:
        have = "has" if report["relabelled"] == 1 else "have"
        here = [f"{image} {printable(name)}" for image, name in islice(report["classes_here"].items(), _NAMED)]
        more = ", ..." if report["relabelled"] > _NAMED else ""
        yield (
            f"{report['relabelled']} of those sealed before {have} another class here ({', '.join(here)}{more}): "
            "psl relabel corrects labels"
        )
    if report["known"] and not report["added"] and not report["resumed"]:
        sealed = f"all {report['known']} images were" if report["known"] > 1 else "the image was"
        yield f"nothing new: {sealed} sealed before; the dataset stays as it is, generation {manifest.generation}"
        return
    resumed = f", {report['resumed']} were there from an interrupted run" if report["resumed"] else ""
    rate = f"{report['seconds']:.1f} s ({report['images_per_minute']} a minute)"
    yield f"{counted(report['added'], 'image')} sealed in {rate}{resumed}"
    around = f" with {counted(manifest.grid.margin, 'pixel')} around each" if manifest.grid.margin else ""
    yield (
        f"generation {manifest.generation}: {counted(manifest.num_samples, 'image')} in "
        f"{counted(len(manifest.stores), 'store')}, "
        f"{manifest.grid.patch[0]}x{manifest.grid.patch[1]} patches{around}; {report['manifest']}"
    )
    if reason:
        yield reason
    yield from (f"  {place}" for place in (*report["stores"], *report["bundles"]))
    if not manifest.lower:
        yield f"labels: {labels} is signed but not encrypted: give it to the Lower server only (--lower-key seals it)"
    if not manifest.restorers:
        yield "no restorer is named: nobody can reassemble images until psl rotate --restorer names one"


def _spool(spool: Path, base: Path, signed: SignedManifest) -> list[str]:
    """Write one bundle per node; the stores stay, so that images can be appended later."""
    from psl_flower.sealed.bundle import pack

    targets = []
    for entry in signed.manifest.stores:
        target = spool / f"node-{entry.upper:03d}.pslbundle"
        pack(place_of(base, signed.manifest, entry.upper), entry, signed, target)
        targets.append(str(target))
    return targets
