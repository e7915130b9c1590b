"""Makes tests/vectors/sealed-v1, once per format version: then it is frozen.

python -m tests.vectors.make_sealed_vectors FOLDER
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

from psl_flower.sealed import ingest, keyfile, suite
from psl_flower.sealed.audit import AuditLog
from psl_flower.sealed.bundle import pack
from psl_flower.sealed.header import SegmentHeader
from psl_flower.sealed.identities import Identity, Role
from psl_flower.sealed.labels import LabelBook
from psl_flower.sealed.records import SampleIds
from psl_flower.sealed.secret import Secret
from tests.vectors.sealed_support import ArraySource, World

PASSPHRASE = "frozen words"


def main(folder: Path) -> None:
    """Seal 23 images, append 4, relabel, log a restoration, pack a bundle; keys; what is expected."""
    setattr(ingest, "sizes", lambda *_: (8, 4))  # noqa: B010 - small segments
    world = World(folder)
    first, second = ArraySource(20, 3, (4, 6, 3)), ArraySource(3, 1, (4, 6, 3), seed=1)
    world.seal(first)
    world.seal(second, append=True)
    manifest = world.signed.manifest
    LabelBook(folder).relabel(manifest, world.restorers[0], [(5, 0), (24, 2)], "frozen")
    AuditLog(folder / "audit.log").append(world.signed, world.restorers[:2], "restore", [5, 24], "frozen")
    pack(world.place(0), manifest.stores[0], world.signed, folder / "node-000.pslbundle")
    for person in (world.owner, world.lower, *world.nodes, *world.restorers):
        keyfile.save(person, folder / "keys" / f"{person.name}.key")
    keyfile.save(world.restorers[0], folder / "keys" / "alice-protected.key", PASSPHRASE)
    images = [image.tobytes() for source in (first, second) for image in source.all_NCHW]
    labels = first.all_labels + second.all_labels
    labels[5], labels[24] = 0, 2
    expected = {"labels": labels, "images": [base64.b64encode(image).decode() for image in images]}
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    (folder / "values.json").write_text(json.dumps(values(), indent=1) + "\n")


def values() -> dict[str, object]:
    """Return results for fixed inputs, hex."""
    key, salt = Secret(bytes(range(32))), bytes(range(32, 64))
    header = SegmentHeader(
        dataset=b"D" * 16,
        store=b"S" * 16,
        epoch=1,
        generation=2,
        segment=3,
        upper=4,
        first=5,
        block=6,
        patch_shape=(3, 7, 8),
        positions=(0, 9),
        salt=salt,
    )
    derived = {p.name: suite.derive(key, salt, p, b"part", 7).reveal().hex() for p in suite.Purpose}
    return {
        "context": suite.context(suite.Purpose.SHARE, b"part", 7).hex(),
        "derived": derived,
        "sample_ids": [name.hex() for name in SampleIds(key, b"S" * 16).of([0, 1, 2**40])],
        "header": header.sealed(key).hex(),
        "record_key": header.record_key(key).reveal().hex(),
        "public_key": str(Identity(Role.NODE, "n", Secret(bytes(64))).public),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
