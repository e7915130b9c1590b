"""The command verify."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from psl_flower.cli.output import INCOMPLETE, Json, tell
from psl_flower.cli.progress import Progress
from psl_flower.cli.terminal import OwnerPublic, State, load_trusted
from psl_flower.text import counted

if TYPE_CHECKING:
    from psl_flower.sealed.verify import Report


def verify(
    store: Annotated[list[str], typer.Argument(help="Stores: folders or fsspec URLs.")],
    manifest: Annotated[Path, typer.Option(help="The manifest, or the folder that holds it.")],
    owner: OwnerPublic = "",
    state: State = None,
    as_json: Json = False,
) -> None:
    """Check every byte of stores, labels and audit log against the signed manifest, and name what is wrong.

    Needs no key. Checks labels and audit log if they lie beside the manifest. Exit status: 0 if everything that the
    manifest commits to is present and correct, 1 if something is wrong, 3 if what was given is correct but incomplete.
    """
    from psl_flower.sealed.verify import verify as do_verify

    trusted = load_trusted(manifest, owner, state)
    with Progress(enabled=not as_json) as progress:
        report = do_verify(store, trusted.signed, progress.steps, folder=trusted.folder, seen=trusted.seen)
    told = {"ok": report.ok, "complete": report.complete, **msgspec.to_builtins(report)}
    tell(told, _verified_lines(report, trusted.known), as_json)
    if not report.ok:
        raise typer.Exit(1)
    if not report.complete:
        raise typer.Exit(INCOMPLETE)


def _verified_lines(report: Report, known: bool) -> Iterator[str]:
    """Yield the lines that a check prints."""
    trust = "" if known else " (seen for the first time: compare this fingerprint with the owner's)"
    yield (
        f"manifest: generation {report.generation}, epoch {report.epoch}, {counted(report.num_samples, 'image')}, "
        f"signed by owner {report.owner}{trust}"
    )
    for store in report.stores:
        state = "WRONG" if store.problems else "ok"
        yield f"{store.place}: Upper {store.upper}, {counted(store.records, 'record')}, {state}"
        yield from (f"  {problem.error}: {problem.message}" for problem in store.problems)
        yield from (f"  remains of an old epoch, still readable with its keys: {name}" for name in store.remains)
        yield from (f"  not part of the store: {name}" for name in store.strangers)
    for part, what in ((report.labels, "labels, versions"), (report.audit_log, "audit log, entries")):
        if part is not None:
            yield f"{part.place}: {what}: {part.count}, {'WRONG' if part.problems else 'ok'}"
            yield from (f"  {problem.error}: {problem.message}" for problem in part.problems)
    absent = [*(f"the store of Upper {upper}" for upper in report.missing), *report.absent]
    if absent:
        yield f"INCOMPLETE: not given, not checked: {', '.join(absent)}"
