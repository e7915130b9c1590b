"""The owner's commands: keygen, receive and rotate here, ingest and verify in modules beside this one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from psl_flower.cli.output import Json, tell
from psl_flower.cli.progress import Progress
from psl_flower.cli.terminal import (
    OwnerPrivate,
    OwnerPublic,
    PassphraseFile,
    State,
    folder_of,
    load_identity,
    named_public,
    new_passphrase,
    numbered,
    stores_beside,
)
from psl_flower.errors import ConfigError
from psl_flower.sealed import keyfile
from psl_flower.sealed.identities import Identity, Role
from psl_flower.sealed.manifest import Manifest
from psl_flower.sealed.seen import SeenBook
from psl_flower.text import counted


def keygen(
    role: Annotated[Role, typer.Argument(help="What the keys are for.")],
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Key files to write, such as node0.key node1.key; public keys go to FILE.pub."),
    ] = None,
    out: Annotated[list[Path] | None, typer.Option("--out", "-o", help="The same as FILES; repeatable.")] = None,
    name: Annotated[str, typer.Option(help="Name of the person or machine (default: the file's name).")] = "",
    passphrase: Annotated[bool, typer.Option("--passphrase", help="Ask for a passphrase to protect them.")] = False,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Make keys for owners, nodes, restorers or the Lower server, each in its own file: all of them, or none."""
    places = [*(files or ()), *(out or ())]
    if not places:
        raise typer.BadParameter(f"name the key file to write, as in: psl keygen {role} {role}.key")
    targets = [target for place in places for target in (place, keyfile.public_file(place))]
    if len(targets) != len(set(targets)):
        raise ConfigError("a key file is named twice")
    if name and len(places) > 1:
        raise ConfigError("--name goes with one key; several are named by their files")
    for place in places:
        keyfile.refuse_existing(place)
    protection = new_passphrase(passphrase_file) if passphrase or passphrase_file else None
    reports, lines = [], []
    for place in places:
        identity = Identity.generate(role, name or place.name.split(".")[0])
        keyfile.save(identity, place, protection)
        written = f"{place} (secret, keep it), {keyfile.public_file(place)} (to be given away)"
        reports.append({"role": role, "name": identity.name, "public": str(identity.public), "file": str(place)})
        lines += [f"{role} {identity.name!r}: {written}", str(identity.public)]
    tell(reports[0] if len(reports) == 1 else {"keys": reports}, lines, as_json)


def receive(
    bundle: Annotated[Path, typer.Argument(help="Sealed bundle.")],
    key: Annotated[Path, typer.Option("--key", help="This node's private key file.")],
    out: Annotated[str, typer.Option("--out", help="New folder for the store.")],
    owner: OwnerPublic = "",
    state: State = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Unpack and check a sealed bundle that was made for this node."""
    from psl_flower.sealed.bundle import receive as do_receive

    if "://" in out:
        raise ConfigError("--out: a bundle is unpacked to a folder of this machine; psl ingest writes stores to URLs")
    trusted = keyfile.load_public(owner, Role.OWNER) if owner else None
    node = load_identity(key, Role.NODE, passphrase_file)
    signed = do_receive(bundle, node, Path(out), owner=trusted, seen=SeenBook(state))
    manifest = signed.manifest
    report = {"store": out, "generation": manifest.generation, "images": manifest.num_samples}
    checked = f"{counted(manifest.num_samples, 'image')}, generation {manifest.generation}, checked"
    told = f"{out}: {checked}; signed by owner {signed.owner.fingerprint}"
    tell({**report, "owner": signed.owner.fingerprint}, [told], as_json)


def rotate(
    manifest: Annotated[Path, typer.Option(help="The owner's folder with the manifest.")],
    owner_key: OwnerPrivate,
    store: Annotated[
        list[str] | None, typer.Option(help="All stores (default: those beside the manifest); repeatable.")
    ] = None,
    drop_restorer: Annotated[list[str] | None, typer.Option(help="Name of a restorer to drop; repeatable.")] = None,
    restorer: Annotated[list[str] | None, typer.Option(help="NAME=PUBLIC-KEY to add; repeatable.")] = None,
    threshold: Annotated[int, typer.Option(help="Restorers needed from now on; 0: as before.")] = 0,
    node_key: Annotated[list[str] | None, typer.Option(help="UPPER=PUBLIC-KEY of a new node; repeatable.")] = None,
    drop_node: Annotated[
        list[int] | None, typer.Option(help="Upper to drop; the others take its positions; repeatable.")
    ] = None,
    lower_key: Annotated[str, typer.Option(help="New public key of the Lower server.")] = "",
    delete_old: Annotated[bool, typer.Option("--delete-old", help="Remove the old epoch's files here.")] = False,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Re-encrypt everything under new keys, dropping or adding restorers and nodes."""
    from psl_flower.sealed.rotate import Changes
    from psl_flower.sealed.rotate import rotate as do_rotate

    plain, nodes = numbered(node_key or ())
    if plain:
        raise ConfigError("--node-key: expected UPPER=PUBLIC-KEY, such as 2=node2.key.pub")
    changes = Changes(
        drop_restorers=tuple(drop_restorer or ()),
        add_restorers=named_public(restorer or (), Role.RESTORER),
        threshold=threshold,
        nodes={upper: keyfile.load_public(text, Role.NODE) for upper, text in nodes.items()},
        drop_nodes=tuple(drop_node or ()),
        lower=keyfile.load_public(lower_key, Role.LOWER) if lower_key else None,
    )
    folder, owner = folder_of(manifest), load_identity(owner_key, Role.OWNER, passphrase_file)
    seen = SeenBook()
    seen.prepare()
    with Progress(enabled=not as_json) as progress:
        signed = do_rotate(
            folder,
            owner,
            stores_beside(folder, store or ()),
            changes,
            delete_old=delete_old,
            progress=progress.steps,
            seen=seen,
        )
    tell(_rotation_report(signed.manifest, delete_old), _rotation_lines(signed.manifest, delete_old), as_json)


def _rotation_report(new: Manifest, delete_old: bool) -> dict[str, Any]:
    return {
        "epoch": new.epoch,
        "generation": new.generation,
        "restorers": [m.name for m in new.restorers],
        "threshold": new.threshold,
        "remains": [] if delete_old else [{"upper": r.upper, "files": list(r.files)} for r in new.remains],
    }


def _rotation_lines(new: Manifest, delete_old: bool) -> Iterator[str]:
    yield (
        f"epoch {new.epoch}, generation {new.generation}: {counted(new.num_samples, 'image')} re-encrypted; "
        f"{new.threshold} of {', '.join(m.name for m in new.restorers) or 'nobody'} restore"
    )
    if delete_old:
        yield "the old files were removed here; copies elsewhere stay readable with the old keys"
        return
    yield "the old files are still there and stay readable with the old keys (--delete-old removes them):"
    yield from (f"  epoch {old.epoch}, Upper {old.upper}: {counted(len(old.files), 'file')}" for old in new.remains)
