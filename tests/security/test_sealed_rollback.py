"""An older copy of the owner's folder, or a fork of it, is put back: every command that writes refuses before it does.

The folder held a restorer (carol) whom a rotation has dropped. Each command of the table below is given each of the
folders that somebody could put in its place, twice; it names what is wrong, and changes no byte, nor what is remembered.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flwr.common import Context, RecordDict

from clients.host import own_sealed_stores, own_stores
from psl_flower import errors
from psl_flower.config import RunConfig
from psl_flower.errors import PslError
from psl_flower.sealed import authorisation, keyfile
from psl_flower.sealed import manifest as manifests
from psl_flower.sealed.audit import AuditLog
from psl_flower.stores.prepare import prepare_stores
from tests.security.sealed_commands import another_label, make_keys, psl, refused, sealing

Command = Callable[[Path], list[str | Path]]


def by(folder: Path, *people: str) -> list[str | Path]:
    return [text for name in people for text in ("--identity", folder / f"{name}.key")]


def at(command: str, folder: Path) -> list[str | Path]:
    return [command, "--manifest", folder / "sealed"]


def owned(folder: Path) -> list[str | Path]:
    return ["--owner-key", folder / "owner.key"]


# Every command that writes: into the owner's folder, or something elsewhere that is made from it. The nodes' own
# commands are tested below, and what a run prepares.
WRITING: dict[str, Command] = {
    "ingest": lambda f: [*sealing(f)],
    "ingest --spool": lambda f: [*sealing(f, "sealed", "--spool", str(f / "spool"))],
    "ingest --append": lambda f: [
        "ingest",
        "digits",
        "--out",
        f / "sealed",
        *owned(f),
        "--append",
        "--max-train",
        "99",
    ],
    "rotate": lambda f: [*at("rotate", f), *owned(f)],
    "rotate --delete-old": lambda f: [*at("rotate", f), *owned(f), "--delete-old"],
    "relabel": lambda f: [*at("relabel", f), *by(f, "bob"), "--image", "9", "--label", "3"],
    "relabel by the owner": lambda f: [*at("relabel", f), *by(f, "owner"), "--image", "9", "--label", "3"],
    "restore": lambda f: [*at("restore", f), *by(f, "alice", "bob"), "--image", "3", "--out", f / "restored"],
    "restore, log elsewhere": lambda f: [
        *(*at("restore", f), *by(f, "alice", "bob"), "--image", "3", "--out", f / "restored"),
        *("--audit-log", f / "another.log"),
    ],
    "restore by nodes' answers": lambda f: [
        *(*at("restore", f), *by(f, "alice"), "--request", f / "asked.psl", "--answers", f / "answers"),
        *("--out", f / "restored"),
    ],
    "authorise": lambda f: [*at("authorise", f), *by(f, "alice"), "--image", "3", "--out", f / "new.psl"],
    "authorise --co-sign": lambda f: [
        *(*at("authorise", f), *by(f, "bob"), "--co-sign", f / "asked.psl", "--out", f / "new.psl")
    ],
}


def whole(folder: Path, kept: Path) -> None:
    """Put back the whole folder."""
    shutil.rmtree(folder / "sealed")
    shutil.copytree(kept, folder / "sealed")


def older(folder: Path) -> None:
    whole(folder, folder / "kept" / "before-the-rotation")


def forked(folder: Path) -> None:
    whole(folder, folder / "kept" / "fork")


def interrupted(folder: Path) -> None:
    """What the rotation's own interruption would have left: the old manifest, and a draft."""
    older(folder)
    shutil.copy(folder / "kept" / "draft.psl", folder / "sealed" / "draft.psl")


def without_the_last_label(folder: Path) -> None:
    sorted((folder / "sealed" / "labels").glob("*.psl"))[-1].unlink()


def older_log(folder: Path) -> None:
    for name in ("audit.log", "audit.head"):
        shutil.copy(folder / "kept" / "before-the-rotation" / name, folder / "sealed" / name)


def no_log(folder: Path) -> None:
    for name in ("audit.log", "audit.head"):
        (folder / "sealed" / name).unlink()


def another_log(folder: Path) -> None:
    """As long as the one seen, and signed by a restorer; the entry of the rotation is not in it."""
    older_log(folder)
    signed = manifests.load(folder / "sealed")
    bob = keyfile.load(folder / "bob.key")
    AuditLog(folder / "sealed" / "audit.log").append(signed, [bob], "restore", [1], "instead")
    assert len(AuditLog(folder / "sealed" / "audit.log").read(signed.manifest)) == 2


