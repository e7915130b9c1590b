"""No secret shows where it should not: reprs, errors, logs, files, pickles."""

from __future__ import annotations

import ast
import copy
import logging
import pickle
import stat
from pathlib import Path

import msgspec
import pytest

import psl_flower.sealed
from psl_flower import errors
from psl_flower.errors import PslError
from psl_flower.sealed import data_keys, keyfile
from psl_flower.sealed.identities import Identity, PublicIdentity, Role, signature_is_good
from psl_flower.sealed.records import RecordCipher, SampleIds
from psl_flower.sealed.secret import Secret
from psl_flower.sealed.suite import Purpose
from tests.vectors.sealed_support import ArraySource, World


def spellings(secret: bytes) -> list[str]:
    import base64

    return [
        secret.hex(),
        base64.b64encode(secret).decode(),
        base64.urlsafe_b64encode(secret).decode(),
        repr(secret),
    ]


def test_secrets_do_not_print_or_travel() -> None:
    data = bytes(range(64))
    identity = Identity(Role.NODE, "n", Secret(data))
    for text in (repr(identity), str(identity), f"{identity!r:>9}", repr(identity.secret)):
        assert not any(part in text for whole in (data, data[:32], data[32:]) for part in spellings(whole))
    for what in (pickle.dumps, copy.deepcopy, copy.copy):
        with pytest.raises(TypeError):
            what(identity.secret)
    with pytest.raises(TypeError):
        msgspec.json.encode(identity.secret)


def test_wiping() -> None:
    secret = Secret(b"x" * 32)
    view = secret._data
    with secret:
        assert secret.reveal() == b"x" * 32
    assert bytes(view) == bytes(32)
    assert len(secret) == 0
    secret.wipe()
    with pytest.raises(ValueError, match="wiped"):
        secret.reveal()


