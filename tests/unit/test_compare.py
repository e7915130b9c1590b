"""The comparison without its trainings: methods, arguments, trials."""

import importlib.util
from dataclasses import replace

import pytest
from tiny_comparison import CHOICE, METHODS, report

from psl_flower.baselines.fedavg import FedAvgConfig
from psl_flower.config import RunConfig
from psl_flower.errors import ConfigError, GridError, RunError
from psl_flower.runs.mistakes import confusion
from simulations.compare import federated, study
from simulations.compare.__main__ import BENCHMARK
from simulations.compare.federated import federation, total_by_node
from simulations.compare.methods import plan, read_grid, read_variant, usual_grids
from simulations.progress import Progress
from tests.unit.accounts import taken
from tests.unit.tiny_pictures import make_pictures


def test_methods_of_the_usual_choice():
    assert [method.name for method in METHODS] == [
        "whole image",
        "whole image, augmented by patches",
        "2x2 patches of 8x8",
        "2x2 patches of 8x8 + Adaptation Net",
        "3x3 patches of 8x8, stride 4x4",
        "3x3 patches of 8x8, stride 4x4 + Adaptation Net",
        "FedProx, 4 clients, IID",
        "FedProx, 4 clients, Dirichlet(0.5)",
    ]
    assert METHODS[4].config == {"patch-size": "8x8", "stride": "4x4", "alpha": 0.0}
    assert METHODS[7].own["partition"] == "dirichlet"
    assert METHODS[2].group == METHODS[3].group != METHODS[4].group


def test_variants_of_patch_split_learning():
    given = parse("--methods", "whole,patch-split", "--grids", "8x8", "--variants", "flip=true+shift=2,mixup=0.2")
    methods = plan(RunConfig(), options_of(given), (16, 16))
    assert [method.name for method in methods[2:]] == [
        "2x2 patches of 8x8",
        "2x2 patches of 8x8 + Adaptation Net",
        "2x2 patches of 8x8, flip=true shift=2",
        "2x2 patches of 8x8, flip=true shift=2 + Adaptation Net",
        "2x2 patches of 8x8, mixup=0.2",
        "2x2 patches of 8x8, mixup=0.2 + Adaptation Net",
    ]
    assert methods[5].config == methods[3].config | {"flip": True, "shift": 2}
    assert methods[6].config["mixup"] == 0.2 and "mixup" not in methods[4].config
    assert methods[4].group == methods[5].group != methods[6].group
    assert read_variant("") == {}


def test_the_whole_image_may_have_settings_of_its_own():
    methods = plan(RunConfig(), options_of(parse("--methods", "whole", "--whole", "shift=4+flip=true")), (16, 16))
    assert methods[0].name == "whole image, shift=4 flip=true"
    assert methods[0].config == {"shift": 4, "flip": True} and "shift" not in methods[1].config
    with pytest.raises(ConfigError, match="'rounds' is none of"):
        options_of(parse("--whole", "rounds=4"))


def test_grids():
    assert read_grid("16x16/8x8") == ((16, 16), (8, 8))
    assert read_grid("8") == ((8, 8), (8, 8))
    assert usual_grids((32, 24)) == (((16, 12), (16, 12)), ((16, 12), (8, 6)))
    assert usual_grids((33, 33)) == (((17, 17), (17, 17)),)
    with pytest.raises(GridError, match="do not tile"):
        plan(RunConfig(), options_of(parse("--grids", "5x5")), (16, 16))


def parse(*arguments):
    return BENCHMARK.make_parser().parse_args(arguments)


def options_of(given):
    return BENCHMARK.read(given)[1]


def test_the_command_measures_the_same_again():
    words = [
        "--dataset",
        "../data/x",
        "--epochs",
        "4",
        "--alphas",
        "0,0.5",
        "--grids",
        "8x8/4x4",
        "--seeds",
        "1,2",
        "--engine",
        "one-graph",
        "--variants",
        "flip=false,cutout=4+lr=0.1",
        "--absent",
        "--max-train",
        "50",
        "--target",
        "0.5",
        "flip=true",
    ]
    given = parse(*words)
    config, options = BENCHMARK.read(given)
    asked = report(
        options=options.told(), config={k: v for k, v in config.to_mapping().items() if k not in study.DECIDED}
    )
    line = asked.command
    again = parse(*line.split()[3:])
    assert BENCHMARK.read(again) == (config, options)
    assert (config.data.max_train, config.training.flip, options.seeds) == (50, True, (1, 2))


def test_bytes_of_a_run_that_was_continued():
    """Rounds send about as much as each other, so that a count of a new process need not be a smaller one."""
    told = [(7, 0, 5, 2), (6, 0, 9, 4), (13, 3, 8, 2), (10, 6, 14, 3)]
    rows = [
        {"bytes_up": own, "bytes_up_adaptation": apart, "bytes_up_by_upper": {"0": first, "1": second}}
        for own, apart, first, second in told
    ]
    assert total_by_node(rows, "up", "upper") == {"0": 9 + 14, "1": 4 + 3}
    one_round_each = [{"bytes_down": 100, "bytes_down_by_client": {"0": 100}}] * 3
    assert total_by_node(one_round_each, "down", "client") == {"0": 300}