ROLLED_BACK: dict[str, tuple[Callable[[Path], None], type[PslError]]] = {
    "older folder": (older, errors.StaleManifest),
    "older folder and a draft": (interrupted, errors.StaleManifest),
    "fork": (forked, errors.ForkedManifest),
    "label version removed": (without_the_last_label, errors.LabelError),
    "older log": (older_log, errors.AuditLogTruncated),
    "no log": (no_log, errors.AuditLogTruncated),
    "log of the same length": (another_log, errors.AuditLogEdited),
}


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder as its owner left it, a memory of it, and in `kept` what somebody has kept of earlier."""
    folder = tmp_path_factory.mktemp("rollback")
    out, kept = folder / "sealed", folder / "kept"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PSL_STATE", str(folder / "state"))
        make_keys(folder)
        psl(*sealing(folder))
        psl(*WRITING["restore"](folder))
        shutil.rmtree(folder / "restored")
        shutil.copytree(out, kept / "before-the-rotation")
        # On another machine, which knows nothing of this one's, the owner drops somebody else.
        patched.setenv("PSL_STATE", str(folder / "another-state"))
        psl(*WRITING["rotate"](folder), "--drop-restorer", "alice")
        out.rename(kept / "fork")
        shutil.copytree(kept / "before-the-rotation", out)
        patched.setenv("PSL_STATE", str(folder / "state"))
        with pytest.MonkeyPatch.context() as stopping:
            stopping.setattr("psl_flower.sealed.rotate.drop_draft", lambda *_: None)
            psl(*WRITING["rotate"](folder), "--drop-restorer", "carol")
        (out / "draft.psl").rename(kept / "draft.psl")
        label = another_label(folder, 9, but=3)  # so that 3, which others give it, is another one
        psl(*at("relabel", folder), *by(folder, "bob"), "--image", "9", "--label", label)
        psl(*WRITING["authorise"](folder))
        (folder / "new.psl").rename(folder / "asked.psl")
        # A first answer may do: whatever is in it is not even opened.
        (folder / "answers").mkdir()
        (folder / "answers" / "0.psl").write_bytes(b"")
        shutil.copytree(out, kept / "newest")
        shutil.copytree(folder / "state", kept / "state")
        yield folder


@pytest.fixture
def folder(history: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return that folder as it was left."""
    monkeypatch.setenv("PSL_STATE", str(history / "state"))
    whole(history, history / "kept" / "newest")
    shutil.rmtree(history / "state")
    shutil.copytree(history / "kept" / "state", history / "state")
    return history


def contents(folder: Path) -> dict[Path, bytes]:
    """Return every byte under a folder, the memory's included; what only locks holds none."""
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {path: data for path, data in files.items() if data or (path.suffix != ".lock" and path.name != ".lock")}


@pytest.mark.parametrize("rollback", ROLLED_BACK)
@pytest.mark.parametrize("command", WRITING)
def test_every_command_that_writes_refuses_twice(folder: Path, command: str, rollback: str) -> None:
    put_back, error = ROLLED_BACK[rollback]
    put_back(folder)
    before = contents(folder)
    assert len(before) > 20
    for _ in range(2):
        refused(error, *WRITING[command](folder))
        assert contents(folder) == before


def test_the_table_names_every_command_that_writes(folder: Path) -> None:
    """As left by its owner, each of them does its work; `ingest` says that there is a dataset, `restore` logs in its log."""
    (folder / "asked.psl").rename(folder / "asked-by-alice.psl")
    shutil.copy(folder / "asked-by-alice.psl", folder / "asked.psl")
    assert len(WRITING) == 12 and len(ROLLED_BACK) == 7
    for name, command in WRITING.items():
        whole(folder, folder / "kept" / "newest")
        shutil.rmtree(folder / "state")
        shutil.copytree(folder / "kept" / "state", folder / "state")
        before = contents(folder)
        if name == "ingest":
            refused(errors.StoreExists, *command(folder))
        elif name == "restore, log elsewhere":
            refused(errors.ConfigError, *command(folder))
        elif name == "restore by nodes' answers":
            refused(errors.TruncatedFile, *command(folder))
        else:
            psl(*command(folder))
            assert contents(folder) != before, name
        for made in ("restored", "new.psl", "spool", "another.log", "another.head"):
            path = folder / made
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def test_a_first_ingest_is_not_resumed_once_its_dataset_was_seen(folder: Path) -> None:
    """Somebody puts back what an interruption of the very first ingest had left: a draft, and no manifest."""
    out = folder / "begun"
    with pytest.MonkeyPatch.context() as stopping:
        stopping.setattr("psl_flower.sealed.ingest.drop_draft", lambda *_: None)
        psl(*sealing(folder, "begun"))
    for made in (out / "manifest.psl", *(out / "labels").iterdir()):
        made.unlink()
    before = contents(folder)
    for _ in range(2):
        assert "generation 1 was seen before" in refused(errors.StaleManifest, *sealing(folder, "begun"))
        assert contents(folder) == before
    shutil.rmtree(out)


