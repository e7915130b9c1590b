"""Identities: one Ed25519 key to sign and one X25519 key to receive, for one role.

    psl1-node-<base64url of: Ed25519 public (32) | X25519 public (32) | check (4)>

The check bytes catch a typing error and a key given for another role's; trust comes from where the key was
got.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from psl_flower.errors import IdentityError, WeakKey, WrongRole
from psl_flower.sealed.secret import Secret
from psl_flower.sealed.suite import Purpose, context, digest, seal, unseal

_PUBLIC = re.compile(r"psl1-(owner|node|restorer|lower)-([A-Za-z0-9_-]{91})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_CHECK_BYTES = 4
# Not a secret: any private key gives zero, which is refused, with a point of low order.
_PROBE = X25519PrivateKey.from_private_bytes(b"\x40" * 32)


class Role(StrEnum):
    """What an identity may be used for."""

    OWNER = "owner"
    NODE = "node"
    RESTORER = "restorer"
    LOWER = "lower"

    @property
    def with_article(self) -> str:
        """For messages: "an owner", "a node"."""
        return f"an {self}" if self is Role.OWNER else f"a {self}"


@dataclass(frozen=True, slots=True)
class PublicIdentity:
    """The public half of an identity."""

    role: Role  #: What it may be used for.
    #: Raw Ed25519 and X25519 public keys, 32 bytes each.
    sign_key: bytes
    seal_key: bytes

    def __post_init__(self) -> None:
        """Refuse keys of a wrong length or of low order."""
        if len(self.sign_key) != 32 or len(self.seal_key) != 32:
            raise IdentityError("a public key must be 32 bytes of Ed25519 and 32 bytes of X25519")
        try:
            _PROBE.exchange(X25519PublicKey.from_public_bytes(self.seal_key))
        except ValueError:
            raise WeakKey(f"the X25519 key of this {self.role} is of low order; ask for a new one") from None
        if _is_low_order_ed25519(self.sign_key):
            raise WeakKey(f"the Ed25519 key of this {self.role} is of low order; ask for a new one")

    def __str__(self) -> str:
        """Return the text form."""
        body = self.sign_key + self.seal_key + _check(self.role, self.sign_key, self.seal_key)
        return f"psl1-{self.role}-{base64.urlsafe_b64encode(body).decode().rstrip('=')}"

    @classmethod
    def parse(cls, text: str, role: Role | None = None) -> PublicIdentity:
        """Read a public key from its text form.

        Raises
        ------
        IdentityError
            If the text is not a public key, or was mistyped.
        WrongRole
            If it is not of the role asked for.
        WeakKey
            If it is of low order.
        """
        found = _parse(text.strip())
        if role is not None and found.role is not role:
            raise WrongRole(f"expected the public key of {role.with_article}, got that of {found.role.with_article}")
        return found

    @property
    def fingerprint(self) -> str:
        """Short name of the key, to be compared by eye."""
        return digest(str(self).encode()).hex()[:16]

    def seal(self, plaintext: bytes, info: bytes) -> bytes:
        """Seal bytes so that only this identity opens them."""
        return seal(X25519PublicKey.from_public_bytes(self.seal_key), plaintext, info)


@dataclass(frozen=True, slots=True)
class Identity:
    """A private identity. Shows its role and name only."""

    role: Role  #: What it may be used for.
    name: str  #: For people; 1 to 64 of letters, digits and ._@-.
    secret: Secret = field(repr=False)  #: 64 bytes: Ed25519 seed, X25519 private key.
    _sign: Ed25519PrivateKey = field(init=False, repr=False, compare=False)
    _seal: X25519PrivateKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the name and make the key objects."""
        check_name(self.name)
        if len(self.secret) != 64:
            raise IdentityError("a private key must be 64 bytes")
        object.__setattr__(self, "_sign", Ed25519PrivateKey.from_private_bytes(self.secret.reveal()[:32]))
        object.__setattr__(self, "_seal", X25519PrivateKey.from_private_bytes(self.secret.reveal()[32:]))

    @classmethod
    def generate(cls, role: Role, name: str) -> Identity:
        """Draw a new identity."""
        return cls(role, name, Secret.random(64))

    @property
    def public(self) -> PublicIdentity:
        """The half that may be given away."""
        return PublicIdentity(
            self.role, self._sign.public_key().public_bytes_raw(), self._seal.public_key().public_bytes_raw()
        )

    def expect(self, role: Role) -> Identity:
        """Return itself if it has the role; raises WrongRole if it has another."""
        if self.role is not role:
            raise WrongRole(f"expected the key of {role.with_article}, got that of the {self.role} {self.name!r}")
        return self

    def sign(self, purpose: Purpose, message: bytes) -> bytes:
        """Sign a message for one purpose: 64 bytes."""
        return self._sign.sign(context(purpose, message))

    def open(self, box: bytes, info: bytes) -> bytes | None:
        """Open what was sealed to this identity; None if it was not, or was changed."""
        return unseal(self._seal, box, info)


def signature_is_good(sign_key: bytes, signature: bytes, purpose: Purpose, message: bytes) -> bool:
    """Check if a raw Ed25519 key signed the message for this purpose; low-order keys sign nothing."""
    if len(sign_key) != 32 or _is_low_order_ed25519(sign_key):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(sign_key).verify(signature, context(purpose, message))
    except (InvalidSignature, ValueError):
        return False
    return True


def check_name(name: str) -> str:
    """Return the name if it may be used for a person or node.

    Raises
    ------
    IdentityError
        If it is empty, too long, or has other characters than letters, digits and ._@-.
    """
    if not _NAME.fullmatch(name):
        raise IdentityError("a name has 1 to 64 letters, digits or ._@- and begins with a letter or digit")
    return name


@lru_cache(maxsize=4096)
def _parse(text: str) -> PublicIdentity:
    match = _PUBLIC.fullmatch(text)
    if match is None:
        raise IdentityError("not a public key: expected psl1-<role>-<91 characters>, as `psl keygen` prints it")
    try:
        body = base64.b64decode(match[2] + "=", altchars=b"-_", validate=True)
    except binascii.Error:
        raise IdentityError("not a public key: its characters do not decode") from None
    if base64.urlsafe_b64encode(body).decode().rstrip("=") != match[2]:
        raise IdentityError("not a public key: its last character is not in canonical form")
    role, sign_key, seal_key = Role(match[1]), body[:32], body[32:64]
    if body[64:] != _check(role, sign_key, seal_key):
        raise IdentityError("this public key was mistyped or altered: its check characters do not fit")
    return PublicIdentity(role, sign_key, seal_key)


def _check(role: Role, sign_key: bytes, seal_key: bytes) -> bytes:
    return digest(role.value.encode() + b"\0" + sign_key + seal_key)[:_CHECK_BYTES]


def _is_low_order_ed25519(key: bytes) -> bool:
    """Check if the y coordinate is one of the eight points of small order (any encoding of them)."""
    prime = 2**255 - 19
    y = (int.from_bytes(key, "little") & (2**255 - 1)) % prime
    # y = 0 has order 4, y = 1 order 1, y = -1 order 2; those of order 8 solve d*y^4 + 2*y^2 - 1 = 0.
    d = -121665 * pow(121666, -1, prime) % prime
    return y in (0, 1, prime - 1) or (d * pow(y, 4, prime) + 2 * y * y - 1) % prime == 0