def test_confusion():
    assert confusion([0, 0, 1, 2], [0, 1, 1, 0], 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_a_trial_is_another_one_if_anything_that_matters_is():
    config = RunConfig()
    name = study.trial_name(METHODS[6], 0, "flwr", config)
    assert name.startswith("FedProx-4-clients-IID-seed0-")
    assert name == study.trial_name(METHODS[6], 0, "flwr", config.replace(workspace="/elsewhere", stores="plain"))
    others = [
        study.trial_name(METHODS[6], 0, "flwr", config.replace(lr=0.1)),
        study.trial_name(METHODS[6], 0, "flwr", config.replace(upper_threads=3)),
        study.trial_name(METHODS[6], 0, "in-process", config),
        study.trial_name(METHODS[6], 0, "flwr", config, absent=True),
        study.trial_name(METHODS[7], 0, "flwr", config),
    ]
    assert len({name, *others}) == 6


def test_other_cores_make_another_trial(monkeypatch):
    """Their threads add in another order, which moves an accuracy by a point or two in few steps."""
    name = study.trial_name(METHODS[6], 0, "flwr", RunConfig())
    monkeypatch.setattr(study, "usable_cores", lambda: 99)
    assert study.trial_name(METHODS[6], 0, "flwr", RunConfig()) != name


def test_averaging_takes_the_recipe_of_all(tmp_path):
    """Every setting of training proper that all methods share; the rest is the cut's, the stores' or the machine's."""
    shared = {
        "batch-size", "lr", "momentum", "weight-decay", "schedule", "flip", "shift", "cutout", "mixup",
        "label-smoothing", "seed", "autocast", "backbone", "stem", "image-size", "max-train", "max-test",
    }  # fmt: skip
    given = {"cutout": 4, "mixup": 0.2, "label-smoothing": 0.1, "flip": True}
    found = federated._settings(RunConfig.from_mapping(given), {"strategy": "fedavg"})
    assert shared <= found.keys()
    assert given.items() <= found.items()


def test_options_of_one_strategy_are_its_own():
    given = parse("--methods", "fedprox,fedadam", "--proximal-mu", "0.3", "--server-lr", "0.1", "--clients", "2")
    prox, _, adam, _ = plan(RunConfig(), options_of(given), (16, 16))
    assert (prox.own["proximal-mu"], adam.own["server-lr"]) == (0.3, 0.1)
    assert "server-lr" not in prox.own and "proximal-mu" not in adam.own
    usual, alone = options_of(parse()), FedAvgConfig(config=RunConfig())
    assert (usual.proximal_mu, usual.server_lr) == (alone.proximal_mu, alone.server_lr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dirichlet-alpha", "0"], "dirichlet-alpha: expected a number above 0"),
        (["--clients", "-3"], "clients: expected a number at least 0"),
        (["--clients", "17"], "20 training images are too few for 17 clients"),
    ],
)
def test_clients_that_cannot_be_are_refused_before_anything_is_trained(arguments, message, tmp_path, capsys):
    pytest.importorskip("flwr_datasets", reason="extra compare is not installed")
    command_line = ["--out", str(tmp_path / "out"), "--max-train", "20", "--max-test", "4", "batch-size=4"]
    assert BENCHMARK.main([*command_line, "--methods", "whole,fedavg", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "trials").exists()


def test_what_was_read_is_said_and_kept(tmp_path, capsys):
    pictures = make_pictures(tmp_path / "set")
    (pictures / "train" / "a" / "readme.txt").write_text("hello")
    config = RunConfig.of(dataset=str(pictures), patch_size=(4, 4), stride=(4, 4), rounds=1, batch_size=4)
    with Progress() as progress:
        found = study.Study(
            config, replace(CHOICE, methods=("whole",), engine="in-process"), tmp_path / "out", progress
        )
    assert found.whole.account is not None and taken(found.whole.account)["train"] == {"a": 5, "b": 4}
    assert "  left out: 1 .txt (not an image), such as train/a/readme.txt" in capsys.readouterr().err


def test_a_damaged_trial_is_named(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"method": 3}')
    with pytest.raises(RunError, match=r"x\.json.*delete it"):
        study.read_trial(path)


def test_clients_take_turns_on_the_cores():
    found = federation({"clients": 10})
    assert found["num-supernodes"] == 10
    assert found["init-args-num-cpus"] <= 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "at least 1"),
        (["--methods", "magic"], "expected some of whole"),
        (["--methods", ""], "one value or more"),
        (["--seeds", "1,1"], "none of them twice"),
        (["--seeds", "-1"], "whole number of 0 or more"),
        (["--alphas", "x"], "number of 0 or more"),
        (["--grids", "16x16/"], "patch/stride"),
        (["--engine", "ray"], "expected one of flwr, in-process, one-graph"),
        (["--variants", "seed=1"], "'seed' is none of"),
        (["--variants", "flip=maybe"], "flip"),
        (["--absent"], "goes with --engine one-graph"),
        (["--epochs", "3", "--local-epochs", "2"], "no whole number of rounds"),
        (["patch-size=8x8"], "see --grids"),
        (["grid=auto"], "see --grids"),
        (["--target", "94"], "at least 0 and at most 1, got 94"),
        (["rounds=2"], "see --epochs"),
        (["colour=red"], "unknown setting colour"),
    ],
)
def test_usage_errors_end_with_2(arguments, message, capsys, tmp_path):
    assert BENCHMARK.main(["--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_not_installed_is_said_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("flwr", "flwr_datasets") else name)
    assert BENCHMARK.main(["--out", str(tmp_path / "out")]) == 1
    assert "error: flwr_datasets, flwr: not installed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_read_ends_with_1(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="extra compare is not installed")
    assert BENCHMARK.main(["--out", str(tmp_path / "out"), "--dataset", str(tmp_path / "absent")]) == 1
    (tmp_path / "file").touch()
    assert BENCHMARK.main(["--out", str(tmp_path / "file" / "out")]) == 1
    assert capsys.readouterr().err.count("error: ") == 2
