"""Errors that a user meets first: each names what is wrong and what to do, once."""

from pathlib import Path

import pytest

from psl_flower.cli.main import COMMANDS, main
from psl_flower.config import GROUP_OF
from psl_flower.config.fields import _ELSEWHERE
from psl_flower.errors import IdentityError, InsecureKeyFile
from psl_flower.kinds import kind_of, parse_settings
from psl_flower.sealed import keyfile
from psl_flower.sealed.identities import Identity, Role


def refusal(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert status in (1, 2) and out == ""
    return err


@pytest.mark.parametrize("command", ["trian", "evalute", "ru"])
def test_a_mistyped_command_is_named_once(capsys, command):
    assert refusal(capsys, command).count("Did you mean") == 1


@pytest.mark.parametrize(
    ("given", "meant"),
    [("epochs=5", "rounds"), ("learning_rate=0.1", "lr"), ("name=a", "run-name"), ("rouns=5", "rounds")],
)
def test_a_setting_by_the_name_that_others_give_it(capsys, given, meant):
    assert f"did you mean {meant}?" in refusal(capsys, "train", given)


def test_names_of_others_lead_to_settings_and_hide_none():
    assert set(_ELSEWHERE.values()) <= {field.replace("_", "-") for field in GROUP_OF}
    assert not set(_ELSEWHERE) & {field.replace("_", "-") for field in GROUP_OF}


def test_a_dataset_without_its_key(capsys, tmp_path):
    assert f"did you mean dataset={tmp_path}?" in refusal(capsys, "train", tmp_path)
    assert "did you mean dataset=digits?" in refusal(capsys, "train", "digits", "rounds=1")
    assert "did you mean" not in refusal(capsys, "train", tmp_path / "absent")


@pytest.mark.parametrize("text", ["true", "True", "TRUE"])
def test_true_however_it_is_capitalised(text):
    assert kind_of(parse_settings([f"flip={text}"])).config.training.flip is True
    assert parse_settings(["flip=False"]) == {"flip": False}


def test_neither_true_nor_false(capsys):
    assert "flip: expected true or false, got 'maybe'" in refusal(capsys, "train", "flip=maybe")


@pytest.mark.parametrize("command", COMMANDS)
def test_arguments_are_listed_once(capsys, command):
    assert main([command, "--help"]) == 0
    assert "Positional arguments:" not in capsys.readouterr().out  # click's section, beside that of typer


def test_a_mistyped_run_or_folder_is_named(capsys, tmp_path, monkeypatch):
    for folder in ("pictures/train", "workspace/runs/photos-1", "workspace/runs/digits"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.toml").touch()
    monkeypatch.chdir(tmp_path)
    for command in ("report", "evaluate", "leak"):
        err = refusal(capsys, command, "photo-1", "--workspace", "workspace")
        assert "no such run; did you mean photos-1? (there: " in err
    assert "did you mean" not in refusal(capsys, "report", "zebra", "--workspace", "workspace")
    for given, meant in (("./picture", "pictures"), ("./picturs/train", "pictures/train"), ("./picturs/x", "pictures")):
        for arguments in (("inspect", given), ("train", f"dataset={given}", "workspace=new")):
            assert f"no such folder ({Path(given).absolute()}); did you mean {meant}?\n" in refusal(capsys, *arguments)
    assert "did you mean workspace?" in refusal(capsys, "runs", "--workspace", "workspce")
    assert not (tmp_path / "new" / "runs").exists()


def test_runs_of_a_workspace_that_is_not_there(capsys, tmp_path):
    assert f"{tmp_path / 'nosuch'}: no such folder" in refusal(capsys, "runs", "--workspace", tmp_path / "nosuch")


def test_no_workspace_yet_is_no_error(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PSL_WORKSPACE", str(tmp_path / "new"))
    assert main(["runs"]) == 0
    assert "no runs yet" in capsys.readouterr().out


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "owner.key"
    keyfile.save(Identity.generate(Role.OWNER, "olga"), path)
    return path


def test_a_public_key_where_the_private_one_is_needed(key, capsys, tmp_path):
    public = keyfile.public_file(key)
    err = refusal(capsys, "rotate", "--manifest", tmp_path, "--owner-key", public)
    assert f"{public} holds a public key" in err and f"{key}\n" in err and "chmod" not in err
    key.rename(tmp_path / "elsewhere")
    with pytest.raises(IdentityError, match=r"holds a public key.*that psl keygen wrote"):
        keyfile.load(public)
    with pytest.raises(IdentityError, match=r"psl1-owner-.* is a public key"):
        keyfile.load(Path(public.read_text().strip()))


def test_a_file_that_is_no_key_is_not_asked_to_be_closed(key, tmp_path):
    other = tmp_path / "photo.png"
    other.write_bytes(b"\x89PNG\r\n")
    with pytest.raises(IdentityError, match="is not a psl-flower key file"):
        keyfile.load(other)
    key.chmod(0o644)
    with pytest.raises(InsecureKeyFile, match="chmod 600"):
        keyfile.load(key)


def test_options_of_earlier_versions_work_and_say_what_they_are_called_now(key, capsys, tmp_path):
    public = keyfile.public_file(key)
    for command in (["verify", tmp_path], ["audit-log"]):
        err = refusal(capsys, *command, "--manifest", tmp_path, "--owner-key", public)
        assert f"note: psl {command[0]} --owner-key is now called --owner" in err and "error: " in err
    err = refusal(capsys, "receive", tmp_path / "bundle", f"--node-key={key}", "--out", tmp_path / "out")
    assert "--node-key is now called --key" in err and "expected the key of a node" in err
    assert main(["verify", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--owner " in out and "--owner-key" not in out
