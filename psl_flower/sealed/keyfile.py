"""Key files: a short text, readable by its owner only, its secret line under a passphrase if one is given.

    psl-flower secret key, version 1: give it to nobody
    role: restorer
    name: alice
    public: psl1-restorer-...
    protection: none   |   argon2id memory-kib=65536 passes=3 lanes=1 salt=<base64>
    secret: <base64 of 64 bytes, or of nonce, ciphertext and tag>

The passphrase key is Argon2id(passphrase, salt), the cipher ChaCha20-Poly1305, its associated data every line
above `secret`, so that no line can be changed unnoticed.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from psl_flower.errors import IdentityError, InsecureKeyFile, PassphraseError, StoreExists, StoreNotFound
from psl_flower.sealed.identities import Identity, PublicIdentity, Role
from psl_flower.sealed.secret import Secret
from psl_flower.sealed.suite import Purpose, context, unwrap, wrap
from psl_flower.system.files import open_to_others, read_file, write_file

TITLE = "psl-flower secret key, version 1: give it to nobody"
_TITLE_OF_ALL = "psl-flower secret key"  # of any version
_PUBLIC = "psl1-"
_FIELDS = ("role", "name", "public", "protection", "secret")
_ARGON2 = re.compile(r"argon2id memory-kib=(\d{1,8}) passes=(\d{1,3}) lanes=(\d{1,3}) salt=([A-Za-z0-9+/=]{24})")
_MEMORY_KIB, _PASSES, _LANES = 65536, 3, 1
# Bounds on what a file may ask of us: a gibibyte and 64 passes.
_MAX_MEMORY_KIB, _MAX_PASSES, _MAX_LANES = 1 << 20, 64, 64
_LIMIT = 16384
_PASSPHRASE_LIMIT = 4096


def refuse_existing(path: Path) -> None:
    """Raise StoreExists if there is a key file at a place, or a public key beside it."""
    for target in (path, public_file(path)):
        # Unlike Path.exists, no error if the folder cannot be read: writing reports the fault.
        if os.path.exists(target):
            raise StoreExists(f"{target} exists already; a key is never overwritten")


def save(identity: Identity, path: Path, passphrase: str | None = None) -> None:
    """Write a new key file with mode 0600, and the public key beside it as ``<path>.pub``.

    Raises
    ------
    StoreExists
        If the file exists: a key is never overwritten.
    StoreUnreachable
        If the disk refuses.
    """
    refuse_existing(path)
    lines = [TITLE, f"role: {identity.role}", f"name: {identity.name}", f"public: {identity.public}"]
    if passphrase is None:
        lines.append("protection: none")
        body = identity.secret.reveal()
    else:
        if not passphrase:
            raise PassphraseError("an empty passphrase protects nothing; leave it out instead")
        salt = secrets.token_bytes(16)
        settings = f"memory-kib={_MEMORY_KIB} passes={_PASSES} lanes={_LANES}"
        lines.append(f"protection: argon2id {settings} salt={base64.b64encode(salt).decode()}")
        with _stretch(passphrase, salt, _MEMORY_KIB, _PASSES, _LANES) as key:
            body = wrap(key, identity.secret.reveal(), _bound(lines))
    lines.append(f"secret: {base64.b64encode(body).decode()}")
    write_file(path, ("\n".join(lines) + "\n").encode(), mode=0o600, parents=True)
    write_file(public_file(path), f"{identity.public}\n".encode(), mode=0o644)


def load(path: Path, ask: Callable[[str], str] | None = None) -> Identity:
    """Read a key file.

    Given the file's name, `ask` returns the passphrase; it is called only where one is needed.

    Raises
    ------
    StoreNotFound
        If there is no such file.
    InsecureKeyFile
        If others than its owner may read or write it.
    PassphraseError
        If a passphrase is needed and missing or wrong, or the file was changed.
    IdentityError
        If it is not a key file, or was damaged.
    """
    if str(path).startswith(_PUBLIC):
        raise IdentityError(f"{str(path)[:16]}... is a public key; a private key is needed here: name its file")
    text = read_file(path, limit=_LIMIT)
    if _plain_lines(text).startswith(_PUBLIC.encode()):
        raise IdentityError(f"{path} holds a public key; the private key is needed here{_private_beside(path)}")
    _expect_key_file(path, text)
    if mode := open_to_others(path):
        raise InsecureKeyFile(f"{path} may be read by others (mode {mode}); do: chmod 600 {path}")
    lines, fields = _parse(path, text)
    role, public = _role(path, fields["role"]), PublicIdentity.parse(fields["public"])
    body = _decode(path, "secret", fields["secret"])
    if fields["protection"] != "none":
        body = _open(path, fields["protection"], body, lines, ask)
    if len(body) != 64:
        raise IdentityError(f"{path}: damaged: the secret has the wrong length")
    identity = Identity(role, fields["name"], Secret(body))
    if identity.public != public:
        raise IdentityError(f"{path}: damaged: secret and public key do not belong together")
    return identity


def load_public(text_or_path: str, role: Role | None = None) -> PublicIdentity:
    """Read a public key, given as its text or as a file that holds it (a key file does, too).

    Raises
    ------
    IdentityError
        If it is neither.
    """
    if text_or_path.strip().startswith(_PUBLIC):
        return PublicIdentity.parse(text_or_path, role)
    try:
        content = read_file(Path(text_or_path), limit=_LIMIT).decode("utf-8-sig", errors="replace")
    except StoreNotFound:
        raise IdentityError(f"{text_or_path} is neither a public key nor a file that holds one") from None
    for line in content.splitlines():
        if line.startswith((_PUBLIC, f"public: {_PUBLIC}")):
            return PublicIdentity.parse(line.removeprefix("public: "), role)
    raise IdentityError(f"{text_or_path} holds no public key")


def passphrase_in(file: Path, name: str) -> str:
    """Return the passphrase in a file, its first line in UTF-8, without byte order mark and line end.

    `name` is what it opens, for errors.

    Raises
    ------
    PassphraseError
        If it is empty or not UTF-8: replacement characters would open keys of other passphrases.
    StoreError
        If the file cannot be read.
    """
    first = read_file(file, limit=_PASSPHRASE_LIMIT).removeprefix(codecs.BOM_UTF8).split(b"\n")[0].removesuffix(b"\r")
    try:
        passphrase = first.decode("utf-8")
    except UnicodeDecodeError:
        raise PassphraseError(f"{file}: is not UTF-8; save the passphrase of {name} as plain text in UTF-8") from None
    if not passphrase:
        raise PassphraseError(f"{file}: its first line is empty; it must be the passphrase of {name}")
    return passphrase


def public_file(path: Path) -> Path:
    """Return the place of the public key that belongs to a key file."""
    return path.with_name(f"{path.name}.pub")


def _private_beside(path: Path) -> str:
    """Return where the private key of a public key's file lies, if `save` has put it there."""
    private = path.with_suffix("")
    found = path.suffix == public_file(private).suffix and os.path.isfile(private)
    return f": {private}" if found else ", the file that psl keygen wrote beside it"


