"""A second reader of sealed stores, written from docs/store-format.md with `cryptography` alone.

It shares no code with psl_flower and checks less than it: it is there to show that the page is complete.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import struct
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

HPKE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


def info(purpose: str, *parts: bytes | int) -> bytes:
    """Return "Purposes": every part behind its u32 length, integers as u64."""
    encoded = [
        f"psl-flower/1/{purpose}".encode(),
        *(p.to_bytes(8, "little") if isinstance(p, int) else p for p in parts),
    ]
    return b"".join(struct.pack("<I", len(part)) + part for part in encoded)


def hkdf(key: bytes, salt: bytes, *context: Any) -> bytes:
    """Return 32 bytes of HKDF-SHA-256."""
    return HKDF(hashes.SHA256(), 32, salt, info(*context)).derive(key)


def secret_of(path: Path, passphrase: str = "") -> tuple[bytes, bytes]:
    """Return "Key files": Ed25519 seed and X25519 private key."""
    lines = path.read_text().split("\n")[:-1]
    fields = dict(line.split(": ", 1) for line in lines[1:])
    body = base64.b64decode(fields["secret"])
    if fields["protection"] != "none":
        _, memory, passes, lanes, salt = fields["protection"].split(" ")
        numbers = [int(text.split("=", 1)[1]) for text in (passes, lanes, memory)]
        kdf = Argon2id(
            salt=base64.b64decode(salt.split("=", 1)[1]),
            length=32,
            iterations=numbers[0],
            lanes=numbers[1],
            memory_cost=numbers[2],
        )
        aad = info("key-file", "\n".join(lines[:-1]).encode())
        body = ChaCha20Poly1305(kdf.derive(passphrase.encode())).decrypt(body[:12], body[12:], aad)
    return body[:32], body[32:]


def public_of(text: str) -> tuple[bytes, bytes]:
    """Return "Public keys": Ed25519 and X25519 public key."""
    _, role, body = text.split("-", 2)
    raw = base64.urlsafe_b64decode(body + "=")
    assert raw[64:] == hashlib.sha256(role.encode() + b"\0" + raw[:64]).digest()[:4]
    return raw[:32], raw[32:64]


def document(data: bytes, magic: bytes, purpose: str) -> dict[str, Any]:
    """Return "Signed documents": the payload, its signatures checked, and `_signers`."""
    found, version, count, length = struct.unpack_from("<8sHHI", data)
    assert (found, version, len(data)) == (magic, 1, 16 + length + 96 * count)
    payload, signers = data[16 : 16 + length], []
    for at in range(16 + length, len(data), 96):
        key = data[at : at + 32]
        Ed25519PublicKey.from_public_bytes(key).verify(
            data[at + 32 : at + 96], info(f"sign/{purpose}", magic + b"\1\0" + payload)
        )
        signers.append(key)
    return {**json.loads(payload), "_signers": signers}


def manifest_of(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder, signed by the owner whom it names."""
    manifest = document((folder / "manifest.psl").read_bytes(), b"PSLMANIF", "manifest")
    assert manifest["_signers"] == [public_of(manifest["owner"])[0]]
    return manifest


def b64(text: str) -> bytes:
    """Decode a binary field."""
    return base64.b64decode(text)


def unseal(private: bytes, box: bytes, *context: Any) -> bytes:
    """Open an HPKE box."""
    return HPKE.decrypt(box, X25519PrivateKey.from_private_bytes(private), info(*context))


def key_as_node(manifest: dict[str, Any], entry: dict[str, Any], private: bytes) -> bytes:
    """Return a store's data key, as its node."""
    bound = (b64(manifest["dataset"]), manifest["epoch"], b64(entry["store"]), entry["upper"])
    return committed(unseal(private, b64(entry["key_for_node"]), "store-key-for-node", *bound), entry)


def key_under_root(manifest: dict[str, Any], entry: dict[str, Any], root: bytes) -> bytes:
    """Return a store's data key, by the root."""
    bound = (b64(manifest["dataset"]), manifest["epoch"], b64(entry["store"]), entry["upper"])
    key, box = hkdf(root, bound[0], "store-key-under-root", *bound), b64(entry["key_under_root"])
    plain = ChaCha20Poly1305(key).decrypt(box[:12], box[12:], info("store-key-under-root", *bound))
    return committed(plain, entry)


