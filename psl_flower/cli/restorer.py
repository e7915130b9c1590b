"""The restorer's commands: restore, relabel, audit-log."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import typer
from numpy.typing import NDArray

from psl_flower.errors import ConfigError, StoreNotFound
from psl_flower.sealed import keyfile
from psl_flower.sealed.keys import Identity
from psl_flower.sealed.labels import FOLDER, Change, LabelBook
from psl_flower.sealed.manifest import Manifest
from psl_flower.sealed.seen import SeenBook
from psl_flower.sealed.terminal import (
    forbid_core_dumps,
    load_trusted,
    parse_images,
    passphrase_source,
    stores_beside,
)

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
_PassphraseFile = Annotated[
    Path | None, typer.Option(help="File whose first line is the passphrase of the keys given.")
]
_OwnerPublic = Annotated[str, typer.Option("--owner-key", help="Public key of the owner to trust, or a file with it.")]
_State = Annotated[
    Path | None,
    typer.Option(help="Folder that remembers what was seen (default: ~/.local/state/psl-flower)."),
]
_ManifestPath = Annotated[Path, typer.Option("--manifest", help="The manifest, or the folder that holds it.")]
_AuditLog = Annotated[Path | None, typer.Option(help="The audit log (default: audit.log beside the manifest).")]


def register(app: typer.Typer) -> None:
    """Add the restorer's commands to the program."""
    app.command("restore")(restore)
    app.command("relabel")(relabel)
    app.command("audit-log")(audit_log)


def restore(
    manifest: _ManifestPath,
    identity: Annotated[list[Path], typer.Option(help="Private key file of a restorer; repeatable, k are needed.")],
    out: Annotated[Path, typer.Option("--out", help="New folder for the images.")],
    store: Annotated[
        list[str] | None, typer.Option(help="All stores (default: those beside the manifest); repeatable.")
    ] = None,
    image: Annotated[list[str] | None, typer.Option(help="Image: 17, or test:17; repeatable.")] = None,
    wrong_only: Annotated[Path | None, typer.Option(help="Run folder: the images that it got wrong.")] = None,
    split: Annotated[str, typer.Option(help="With --wrong-only: only train or test.")] = "",
    limit: Annotated[int, typer.Option(min=0, help="With --wrong-only: at most so many; 0: all.")] = 0,
    why: Annotated[str, typer.Option(help="Reason, for the audit log.")] = "",
    audit_log: _AuditLog = None,
    owner_key: _OwnerPublic = "",
    state: _State = None,
    passphrase_file: _PassphraseFile = None,
    as_json: _Json = False,
) -> None:
    """Put images together again, as k restorers, into PNG files. The audit log is written first."""
    from psl_flower.sealed.audit import FILE, AuditLog
    from psl_flower.sealed.export import Caption, export
    from psl_flower.sealed.restore import restore as do_restore
    from psl_flower.sealed.wrong import Mistake, mistakes

    forbid_core_dumps()
    if bool(image) == (wrong_only is not None):
        raise ConfigError("name the images with --image, or a run with --wrong-only; one of the two")
    seen = SeenBook(state)
    signed, known = load_trusted(manifest, owner_key, seen)
    folder = manifest if manifest.is_dir() else manifest.parent
    restorers = [keyfile.load(path, passphrase_source(passphrase_file)) for path in identity]
    content = signed.manifest
    labels = _labels(folder, content, restorers[0], seen)
    wrong: dict[int, Mistake] = {}
    if wrong_only is not None:
        found = mistakes(wrong_only, split=split, limit=limit, labels_N=labels)
        wrong = {mistake.image: mistake for mistake in found}
        images = list(wrong)
        if not images:
            typer.echo(json.dumps({"images": 0}) if as_json else "the run got none of these images wrong")
            return
    else:
        images = parse_images(image or (), content)
    captions = []
    for number in images:
        part, within = content.split_of(number)
        mistake = wrong.get(number)
        captions.append(
            Caption(
                image=number,
                split=part,
                number=within,
                label=_class(content, labels[number] if labels is not None else mistake.label if mistake else None),
                predicted=_class(content, mistake.predicted) if mistake else "",
                confidence=mistake.confidence if mistake else None,
            )
        )
    start = time.monotonic()
    log = AuditLog(audit_log or folder / FILE)
    batches = do_restore(signed, stores_beside(manifest, store or ()), restorers, images, why=why, log=log, seen=seen)
    sheets = export(batches, captions, out)
    seconds = time.monotonic() - start
    if as_json:
        report = {
            "images": len(images),
            "out": str(out),
            "sheets": [str(s) for s in sheets],
            "seconds": round(seconds, 3),
        }
        typer.echo(json.dumps({**report, "audit_log": str(log.path)}))
        return
    if not known:
        typer.echo(
            f"this dataset is seen for the first time; compare its owner's fingerprint: {signed.owner.fingerprint}"
        )
    typer.echo(f"{len(images)} images restored to {out} in {seconds:.1f} s; logged in {log.path}")
    for sheet in sheets:
        typer.echo(f"  {sheet}")


