"""What `psl train` refuses, and says, before anything of Flower is started."""

import subprocess
from pathlib import Path

import pytest
from tiny_run import make_run

from psl_flower.config import RunConfig
from psl_flower.errors import ConfigError, RunError
from psl_flower.kinds import Train, kind_of
from psl_flower.launch.running import prepare
from psl_flower.sealed import keyfile
from psl_flower.stores.prepare import prepare_stores
from tests.vectors.sealed_support import ArraySource, World

# What is chosen by the number of images unless it is asked for.
CHOSEN = {"rounds": 1, "batch_size": 2, "lr": 0.1}


@pytest.fixture
def config(tmp_path, pictures):
    return RunConfig.of(dataset=str(pictures), image_size=(8, 8), uppers=2, workspace=str(tmp_path / "workspace"))


def test_keys_that_are_made_are_announced_once(tmp_path, config):
    said = []
    assert prepare(Train(config=config), say=said.append)[0] == 2
    *account, line, chosen = said
    assert chosen.startswith("chosen for ") and "rounds=5" in chosen
    assert account[0].endswith("read as images by class") and all(text.startswith("  ") for text in account[1:])
    assert f"demonstration keys of all parties, in {tmp_path / 'workspace' / 'keys'}" in line
    said.clear()
    prepare(Train(config=config.replace(**CHOSEN)), say=said.append)
    assert said == []


def test_git_passes_by_what_a_run_makes(config, tmp_path):
    git = ["git", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    prepare(Train(config=config))
    prepare(Train(config=config.replace(stores="plain")))
    listed = [*git, "ls-files", "--others", "--exclude-standard", "--", "workspace"]
    assert subprocess.run(listed, check=True, capture_output=True, text=True).stdout == ""


def test_keys_that_are_named_must_be_there(tmp_path, config):
    with pytest.raises(ConfigError, match=r"keys: .*mistyped: no such folder"):
        prepare(Train(config=config.replace(keys=str(tmp_path / "mistyped"))))
    assert not (tmp_path / "mistyped").exists() and not (tmp_path / "workspace" / "stores").exists()


def test_a_simulation_has_no_node_to_name(tmp_path, config):
    asked = config.replace(adaptation_server=True, adaptation_node="13")
    with pytest.raises(ConfigError, match="adaptation-node: is the id of a real node; leave it out in a simulation"):
        prepare(Train(config=asked))
    assert not (tmp_path / "workspace").exists()


def test_a_node_named_for_the_adaptation_net_needs_one_on_a_node(config):
    stores = prepare_stores(config)
    lone = Train(config=config.replace(adaptation_node="13"))
    with pytest.raises(ConfigError, match="adaptation-node: is set, but adaptation-server is not"):
        lone.check(lone.find(), stores.description)


def test_a_simulation_needs_the_keys_of_all_nodes(tmp_path):
    world = World(tmp_path / "sealed")
    world.seal(ArraySource())
    keys = tmp_path / "keys"
    config = RunConfig.of(dataset=str(world.out), keys=str(keys), workspace=str(tmp_path / "workspace"))
    for identity in (world.lower, world.nodes[0]):
        keyfile.save(identity, keys / f"{identity.name}.key")
    with pytest.raises(ConfigError, match=f"Upper 1 is sealed to node {world.nodes[1].public.fingerprint}, .* keys"):
        prepare(Train(config=config))
    keyfile.save(world.nodes[1], keys / "node1.key")
    said = []
    assert prepare(Train(config=config.replace(**CHOSEN)), say=said.append)[0] == 2
    assert said == []


@pytest.mark.parametrize("stores", ["sealed", "plain"])
def test_batches_that_the_images_do_not_make(config, stores):
    config = config.replace(stores=stores)
    with pytest.raises(ConfigError, match="training needs 2 or more samples, the dataset has 1"):
        prepare(Train(config=config.replace(max_train=1)))
    prepare(Train(config=config))
    said = []
    prepare(Train(config=config.replace(**CHOSEN)), say=said.append)
    assert said == []
    prepare(Train(config=config.replace(batch_size=2000)), say=said.append)
    (line,) = said
    assert "batch-size: 2000 is more than the " in line and "every step takes all of them" in line


@pytest.mark.parametrize("stores", ["sealed", "plain"])
def test_what_was_read_is_said_once_and_kept_beside_the_stores(config, stores):
    config, said = config.replace(stores=stores), []
    (Path(config.data.dataset) / "train" / "a" / "readme.txt").write_text("hello")
    prepare(Train(config=config), say=said.append)
    assert said[0].endswith(": read as images by class")
    assert "  left out: 1 .txt (not an image), such as train/a/readme.txt" in said
    made = prepare_stores(config)
    assert made.account.left_out[0].example == "train/a/readme.txt" and made.account_lines == ()
    assert (made.folder / "account.json").stat().st_mode & 0o077 == 0
    said.clear()
    prepare(Train(config=config.replace(**CHOSEN)), say=said.append)
    assert said == []


def test_a_light_model_that_is_not_there_is_missed_before_flower_starts(tmp_path):
    run, _ = make_run(tmp_path)
    run.checkpoints.save(4, {})
    asked = kind_of({"predict": run.name, "predict-light": True, "workspace": str(tmp_path)})
    with pytest.raises(RunError, match="no light model is in place; find one with: psl lighten tiny"):
        prepare(asked)


def test_a_run_that_was_stopped_has_no_model_to_make_light(tmp_path):
    run, _ = make_run(tmp_path)
    (run.model / "model.safetensors").unlink()
    asked = kind_of({"lighten": run.name, "lighten-with": "max-drop=0.1 min-speed=1", "workspace": str(tmp_path)})
    with pytest.raises(RunError, match=r"run tiny has no model yet; .*: psl train resume=tiny"):
        prepare(asked)
