"""Uppers learnt on other images: `psl pretrain`, the nodes' permission, and runs that train the Lower alone."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from psl_flower.baselines import pretraining
from psl_flower.cli.main import main
from psl_flower.config import RunConfig
from psl_flower.engine.one_process import OneProcessTrainer
from psl_flower.errors import ConfigError, NodeError, RunError
from psl_flower.runs.folder import MODEL_FILE, RunFolder
from psl_flower.stores.prepare import prepare_stores
from psl_flower.system.files import sha256_name
from tests.in_process import InProcessGrid, config_in, engines_one_by_one

NETWORK = {"patch_size": "8x8", "uppers": 2, "cut": "layer4", "backbone_width": 8, "protection": "code", "code_size": 6}
SETTINGS = NETWORK | {
    "dataset": "digits", "max_train": 32, "max_test": 8, "stores": "plain", "batch_size": 8, "rounds": 2,
    "steps_per_round": 2, "lr": 0.05, "seed": 5, "lower_threads": 1, "upper_threads": 1, "device": "cpu",
    "node_timeout_s": 20.0, "freeze_uppers_after": 0, "looks": 1,
}  # fmt: skip
STEPS = 4
PRETRAIN = (
    "max-train=48",
    "max-test=16",
    "batch-size=8",
    "rounds=2",
    "steps-per-round=3",
    "average-every=1",
    "device=cpu",
)


def words(settings):
    return [f"{name.replace('_', '-')}={value}" for name, value in settings.items()]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="module")
def stores(workspace):
    return prepare_stores(config(workspace))


def config(workspace, **changes):
    return config_in(workspace, SETTINGS | changes)


def pretrain(capsys, workspace, out, *more):
    status = main(
        ["pretrain", "digits", *words(NETWORK), *PRETRAIN, *more, f"--out={out}", f"--workspace={workspace}", "--json"]
    )
    captured = capsys.readouterr()
    return status, json.loads(captured.out) if captured.out else {}, captured.err


@pytest.fixture
def weights(capsys, workspace):
    """Return the file of weights that psl pretrain writes, and its hash."""
    file = workspace / "public" / "uppers.safetensors"
    if not file.exists():
        status, report, err = pretrain(capsys, workspace, file)
        assert (status, err) == (0, "")
        assert report["hash"] == sha256_name(file.read_bytes())
    return file, sha256_name(file.read_bytes())


@pytest.fixture
def nodes(stores, workspace, weights, monkeypatch, request):
    """Return nodes that allow the weights."""
    engines_one_by_one(monkeypatch)
    name = request.node.name.replace("[", "-").replace("]", "")
    grid = InProcessGrid(stores.folder, workspace / f"state-{name}", 2)
    grid.allowed = {"allow-upper-weights": f"sha256:{'0' * 64}, {weights[1]}"}
    grid.run_folder = RunFolder(workspace / "runs" / name)
    grid.train = lambda **more: grid.serve(
        **SETTINGS | {"run_name": name, "upper_weights": str(weights[0])} | more, workspace=str(workspace)
    )
    grid.again = lambda: grid.serve(resume=name, workspace=str(workspace))
    return grid


def test_pretraining_writes_the_uppers_of_a_training_in_one_process(workspace, weights):
    given = RunConfig.of(
        max_train=48, max_test=16, batch_size=8, rounds=2, steps_per_round=3, average_every=1, stores="plain",
        patch_size=(8, 8), uppers=2, cut="layer4", backbone_width=8, protection="code", code_size=6,
        workspace=str(workspace),
    )  # fmt: skip
    made = prepare_stores(given)
    trainer = OneProcessTrainer(given, made.description, made.labels, [made.open(m) for m in range(2)])
    trainer.train(6)
    found = load_file(weights[0])
    expected = trainer.net.uppers[0].state_dict()
    # Averaged after every step, all are one, which is written once.
    assert found.keys() == {f"uppers.0.{name}" for name in expected}
    assert all(torch.equal(found[f"uppers.0.{name}"], tensor) for name, tensor in expected.items())


def test_an_interrupted_pretraining_continues_to_the_same_file(capsys, workspace, weights, tmp_path, monkeypatch):
    file = tmp_path / "again.safetensors"

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "write_uppers", killed)
        pretrain(capsys, workspace, file)
    assert file.with_name("again.safetensors.part").exists()
    assert not file.exists()
    status, _, err = pretrain(capsys, workspace, file, "lr=0.01")
    assert status == 1
    assert "is of another pretraining; delete it, or name another file" in err
    assert pretrain(capsys, workspace, file)[0] == 0
    assert file.read_bytes() == weights[0].read_bytes()
    assert not file.with_name("again.safetensors.part").exists()


@pytest.mark.parametrize("transport", ["stream", "flower"])
@pytest.mark.parametrize("changes", [{}, {"looks": 0}, {"freeze_uppers_after": -1, "looks": 0}])
def test_a_run_begins_with_them_as_one_process_does(transport, changes, nodes, stores, workspace, weights):
    nodes.train(transport=transport, **changes)
    given = config(workspace, upper_weights=str(weights[0]), **changes)
    trainer = OneProcessTrainer(given, stores.description, stores.labels, [stores.open(m) for m in range(2)])
    trainer.train(STEPS)
    found, expected = load_file(nodes.run_folder.model / MODEL_FILE), trainer.net.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    public = load_file(weights[0])
    same = all(torch.equal(found[f"uppers.1.{name.removeprefix('uppers.0.')}"], public[name]) for name in public)
    assert same == (changes.get("freeze_uppers_after") != -1)
    assert nodes.run_folder.read_config().network.upper_weights_hash == weights[1]


def test_a_node_whose_operator_has_not_allowed_that_very_file_refuses(nodes, weights):
    nodes.allowed = {"allow-upper-weights": f"sha256:{'0' * 64}"}
    with pytest.raises(NodeError) as caught:
        nodes.train()
    told = str(caught.value)
    assert f"begin with the weights {weights[1]}, which this node does not take" in told
    assert f"\"allow-upper-weights='{weights[1]}'\"" in told
    assert "\n" not in told
    assert not list(nodes.state[100].rglob("uppers.safetensors"))
    # The operator allows it, and the run is started again: nothing was done yet that could be resumed.
    nodes.allowed = {"allow-upper-weights": weights[1]}
    nodes.train(run_name="allowed-at-last")


def test_a_permission_that_is_taken_back_holds(nodes):
    nodes.train(rounds=3)
    (kept,) = nodes.state[100].rglob("uppers.safetensors")
    assert kept.stat().st_mode & 0o777 == 0o600
    nodes.allowed = {}
    with pytest.raises(NodeError, match="which this node does not take"):
        nodes.serve(predict=nodes.run_folder.name, workspace=str(nodes.run_folder.path.parents[1]))


def test_a_changed_file_on_the_node_is_refused(nodes):
    nodes.train(rounds=3)
    (kept,) = nodes.state[100].rglob("uppers.safetensors")
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    with pytest.raises(NodeError, match="expected the Upper weights sha256:.*, found sha256:"):
        nodes.serve(predict=nodes.run_folder.name, workspace=str(nodes.run_folder.path.parents[1]))


def test_a_run_keeps_a_copy_and_refuses_another_file(nodes, workspace, weights, tmp_path):
    with pytest.raises(RunError, match=f"expected the Upper weights sha256:{'1' * 64}, found {weights[1]}"):
        nodes.train(upper_weights_hash=f"sha256:{'1' * 64}")
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(weights[0].read_bytes())
    nodes.train(run_name="copied", upper_weights=str(moved))
    assert (workspace / "runs" / "copied" / "uppers.safetensors").read_bytes() == moved.read_bytes()


class Harmful:
    def __reduce__(self):
        return print, ("harm",)


def of_another_width(content):
    tensors = load_file(content)
    tensors["uppers.0.conv1.weight"] = torch.zeros(4, 1, 3, 3)
    return save(tensors)


def with_less(content):
    tensors = load_file(content)
    del tensors["uppers.0.bn1.bias"]
    return save(tensors)


WRONG = {
    of_another_width: r"conv1.weight of Upper 0 is float32 \(4, 1, 3, 3\), the run's network has float32 \(8, 1, 3, 3\)",
    with_less: r"bn1.bias of Upper 0 is missing, the run's network has float32 \(8,\)",
    lambda content: pickle.dumps(Harmful()): "is no safetensors file",
    lambda content: b"": "is no safetensors file",
}


@pytest.mark.parametrize("wrong", WRONG, ids=["width", "missing", "pickle", "empty"])
def test_a_file_that_does_not_fit_is_refused_before_any_node_is_asked(wrong, nodes, weights, tmp_path, capsys):
    assert WRONG
    file = tmp_path / "wrong.safetensors"
    file.write_bytes(wrong(weights[0]))
    asked = []
    nodes.on_message = asked.append
    with pytest.raises(ConfigError, match=WRONG[wrong]):
        nodes.train(upper_weights=str(file))
    assert not asked
    assert "harm" not in capsys.readouterr().out


def test_a_file_that_is_missing_is_said_before_anything_is_made(nodes, tmp_path):
    with pytest.raises(ConfigError, match="none.safetensors: cannot be read"):
        nodes.train(upper_weights=str(tmp_path / "none.safetensors"))
    assert not nodes.run_folder.path.exists()


def test_separate_uppers_are_written_each(workspace, tmp_path):
    from psl_flower.engine.pretrained import load_upper, write_uppers

    uppers = [torch.nn.Linear(2, 2) for _ in range(2)]
    write_uppers(tmp_path / "two.safetensors", uppers)
    other = torch.nn.Linear(2, 2)
    load_upper((tmp_path / "two.safetensors").read_bytes(), 1, other, "file")
    assert torch.equal(other.weight, uppers[1].weight)
    save_file({"uppers.0.weight": uppers[0].weight.detach()}, tmp_path / "part.safetensors")
    with pytest.raises(ConfigError, match="bias of Upper 0 is missing"):
        load_upper((tmp_path / "part.safetensors").read_bytes(), 0, other, "file")