def relabel(
    manifest: _ManifestPath,
    identity: Annotated[Path, typer.Option(help="Private key file of a restorer or the owner.")],
    image: Annotated[list[str] | None, typer.Option(help="Image: 17, or test:17; repeatable.")] = None,
    label: Annotated[str, typer.Option(help="Name of the right class.")] = "",
    changes: Annotated[Path | None, typer.Option("--csv", help="Table with the columns image and label.")] = None,
    why: Annotated[str, typer.Option(help="Reason, for the history.")] = "",
    history: Annotated[bool, typer.Option("--history", help="Only list the label versions.")] = False,
    owner_key: _OwnerPublic = "",
    state: _State = None,
    passphrase_file: _PassphraseFile = None,
    as_json: _Json = False,
) -> None:
    """Correct labels: writes a new signed version, which the next training uses. Nothing is overwritten."""
    forbid_core_dumps()
    seen = SeenBook(state)
    signed, _ = load_trusted(manifest, owner_key, seen)
    folder = manifest if manifest.is_dir() else manifest.parent
    author = keyfile.load(identity, passphrase_source(passphrase_file))
    book, content = LabelBook(folder), signed.manifest
    before = book.read(content, author)
    seen.check_labels(content.dataset, list(before.digests))
    if history:
        _print_history(before.history, content, as_json)
        return
    rows = _rows(image or [], label, changes)
    wanted = [(parse_images([name], content)[0], _label_of(content, text)) for name, text in rows]
    new = [(number, k) for number, k in dict(wanted).items() if before.labels_N[number] != k]
    version = book.relabel(content, author, new, why) if new else before.version
    seen.check_labels(content.dataset, list(book.read(content, author).digests))
    if as_json:
        typer.echo(json.dumps({"version": version, "changed": len(new)}))
        return
    typer.echo(f"label version {version}: {len(new)} of {len(wanted)} labels changed" if new else "nothing to change")


def audit_log(
    manifest: _ManifestPath,
    log: Annotated[Path | None, typer.Argument(help="The log (default: audit.log beside the manifest).")] = None,
    owner_key: _OwnerPublic = "",
    state: _State = None,
    as_json: _Json = False,
) -> None:
    """Show and check who restored what, and when. A cut or edited log is an error."""
    from psl_flower.sealed.audit import FILE, AuditLog

    seen = SeenBook(state)
    signed, _ = load_trusted(manifest, owner_key, seen)
    folder = manifest if manifest.is_dir() else manifest.parent
    if log is not None and not log.exists():
        raise StoreNotFound(f"{log} does not exist")
    entries = AuditLog(log or folder / FILE).read(signed.manifest, seen)
    if as_json:
        typer.echo(msgspec.json.encode({"ok": True, "entries": entries}).decode())
        return
    for entry in entries:
        images = ", ".join(map(str, entry.images[:8])) + (", ..." if len(entry.images) > 8 else "")
        what = f"{len(entry.images)} images ({images})" if entry.images else ""
        typer.echo(
            f"{entry.number}  {entry.when}  {entry.action}  {'; '.join(entry.who)}  {what}  {entry.why}".rstrip()
        )
    typer.echo(f"{len(entries)} entries, unbroken")


def _labels(folder: Path, manifest: Manifest, reader: Identity, seen: SeenBook) -> NDArray[np.int64] | None:
    if not (folder / FOLDER).is_dir():
        return None
    found = LabelBook(folder).read(manifest, reader)
    seen.check_labels(manifest.dataset, list(found.digests))
    return found.labels_N


def _class(manifest: Manifest, label: int | None) -> str:
    return manifest.classes[label] if label is not None and 0 <= label < len(manifest.classes) else ""


def _label_of(manifest: Manifest, name: str) -> int:
    if name in manifest.classes:
        return manifest.classes.index(name)
    raise ConfigError(f"label {name!r} is none of the classes: {', '.join(manifest.classes[:20])}")


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
    if as_json:
        typer.echo(msgspec.json.encode({"versions": [msgspec.to_builtins(change) for change in changes]}).decode())
        return
    for change in changes:
        typer.echo(f"{change.version}  {change.when}  {change.kind}  {change.who}  {change.why}".rstrip())
        for image, old, new in change.changes:
            split, number = manifest.split_of(image)
            typer.echo(f"     {image} ({split}:{number}): {_class(manifest, old)} -> {_class(manifest, new)}")
