"""The restorer's commands: restore, authorise, relabel, audit-log."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import typer
from numpy.typing import NDArray

from psl_flower.cli.completion import run_names
from psl_flower.cli.image_selection import captions, class_name, image_name, images_asked
from psl_flower.cli.output import Json, tell
from psl_flower.cli.terminal import (
    OwnerPublic,
    PassphraseFile,
    State,
    Trusted,
    load_trusted,
    passphrase_source,
    stores_beside,
)
from psl_flower.errors import ConfigError, StoreNotFound
from psl_flower.runs.image_ids import parse_images
from psl_flower.runs.mistakes import Mistake
from psl_flower.sealed import keyfile
from psl_flower.sealed.identities import Identity, Role
from psl_flower.sealed.labels import Change, LabelBook
from psl_flower.sealed.manifest import Manifest, SignedManifest
from psl_flower.text import counted, from_cell

if TYPE_CHECKING:
    from psl_flower.sealed.audit import Entry

_ManifestPath = Annotated[Path, typer.Option("--manifest", help="The manifest, or the folder that holds it.")]
_Image = Annotated[list[str] | None, typer.Option(help="Image: 17, or test:17; repeatable.")]
_WrongOnly = Annotated[
    str,
    typer.Option(
        metavar="RUN", help="Name of a run, or its folder: the images that it got wrong.", autocompletion=run_names
    ),
]
_Split = Annotated[str, typer.Option(help="With --wrong-only: only train or test.")]
_Limit = Annotated[int, typer.Option(min=0, help="With --wrong-only: largest number of images; 0: all.")]
_Why = Annotated[str, typer.Option(help="Reason, for the audit log.")]
_AuditLog = Annotated[
    Path | None,
    typer.Option(help="The audit log, where audit.log beside the manifest (the default) cannot be written."),
]


def restore(
    manifest: _ManifestPath,
    identity: Annotated[list[Path], typer.Option(help="Private key file of a restorer; repeatable, k are needed.")],
    out: Annotated[Path, typer.Option("--out", help="New folder for the images.")],
    store: Annotated[
        list[str] | None, typer.Option(help="All stores (default: those beside the manifest); repeatable.")
    ] = None,
    image: _Image = None,
    wrong_only: _WrongOnly = "",
    split: _Split = "",
    limit: _Limit = 0,
    request: Annotated[
        Path | None, typer.Option(help="Instead of stores: the authorisation that distant nodes have answered.")
    ] = None,
    answers: Annotated[Path | None, typer.Option(help="Folder of their answers; one recipient's key opens it.")] = None,
    why: _Why = "",
    audit_log: _AuditLog = None,
    owner: OwnerPublic = "",
    state: State = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Reassemble images into PNG files, as k restorers. The audit log is written first."""
    from psl_flower.sealed.audit import FILE, AuditLog
    from psl_flower.sealed.export import export
    from psl_flower.sealed.restore import restore as from_stores

    restorers = [keyfile.load(path, passphrase_source(passphrase_file)) for path in identity]
    trusted = load_trusted(manifest, owner, state, restorers[0])
    start = time.monotonic()
    if request is not None or answers is not None:
        if request is None or answers is None or image or wrong_only or store:
            raise ConfigError("--request and --answers go together, and name images and stores by themselves")
        asked, opened = _answered(request, answers, trusted.signed, restorers[0])
        release: Callable[[], Iterable[NDArray[np.uint8]]] = partial(iter, [opened])
        logged = "the nodes' audit logs"
    else:
        asked = images_asked(trusted.signed.manifest, image or (), wrong_only, split, limit, trusted.labels_N)
        if not asked:
            tell({"images": 0}, ["the run got none of these images wrong"], as_json)
            return
        log = AuditLog(_log_path(audit_log, trusted.folder / FILE))
        logged = str(log.path)
        stores = stores_beside(manifest, store or ())
        release = partial(
            from_stores, trusted.signed, stores, restorers, list(asked), why=why, log=log, seen=trusted.seen
        )
    sheets = export(release, captions(trusted.signed.manifest, asked, trusted.labels_N), out)
    report = {
        "images": len(asked),
        "out": str(out),
        "sheets": [str(sheet) for sheet in sheets],
        "seconds": round(time.monotonic() - start, 3),
        "audit_log": logged,
    }
    tell(report, _restored_lines(report, trusted), as_json)


def _log_path(given: Path | None, own: Path) -> Path:
    """Return the audit log to write: the one beside the manifest unless its folder is read-only."""
    if given is None or given.resolve() == own.resolve():
        return own
    if os.access(own.parent, os.W_OK):
        raise ConfigError(
            f"--audit-log: leave it out; the set's own log, {own}, can be written and misses no entry then"
        )
    return given