def _expect_key_file(path: Path, text: bytes) -> None:
    """Raise IdentityError if a text is no key file of any version."""
    if not _plain_lines(text).startswith(_TITLE_OF_ALL.encode()):
        raise IdentityError(f"{path} is not a psl-flower key file")


def _parse(path: Path, text: bytes) -> tuple[list[str], dict[str, str]]:
    try:
        # Not splitlines: it knows more line ends, and every other byte counts.
        lines = _plain_lines(text).decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise IdentityError(f"{path} is not a psl-flower key file") from None
    if lines[0] != TITLE:
        raise IdentityError(f"{path} is a key file of a version that this program does not know")
    pairs = [line.partition(": ") for line in lines[1:-1]]
    if tuple(key for key, _, _ in pairs) != _FIELDS or lines[-1]:
        raise IdentityError(f"{path}: damaged: expected the lines {', '.join(_FIELDS)}")
    return lines[:-1], {key: value for key, _, value in pairs}


def _plain_lines(text: bytes) -> bytes:
    """Undo an editor's or a transfer's changes to a key file: byte order mark, CRLF, missing last line end."""
    text = text.removeprefix(codecs.BOM_UTF8)
    if text.count(b"\r") == text.count(b"\r\n") == text.count(b"\n"):
        text = text.replace(b"\r\n", b"\n")
    return text if text.endswith(b"\n") else text + b"\n"


def _decode(path: Path, what: str, text: str) -> bytes:
    try:
        body = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise IdentityError(f"{path}: damaged: the {what} does not decode") from None
    if base64.b64encode(body).decode() != text:
        # Base64 leaves up to four bits of its last character unused; a change there must not pass unseen either.
        raise IdentityError(f"{path}: damaged: the {what} is not in canonical form")
    return body


def _role(path: Path, text: str) -> Role:
    try:
        return Role(text)
    except ValueError:
        raise IdentityError(f"{path}: damaged: unknown role") from None


def _open(path: Path, protection: str, box: bytes, lines: list[str], ask: Callable[[str], str] | None) -> bytes:
    match = _ARGON2.fullmatch(protection)
    if match is None:
        raise IdentityError(f"{path}: a protection that this program does not know")
    memory, passes, lanes = (int(match[n]) for n in (1, 2, 3))
    in_bounds = passes in range(1, _MAX_PASSES + 1) and lanes in range(1, _MAX_LANES + 1)
    if not in_bounds or memory not in range(8 * lanes, _MAX_MEMORY_KIB + 1):
        raise IdentityError(f"{path}: its Argon2id settings are out of bounds")
    if ask is None:
        raise PassphraseError(f"{path} is protected by a passphrase; give it with --passphrase-file or on a terminal")
    salt = _decode(path, "salt", match[4])
    with _stretch(ask(str(path)), salt, memory, passes, lanes) as key:
        body = unwrap(key, box, _bound(lines[:-1]))
    if body is None:
        raise PassphraseError(f"{path}: wrong passphrase, or the file was changed")
    return body


def _stretch(passphrase: str, salt: bytes, memory_kib: int, passes: int, lanes: int) -> Secret:
    kdf = Argon2id(salt=salt, length=32, iterations=passes, lanes=lanes, memory_cost=memory_kib)
    try:
        return Secret(kdf.derive(passphrase.encode()))
    except UnicodeEncodeError:
        raise PassphraseError("the passphrase was typed in another encoding than the terminal's; use a file") from None


def _bound(lines: list[str]) -> bytes:
    return context(Purpose.KEY_FILE, "\n".join(lines).encode())