def committed(data_key: bytes, entry: dict[str, Any]) -> bytes:
    """Check a data key against its commitment."""
    assert hkdf(data_key, b64(entry["store"]), "store-key-commitment") == b64(entry["key_commitment"])
    return data_key


def root_as_owner(manifest: dict[str, Any], private: bytes) -> bytes:
    """Return the root, as the owner."""
    dataset = b64(manifest["dataset"])
    root = unseal(private, b64(manifest["root_for_owner"]), "root-for-owner", dataset, manifest["epoch"])
    assert hkdf(root, dataset, "root-commitment", manifest["epoch"]) == b64(manifest["root_commitment"])
    return root


def root_as_restorers(manifest: dict[str, Any], privates: dict[str, bytes]) -> bytes:
    """Return "Shares": the root from the shares of `threshold` restorers, by name."""
    dataset, epoch, shares = b64(manifest["dataset"]), manifest["epoch"], []
    for member in manifest["restorers"]:
        if member["name"] in privates:
            index = member["index"]
            share = unseal(privates[member["name"]], b64(member["share"]), "share", dataset, epoch, index)
            expected = hashlib.sha256(info("share-commitment", dataset, epoch, index, share)).digest()
            assert expected == b64(member["commitment"])
            shares.append((index, share))
    shares = shares[: manifest["threshold"]]
    root = b"".join(combine([(x, share[s : s + 16]) for x, share in shares]) for s in (0, 16))
    assert hkdf(root, dataset, "root-commitment", epoch) == b64(manifest["root_commitment"])
    return root


def combine(shares: list[tuple[int, bytes]]) -> bytes:
    """Interpolate at 0 in GF(2^128) modulo x^128 + x^7 + x^2 + x + 1, big-endian."""
    total = 0
    for x, share in shares:
        weight = 1
        for other, _ in shares:
            if other != x:
                weight = times(weight, times(other, inverse(x ^ other)))
        total ^= times(int.from_bytes(share, "big"), weight)
    return total.to_bytes(16, "big")


def times(a: int, b: int) -> int:
    """Multiply in the field."""
    product = 0
    while b:
        if b & 1:
            product ^= a
        a, b = a << 1, b >> 1
        if a >> 128:
            a ^= 1 << 128 | 0x87
    return product


def inverse(a: int) -> int:
    """Invert in the field: a^(2^128 - 2)."""
    result = 1
    for _ in range(127):
        a = times(a, a)
        result = times(result, a)
    return result


def patches_of(folder: Path, manifest: dict[str, Any], entry: dict[str, Any], data_key: bytes) -> list[bytes]:
    """Return "Segments": the patches (K, C, h, w) of every sample of a store, in order of samples."""
    store, found = b64(entry["store"]), []
    id_key = hkdf(data_key, store, "sample-id")
    for part in entry["segments"]:
        data = (folder / f"epoch-{manifest['epoch']:04d}-segment-{part['segment']:06d}.psl").read_bytes()
        found += segment(data, manifest, entry, part, data_key, id_key)
    return found


def segment(
    data: bytes,
    manifest: dict[str, Any],
    entry: dict[str, Any],
    part: dict[str, Any],
    data_key: bytes,
    id_key: bytes,
) -> list[bytes]:
    """Return the patches of one segment's samples."""
    fields = struct.unpack_from("<8sHHHH16s16sIIIIQIIII8s32s", data)
    magic, version, suite, dtype, K, dataset, store, epoch, generation, number, upper, first, block = fields[:13]
    C, h, w, zero, salt = fields[13:]
    positions = struct.unpack_from(f"<{K}I", data, 128)
    assert (magic, version, suite, dtype, zero) == (b"PSLSTORE", 1, 1, 1, bytes(8))
    assert (dataset, store) == (b64(manifest["dataset"]), b64(entry["store"]))
    assert (epoch, upper, list(positions)) == (manifest["epoch"], entry["upper"], entry["positions"])
    assert (generation, number, first) == (part["generation"], part["segment"], part["first"])
    body, mac = data[: 128 + 4 * K], data[128 + 4 * K : 160 + 4 * K]
    assert hmac.digest(hkdf(data_key, salt, "header-mac", store), body, "sha256") == mac
    assert hashlib.sha256(body + mac).digest() == b64(part["header"])
    aead = ChaCha20Poly1305(hkdf(data_key, salt, "record", hashlib.sha256(body).digest()))
    length, start = 16 + 12 + K * C * h * w + 16, 160 + 4 * K
    records = [data[start + k * length : start + (k + 1) * length] for k in range(part["count"])]
    leaves = [hashlib.sha256(b"\0" + record).digest() for record in records]
    assert data[start + part["count"] * length :] == b"".join(leaves)
    assert tree(leaves) == b64(part["records"])
    found = []
    for at in range(0, part["count"], block):
        samples = range(at, min(at + block, part["count"]))
        ids = {k: hmac.digest(id_key, struct.pack("<Q", first + k), "sha256")[:16] for k in samples}
        slots = {k: at + place for place, k in enumerate(sorted(samples, key=ids.__getitem__))}
        for k in samples:
            record = records[slots[k]]
            assert record[:16] == ids[k]
            aad = hashlib.sha256(body).digest() + ids[k] + struct.pack("<Q", slots[k])
            found.append(aead.decrypt(record[16:28], record[28:], aad))
    return found