def _restored_lines(report: Mapping[str, Any], trusted: Trusted) -> Iterator[str]:
    if not trusted.known:
        fingerprint = trusted.signed.owner.fingerprint
        yield f"this dataset is seen for the first time; compare its owner's fingerprint: {fingerprint}"
    yield (
        f"{counted(report['images'], 'image')} restored to {report['out']} in {report['seconds']:.1f} s; logged in "
        f"{report['audit_log']}"
    )
    yield from (f"  {sheet}" for sheet in report["sheets"])


def authorise(
    manifest: _ManifestPath,
    identity: Annotated[list[Path], typer.Option(help="Private key file of a restorer who signs; repeatable.")],
    out: Annotated[Path, typer.Option("--out", help="File for the authorisation; new.")],
    image: _Image = None,
    wrong_only: _WrongOnly = "",
    split: _Split = "",
    limit: _Limit = 0,
    recipient: Annotated[
        list[str] | None,
        typer.Option(help="Public key of a restorer who may open the answers (default: those who sign); repeatable."),
    ] = None,
    valid_hours: Annotated[int, typer.Option(min=1, max=168, help="Hours until it expires.")] = 24,
    co_sign: Annotated[
        Path | None, typer.Option(help="Add signatures to this authorisation instead of making a new one.")
    ] = None,
    why: _Why = "",
    owner: OwnerPublic = "",
    state: State = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Ask distant nodes for images: sign an authorisation, which an operator hands to them in a Flower run.

    k restorers must sign, here or, one after the other, with --co-sign. Then: flwr run . FEDERATION --run-config
    'restore="FILE" ...', and psl restore --request FILE --answers RUN/answers.
    """
    from psl_flower.sealed import authorisation
    from psl_flower.system.files import read_file, write_file

    if out.exists():
        raise ConfigError(f"{out} exists already; name a new file with --out")
    restorers = [keyfile.load(path, passphrase_source(passphrase_file)) for path in identity]
    trusted = load_trusted(manifest, owner, state, restorers[0])
    signed = trusted.signed
    if co_sign is not None:
        if image or wrong_only or recipient or why:
            raise ConfigError("--co-sign signs an existing request; leave out images, recipients and --why")
        data = read_file(co_sign, limit=authorisation.MAX_AUTHORISATION_BYTES)
        for restorer in restorers:
            data = authorisation.co_sign(data, signed, restorer)
    else:
        data = authorisation.authorise(
            signed,
            restorers,
            list(images_asked(signed.manifest, image or (), wrong_only, split, limit, trusted.labels_N)),
            why=why,
            recipients=[keyfile.load_public(text, Role.RESTORER) for text in recipient or ()],
            valid_s=valid_hours * 3600,
        )
    write_file(out, data, mode=0o644)
    _tell_authorisation(out, data, signed.manifest.threshold, as_json)


def _tell_authorisation(out: Path, data: bytes, threshold: int, as_json: bool) -> None:
    from psl_flower.sealed import authorisation

    request, signers = authorisation.describe(data)
    report = {"out": str(out), "images": len(request.images), "why": request.why, "expires": request.expires}
    expires = datetime.fromtimestamp(request.expires, UTC).isoformat(timespec="minutes")
    missing = max(0, threshold - signers)
    more = f"; {missing} more must sign (--co-sign {out})" if missing else ""
    lines = [
        f"{out}: {counted(len(request.images), 'image')}, signed by {signers} of {threshold}, until {expires}{more}",
        f"  why: {request.why or '(no reason given)'}",
    ]
    tell({**report, "signed": signers, "needed": threshold}, lines, as_json)


def relabel(
    manifest: _ManifestPath,
    identity: Annotated[Path, typer.Option(help="Private key file of a restorer or the owner.")],
    image: Annotated[list[str] | None, typer.Option(help="Image: 17, or test:17; repeatable.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="Correct class of all these images.")] = None,
    changes: Annotated[Path | None, typer.Option("--csv", help="Table with the columns image and label.")] = None,
    why: Annotated[str, typer.Option(help="Reason, which --history shows.")] = "",
    history: Annotated[
        bool, typer.Option("--history", help="Only list the label versions: who changed what, when and why.")
    ] = False,
    owner: OwnerPublic = "",
    state: State = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Correct labels: writes a new signed version, which the next training uses. Nothing is overwritten."""
    author = keyfile.load(identity, passphrase_source(passphrase_file))
    trusted = load_trusted(manifest, owner, state, author)
    book, content = LabelBook(trusted.folder), trusted.signed.manifest
    before = trusted.labels or book.read(content, author)
    if history:
        _print_history(before.history, content, as_json)
        return
    if len(label or ()) > 1:
        raise ConfigError("--label: one class for all images named; for several classes use --csv, or several commands")
    rows = _rows(image or [], "".join(label or ()), changes)
    wanted = _one_label_each(content, rows)
    new = [(number, k) for number, k in wanted.items() if before.labels_N[number] != k]
    version = book.relabel(content, author, new, why, seen=trusted.seen) if new else before.version
    changed = f"label version {version}: {len(new)} of {counted(len(wanted), 'label')} changed"
    lines = [changed, f"who changed what, when and why: {_history(manifest)}"] if new else ["nothing to change"]
    tell({"version": version, "changed": len(new)}, lines, as_json)


def audit_log(
    manifest: _ManifestPath,
    log: Annotated[Path | None, typer.Argument(help="The log (default: audit.log beside the manifest).")] = None,
    owner: OwnerPublic = "",
    state: State = None,
    as_json: Json = False,
) -> None:
    """Show who restored what and when, and check the log: a cut or edited one is an error."""
    from psl_flower.sealed.audit import FILE, AuditLog

    trusted = load_trusted(manifest, owner, state)
    content = trusted.signed.manifest
    if log is not None and not log.exists():
        raise StoreNotFound(f"{log} does not exist")
    entries = AuditLog(log or trusted.folder / FILE).read(content, trusted.seen)
    named = [
        {**msgspec.to_builtins(entry), "names": [image_name(content, k) for k in entry.images]} for entry in entries
    ]
    lines = [_entry_line(entry, content) for entry in entries]
    lines.append(f"{counted(len(entries), 'entry')}, unbroken")
    if LabelBook(trusted.folder).folder.is_dir():
        lines.append(f"corrected labels, with reasons, are another list: {_history(manifest)}")
    tell({"ok": True, "entries": named}, lines, as_json)


def _history(manifest: Path) -> str:
    """Return the command that lists the label versions of a set."""
    return f"psl relabel --manifest {manifest} --identity KEY --history"


def _entry_line(entry: Entry, manifest: Manifest) -> str:
    names = [f"{image_name(manifest, image)} ({image})" for image in entry.images[:8]]
    images = ", ".join(names) + (", ..." if len(entry.images) > 8 else "")
    what = f"{counted(len(entry.images), 'image')}: {images}" if entry.images else ""
    return f"{entry.number}  {entry.when}  {entry.action}  {'; '.join(entry.who)}  {what}  {entry.why}".rstrip()


def _answered(
    request: Path, answers: Path, signed: SignedManifest, restorer: Identity
) -> tuple[dict[int, Mistake | None], NDArray[np.uint8]]:
    """Return the images (B, C, H, W) that distant nodes have answered for, and which they are."""
    from psl_flower.sealed import authorisation
    from psl_flower.system.files import read_file

    data = read_file(request, limit=authorisation.MAX_AUTHORISATION_BYTES)
    files = sorted(answers.glob("*.psl"))
    if not files:
        raise ConfigError(f"{answers}: holds no answers (*.psl)")
    opened = authorisation.open_answers(
        [read_file(f, limit=2 * authorisation.MAX_ANSWER_BYTES) for f in files], data, signed, restorer
    )
    return dict.fromkeys(authorisation.describe(data)[0].images), opened


def _one_label_each(manifest: Manifest, rows: Sequence[tuple[str, str]]) -> dict[int, int]:
    """Return the label that rows of (images, class) give each image, by the images' numbers.

    Raises
    ------
    ConfigError
        If an image or class is not known, or two rows give one image different classes.
    """
    wanted: dict[int, int] = {}
    for names, text in rows:
        label = _label_of(manifest, text)
        for number in parse_images([names], manifest.description):
            if wanted.setdefault(number, label) != label:
                raise ConfigError(
                    f"image {image_name(manifest, number)} ({number}) is given two classes, "
                    f"{manifest.classes[wanted[number]]!r} and {text!r}; keep one of them"
                )
    return wanted


def _label_of(manifest: Manifest, name: str) -> int:
    for text in (name, from_cell(name)):
        if text in manifest.classes:
            return manifest.classes.index(text)
    raise ConfigError(f"label {name!r} is not one of the classes: {', '.join(manifest.classes[:20])}")


def _rows(image: list[str], label: str, table: Path | None) -> list[tuple[str, str]]:
    if table is None:
        if not image or not label:
            raise ConfigError("name the images with --image and their class with --label, or give --csv")
        return [(name, label) for name in image]
    if image or label:
        raise ConfigError("--csv and --image exclude each other")
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error):
        raise ConfigError(f"{table} cannot be read as a CSV table") from None
    if any(not row.get("image") or not row.get("label") for row in rows) or not rows:
        raise ConfigError(f"{table}: expected the columns image and label, filled in every row")
    return [(row["image"], row["label"]) for row in rows]


def _print_history(changes: Sequence[Change], manifest: Manifest, as_json: bool) -> None:
    lines = []
    for change in changes:
        lines.append(f"{change.version}  {change.when}  {change.kind}  {change.who}  {change.why}".rstrip())
        for image, old, new in change.changes:
            classes = f"{class_name(manifest, old)} -> {class_name(manifest, new)}"
            lines.append(f"     {image} ({image_name(manifest, image)}): {classes}")
    tell({"versions": [msgspec.to_builtins(change) for change in changes]}, lines, as_json)
