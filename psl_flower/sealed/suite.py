"""Suite 1: the primitives, and every purpose that a key is derived for or a box is sealed for.

HKDF-SHA-256, ChaCha20-Poly1305, HPKE (DHKEM X25519, HKDF-SHA-256, ChaCha20-Poly1305), Ed25519, SHA-256,
HMAC-SHA-256. Each purpose has a distinct info, so that no key and no box serves two ends
(docs/store-format.md, "Purposes").
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from enum import Enum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from psl_flower.errors import WeakKey
from psl_flower.sealed.secret import Secret

SUITE = 1
KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
ID_BYTES = 16
DIGEST_BYTES = 32

_HPKE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


class Purpose(Enum):
    """What a derived key, a box, a signature or a digest is for; the value separates the domains."""

    ROOT_COMMITMENT = b"psl-flower/1/root-commitment"
    ROOT_FOR_OWNER = b"psl-flower/1/root-for-owner"
    SHARE = b"psl-flower/1/share"
    SHARE_COMMITMENT = b"psl-flower/1/share-commitment"
    STORE_KEY_FOR_NODE = b"psl-flower/1/store-key-for-node"
    STORE_KEY_UNDER_ROOT = b"psl-flower/1/store-key-under-root"
    STORE_KEY_COMMITMENT = b"psl-flower/1/store-key-commitment"
    SAMPLE_ID = b"psl-flower/1/sample-id"
    IMAGE_ORDER = b"psl-flower/1/image-order"
    CODE_NOISE = b"psl-flower/1/code-noise"
    RECORD = b"psl-flower/1/record"
    HEADER_MAC = b"psl-flower/1/header-mac"
    LABEL_KEY = b"psl-flower/1/label-key"
    LABELS = b"psl-flower/1/labels"
    BUNDLE_KEY = b"psl-flower/1/bundle-key"
    BUNDLE_STREAM = b"psl-flower/1/bundle-stream"
    ANSWER_KEY = b"psl-flower/1/answer-key"
    ANSWER = b"psl-flower/1/answer"
    KEY_FILE = b"psl-flower/1/key-file"
    SIGN_MANIFEST = b"psl-flower/1/sign/manifest"
    LABELS_FOR_OWNER = b"psl-flower/1/labels-for-owner"
    CONTENTS_FOR_OWNER = b"psl-flower/1/contents-for-owner"
    SIGN_CONTENTS = b"psl-flower/1/sign/contents"
    SIGN_DRAFT = b"psl-flower/1/sign/draft"
    SIGN_LABELS = b"psl-flower/1/sign/labels"
    SIGN_AUDIT = b"psl-flower/1/sign/audit"
    SIGN_AUDIT_HEAD = b"psl-flower/1/sign/audit-head"
    SIGN_AUTHORISATION = b"psl-flower/1/sign/authorisation"
    SIGN_ANSWER = b"psl-flower/1/sign/answer"


def context(purpose: Purpose, *parts: bytes | int) -> bytes:
    """Return purpose and parts as one unambiguous string: each behind its u32 length, integers as u64."""
    encoded = [part.to_bytes(8, "little") if isinstance(part, int) else part for part in parts]
    return b"".join(len(part).to_bytes(4, "little") + part for part in (purpose.value, *encoded))


def derive(key: Secret, salt: bytes, purpose: Purpose, *parts: bytes | int) -> Secret:
    """Derive a 32-byte key for one purpose by HKDF-SHA-256."""
    kdf = HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=salt, info=context(purpose, *parts))
    return Secret(kdf.derive(key.reveal()))


def digest(data: bytes) -> bytes:
    """SHA-256."""
    return hashlib.sha256(data).digest()


def equal(left: bytes, right: bytes) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(left, right)


def wrap(key: Secret, plaintext: bytes, aad: bytes) -> bytes:
    """Encrypt under a key used for nothing else: random nonce, then ciphertext and tag."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + ChaCha20Poly1305(key.reveal()).encrypt(nonce, plaintext, aad)


def unwrap(key: Secret, box: bytes, aad: bytes) -> bytes | None:
    """Open what `wrap` made; None if key, box or associated data are not the right ones."""
    if len(box) < NONCE_BYTES + TAG_BYTES:
        return None
    try:
        return ChaCha20Poly1305(key.reveal()).decrypt(box[:NONCE_BYTES], box[NONCE_BYTES:], aad)
    except InvalidTag:
        return None


def seal(public: X25519PublicKey, plaintext: bytes, info: bytes) -> bytes:
    """Seal to one X25519 key by HPKE base mode: 32-byte encapsulated key, then ciphertext and tag.

    Raises
    ------
    WeakKey
        If the key is of low order.
    """
    try:
        return _HPKE.encrypt(plaintext, public, info)
    except ValueError:
        raise WeakKey("a public key is of low order; ask its owner for a new one") from None


def unseal(private: X25519PrivateKey, box: bytes, info: bytes) -> bytes | None:
    """Open what `seal` made; None if key, box or info are not the right ones, or a point is weak."""
    try:
        return _HPKE.decrypt(box, private, info)
    except (InvalidTag, ValueError):
        return None