def tree(leaves: list[bytes]) -> bytes:
    """Return the root of RFC 6962."""
    if len(leaves) < 2:
        return leaves[0] if leaves else hashlib.sha256(b"").digest()
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    return hashlib.sha256(b"\1" + tree(leaves[:half]) + tree(leaves[half:])).digest()


def labels_of(folder: Path, manifest: dict[str, Any], public: str, private: bytes) -> list[int]:
    """Return "Labels": the labels as of the newest version."""
    labels = [-1] * manifest["num_samples"]
    previous, dataset = bytes(32), b64(manifest["dataset"])
    for number, path in enumerate(sorted((folder / "labels").glob("*.psl"))):
        data = path.read_bytes()
        version = document(data, b"PSLLABEL", "labels")
        assert (version["version"], b64(version["previous"])) == (number, previous)
        previous = hashlib.sha256(data).digest()
        box = next(b64(reader["key"]) for reader in version["readers"] if reader["public"] == public)
        key, body = unseal(private, box, "label-key", dataset, number), b64(version["body"])
        content = json.loads(ChaCha20Poly1305(key).decrypt(body[:12], body[12:], info("labels", dataset, number)))
        new = b64(content["labels"])
        for k, (label,) in enumerate(struct.iter_unpack("<I", new)):
            labels[content["first"] + k] = label
        for image, label in content["changes"]:
            labels[image] = label
    return labels


def bundle_of(data: bytes, private: bytes) -> dict[str, bytes]:
    """Return "Bundles": the files in a bundle."""
    assert data[:12] == b"PSLBUNDL\1\0\0\0"
    key = unseal(private, data[52:132], "bundle-key", data[:52])
    aead = ChaCha20Poly1305(hkdf(key, b"", "bundle-stream", data[:132]))
    chunks = [data[at : at + 65552] for at in range(132, len(data), 65552)]
    content = b"".join(
        aead.decrypt(struct.pack("<Q3xB", n, n == len(chunks) - 1), chunk, data[:132]) for n, chunk in enumerate(chunks)
    )
    files, at = {}, 0
    while length := int.from_bytes(content[at : at + 2], "little"):
        name = content[at + 2 : at + 2 + length].decode()
        size = int.from_bytes(content[at + 2 + length : at + 10 + length], "little")
        files[name] = content[at + 10 + length : at + 10 + length + size]
        at += 10 + length + size
    assert at + 2 == len(content)
    return files


def audit_of(folder: Path, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Return "Audit log": its entries, checked."""
    entries, previous = [], bytes(32)
    lines = (folder / "audit.log").read_bytes().split(b"\n")[:-1]
    for number, line in enumerate(lines):
        raw = line[len(b'{"entry":') : line.index(b',"signatures":')]
        entry = json.loads(raw)
        assert (entry["number"], entry["previous"]) == (number, previous.hex())
        for part in json.loads(line)["signatures"]:
            key = Ed25519PublicKey.from_public_bytes(public_of(part["public"])[0])
            key.verify(b64(part["signature"]), info("sign/audit", raw))
        previous = hashlib.sha256(line).digest()
        entries.append(entry)
    head = document((folder / "audit.head").read_bytes(), b"PSLAUDIT", "audit-head")
    assert (head["count"], b64(head["last"])) == (len(lines), previous)
    return entries