def test_nothing_secret_in_files_and_errors(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Seal, damage, read: no file, message or log line holds a root, data key, private key or label."""
    caplog.set_level(logging.DEBUG)
    world, source = World(tmp_path / "out"), ArraySource(30, 5, classes=3)
    world.seal(source)
    manifest = world.signed.manifest
    root = data_keys.open_root_as_owner(manifest, world.owner)
    keys = [data_keys.open_under_root(manifest, entry, root).reveal() for entry in manifest.stores]
    people = [world.owner, world.lower, *world.nodes, *world.restorers]
    secrets = [
        root.reveal(),
        *keys,
        *(p.secret.reveal()[s] for p in people for s in (slice(32), slice(32, 64))),
    ]
    secrets += [source.all_NCHW[0].tobytes(), bytes(source.all_labels[:12])]
    messages = [caplog.text]
    path = world.place(0) / "epoch-0001-segment-000000.psl"
    whole = path.read_bytes()
    for at in range(0, len(whole), 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            world.open(0).read(__import__("numpy").arange(35))
        except PslError as error:
            messages += [str(error), repr(error), repr(error.__context__)]
    path.write_bytes(whole)
    messages += [repr(world.open(0)), repr(manifest), repr(world.signed)]
    for file in world.out.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert not any(secret in data for secret in secrets), file
            messages.append(data.decode("latin-1"))
    for text in messages:
        assert not any(part in text for secret in secrets for part in spellings(secret))


def test_key_files(tmp_path: Path) -> None:
    identity = Identity.generate(Role.RESTORER, "alice")
    path = tmp_path / "deep" / "alice.key"
    keyfile.save(identity, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keyfile.load(path).secret.reveal() == identity.secret.reveal()
    for text in (str(identity.public), str(keyfile.public_file(path)), str(path)):
        assert keyfile.load_public(text) == identity.public
    with pytest.raises(errors.StoreExists):
        keyfile.save(identity, path)
    path.chmod(0o640)
    with pytest.raises(errors.InsecureKeyFile, match="chmod 600"):
        keyfile.load(path)
    with pytest.raises(errors.StoreNotFound):
        keyfile.load(tmp_path / "none")
    with pytest.raises(errors.WrongRole):
        keyfile.load_public(str(identity.public), Role.NODE)
    with pytest.raises(errors.IdentityError):
        keyfile.load_public(str(tmp_path / "none"))


def test_passphrases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psl_flower.sealed.keyfile._MEMORY_KIB", 64)
    identity = Identity.generate(Role.OWNER, "o")
    path = tmp_path / "o.key"
    keyfile.save(identity, path, "correct horse")
    assert not any(part in path.read_text() for part in spellings(identity.secret.reveal()))
    assert keyfile.load(path, lambda _: "correct horse").public == identity.public
    for ask in (None, lambda _: "battery staple", lambda _: ""):
        with pytest.raises(errors.PassphraseError):
            keyfile.load(path, ask)
    with pytest.raises(errors.PassphraseError):
        keyfile.save(identity, tmp_path / "p.key", "")
    whole = path.read_bytes()
    for at in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            with pytest.raises(PslError):
                keyfile.load(path, lambda _: "correct horse")
    for length in range(len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(PslError):
            keyfile.load(path, lambda _: "correct horse")


@pytest.mark.parametrize("settings", ["memory-kib=99999999 passes=3 lanes=1", "memory-kib=64 passes=999 lanes=1"])
def test_a_key_file_cannot_ask_for_too_much(tmp_path: Path, settings: str) -> None:
    identity = Identity.generate(Role.OWNER, "o")
    path = tmp_path / "o.key"
    keyfile.save(identity, path)
    text = path.read_text().replace(
        "protection: none", f"protection: argon2id {settings} salt=AAAAAAAAAAAAAAAAAAAAAA=="
    )
    path.write_text(text)
    with pytest.raises(errors.IdentityError, match="bounds"):
        keyfile.load(path, lambda _: "x")


def test_every_character_of_a_public_key_counts() -> None:
    text = str(Identity.generate(Role.NODE, "n").public)
    assert PublicIdentity.parse(f" {text}\n") == PublicIdentity.parse(text, Role.NODE)
    for at in range(len(text)):
        for other in "Ax_":
            if text[at] != other:
                with pytest.raises(errors.IdentityError):
                    PublicIdentity.parse(text[:at] + other + text[at + 1 :])
    for wrong in (text[:-1], text + "A", text.replace("node", "owner"), "", "psl1-"):
        with pytest.raises(errors.IdentityError):
            PublicIdentity.parse(wrong)


@pytest.mark.parametrize("name", ["", "a" * 65, "../x", "a b", "-x", "ä", "a\nb"])
def test_names_are_plain(name: str) -> None:
    with pytest.raises(errors.IdentityError):
        Identity.generate(Role.NODE, name)


def test_purposes_differ() -> None:
    values = [purpose.value for purpose in Purpose]
    assert len(set(values)) == len(values)
    assert not any(a != b and b.startswith(a + b"\0") for a in values for b in values)


def test_signatures_are_for_one_purpose() -> None:
    identity = Identity.generate(Role.OWNER, "o")
    signature = identity.sign(Purpose.SIGN_MANIFEST, b"m")
    assert signature_is_good(identity.public.sign_key, signature, Purpose.SIGN_MANIFEST, b"m")
    assert not signature_is_good(identity.public.sign_key, signature, Purpose.SIGN_LABELS, b"m")
    assert not signature_is_good(identity.public.sign_key, signature, Purpose.SIGN_MANIFEST, b"n")
    assert not signature_is_good(identity.public.sign_key, signature[:-1], Purpose.SIGN_MANIFEST, b"m")


def test_objects_with_keys_have_no_telling_repr() -> None:
    assert "_key" not in repr(SampleIds(Secret(b"k" * 32), b"s" * 16))
    assert "_aead" not in repr(RecordCipher.__new__(RecordCipher))


def test_code_of_the_package() -> None:
    """No module logs, prints, pickles, or draws from `random`."""
    files = sorted(Path(psl_flower.sealed.__file__).parent.glob("*.py"))
    assert len(files) > 20
    for file in files:
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not set(names) & {"logging", "pickle", "random", "marshal", "shelve"}, file
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"print", "eval", "exec"}, file