@pytest.mark.parametrize("rollback", ROLLED_BACK)
def test_a_run_on_the_folder_refuses_twice(folder: Path, rollback: str, tmp_path: Path) -> None:
    config = RunConfig.of(dataset=str(folder / "sealed"), keys=str(folder), workspace=str(tmp_path))
    put_back, error = ROLLED_BACK[rollback]
    prepare_stores(config)
    put_back(folder)
    before = contents(folder)
    for _ in range(2):
        with pytest.raises(error):
            prepare_stores(config)
        assert contents(folder) == before


def test_a_run_on_stores_that_it_made_itself_refuses_older_ones(tmp_path: Path) -> None:
    config = RunConfig.of(dataset="digits", uppers=2, max_train=20, max_test=10, workspace=str(tmp_path / "workspace"))
    out = prepare_stores(config).folder
    shutil.copytree(out, tmp_path / "old")
    keys = config.keys_path()
    psl("rotate", "--manifest", out, "--owner-key", keys / "owner.key")
    prepare_stores(config)
    shutil.rmtree(out)
    shutil.copytree(tmp_path / "old", out)
    before = contents(tmp_path)
    for _ in range(2):
        with pytest.raises(errors.StaleManifest):
            prepare_stores(config)
        assert contents(tmp_path) == before


def node(folder: Path, state: Path) -> Context:
    """Return the context of node 1, whose store is `store-001` of the owner's folder."""
    own = {"store": str(folder / "sealed" / "store-001"), "key": str(folder / "node1.key"), "state": str(state)}
    return Context(run_id=1, node_id=1, node_config={**own}, state=RecordDict(), run_config={})


def test_nodes_remember_and_refuse_what_is_older_or_another(folder: Path, tmp_path: Path) -> None:
    context = node(folder, tmp_path)
    (store,) = own_stores(context)
    store.close()
    for put_back, error in ((older, errors.StaleManifest), (forked, errors.ForkedManifest)):
        put_back(folder)
        for opening in (own_stores, own_sealed_stores):
            for _ in range(2):
                with pytest.raises(error):
                    list(opening(context))
    # The fork first: then it is the owner's that is another.
    context = node(folder, tmp_path / "other")
    (store,) = own_stores(context)
    store.close()
    whole(folder, folder / "kept" / "newest")
    with pytest.raises(errors.ForkedManifest):
        list(own_stores(context))


def test_a_node_answers_nothing_on_top_of_an_older_log(folder: Path, tmp_path: Path) -> None:
    (opened,) = own_sealed_stores(node(folder, tmp_path))
    log = AuditLog(tmp_path / "node" / "audit.log")
    with_two = authorisation.co_sign(
        (folder / "asked.psl").read_bytes(), opened.signed, keyfile.load(folder / "bob.key")
    )
    for _ in range(2):
        authorisation.answer(with_two, opened.signed, opened.store, opened.node, log, seen=opened.seen)
    kept = {path: path.read_bytes() for path in (log.path, log.path.with_suffix(".head"))}
    authorisation.answer(with_two, opened.signed, opened.store, opened.node, log, seen=opened.seen)
    for path, data in kept.items():
        path.write_bytes(data)
    before = contents(tmp_path)
    for _ in range(2):
        with pytest.raises(errors.AuditLogTruncated):
            authorisation.answer(with_two, opened.signed, opened.store, opened.node, log, seen=opened.seen)
        assert contents(tmp_path) == before
    opened.store.close()


@pytest.mark.parametrize("who", [("carol", "bob"), ("bob", "carol")])
def test_a_dropped_restorer_is_told_so(folder: Path, who: tuple[str, str]) -> None:
    with_carol = by(folder, *who)
    restoring = [*at("restore", folder), *with_carol, "--image", "3", "--out", folder / "restored"]
    authorising = [*at("authorise", folder), *with_carol, "--image", "3", "--out", folder / "new.psl"]
    relabelling = [*at("relabel", folder), *by(folder, "carol"), "--image", "9", "--label", "3"]
    for command in (restoring, authorising, relabelling):
        assert "restorer 'carol' was dropped with epoch 2" in refused(errors.RevokedRestorer, *command)
