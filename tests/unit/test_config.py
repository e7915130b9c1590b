"""Settings: every wrong one refused with its kebab-case name; the app's defaults are the code's."""

import dataclasses
import tomllib

import pytest

from psl_flower.config import RunConfig, parse_size, size_text
from psl_flower.errors import ConfigError
from psl_flower.kinds import Train, kind_of, parse_settings
from tests.paths import ROOT
from tests.settings import known_settings

CONDITIONS = "max-drop=0.01 min-speed=2000"


def test_the_app_and_the_code_have_the_same_keys_and_defaults():
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    ours = known_settings()
    assert list(table) == list(ours)
    assert table == ours
    assert {key: type(value) for key, value in table.items()} == {key: type(value) for key, value in ours.items()}
    assert kind_of(table) == Train()


def test_mapping_and_back():
    config = RunConfig.of(patch_size=(8, 16), stride=(4, 8), lr=0.5, flip=True, run_name="a-1", image_size=(32, 64))
    mapping = config.to_mapping()
    assert mapping["patch-size"] == "8x16"
    assert mapping["run-name"] == "a-1"
    assert not any("_" in key for key in mapping)
    assert RunConfig.from_mapping(mapping) == config


def test_absent_keys_take_their_defaults():
    assert RunConfig.from_mapping({"lr": 1}) == RunConfig.of(lr=1.0)
    assert type(RunConfig.from_mapping({"lr": 1}).training.lr) is float


def test_settings_cannot_be_changed_but_replaced_checked():
    config = RunConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.training.lr = 1.0  # type: ignore[misc]
    assert config.replace(lr=0.5).training.lr == 0.5
    with pytest.raises(ConfigError, match="lr:"):
        config.replace(lr=-1.0)


SIZES = [("16x24", (16, 24)), ("16", (16, 16)), (16, (16, 16)), ("", (0, 0)), (" 8x8 ", (8, 8))]


@pytest.mark.parametrize(("given", "size"), SIZES)
def test_sizes(given, size):
    assert SIZES
    assert parse_size("stride", given) == size
    assert parse_size("stride", size_text(size)) == size


MISTYPED = [
    ({"batch-size": True}, "batch-size: expected a whole number, got True"),
    ({"batch-size": 32.0}, "batch-size: expected a whole number, got 32.0"),
    ({"batch-size": "32"}, "batch-size: expected a whole number, got '32'"),
    ({"lr": True}, "lr: expected a number, got True"),
    ({"lr": "0.1"}, "lr: expected a number, got '0.1'"),
    ({"flip": 1}, "flip: expected true or false, got 1"),
    ({"flip": "true"}, "flip: expected true or false, got 'true'"),
    ({"dataset": 7}, "dataset: expected a text, got 7"),
    ({"patch-size": True}, 'patch-size: expected a size such as "16x16"'),
    ({"patch-size": "8x"}, 'patch-size: expected a size such as "16x16"'),
    ({"patch-size": 8.0}, 'patch-size: expected a size such as "16x16"'),
    ({"patch-size": "8x8x8"}, 'patch-size: expected a size such as "16x16"'),
]
UNKNOWN = [
    ({"batchsize": 32}, "unknown setting batchsize; did you mean batch-size?"),
    ({"batch_size": 32}, "unknown setting batch_size; did you mean batch-size?"),
    ({"a": 1, "rouns": 2}, "unknown setting a; psl settings lists all; unknown setting rouns; did you mean rounds?"),
]
OUT_OF_RANGE = [
    ({"patch-size": "0x8"}, "patch-size: both sizes must be 1 or more, got 0x8"),
    ({"patch-size": 0}, "patch-size: both sizes must be 1 or more, got 0x0"),
    ({"image-size": "0x0"}, "image-size: both sizes must be 1 or more, got 0x0"),
    ({"image-size": -32}, "image-size: both sizes must be 1 or more, got -32x-32"),
    ({"batch-size": 1}, "batch-size: BatchNorm needs 2 or more images in a mini-batch, got 1; 0 chooses it"),
    ({"batch-size": -4}, "batch-size: expected a number at least 0 and at most 65536, got -4"),
    ({"batch-size": 65_537}, "at most 65536"),
    ({"rounds": -1}, "rounds: expected a number at least 0 and at most 1000000, got -1"),
    ({"rounds": 10**26}, "rounds: expected a number at least 0 and at most 1000000, got 1"),
    ({"steps-per-round": 10**10}, "steps-per-round: expected a number at least 0 and at most 1000000000"),
    ({"lr": -0.1}, "lr: expected a number at least 0, got -0.1"),
    ({"lr": float("nan")}, "lr: expected a number at least 0, got nan"),
    ({"lr": float("inf")}, "lr: expected a number at least 0, got inf"),
    ({"optimizer": "rmsprop"}, "optimizer: expected one of sgd, adam, adamw, got 'rmsprop'"),
    ({"optimizer": "adam", "nesterov": True}, "nesterov: needs optimizer=sgd and a momentum above 0"),
    ({"nesterov": True, "momentum": 0.0}, "nesterov: needs optimizer=sgd and a momentum above 0"),
    ({"clip-norm": -1.0}, "clip-norm: expected a number at least 0, got -1.0"),
    ({"upper-lr-scale": -1.0}, "upper-lr-scale: expected a number at least 0, got -1.0"),
    ({"warm-up-steps": -1}, "warm-up-steps: expected a number at least 0, got -1"),
    ({"class-weights": "rare"}, "class-weights: expected one of none, balanced, got 'rare'"),
    ({"valid-fraction": 0.95}, "valid-fraction: expected a number at least 0 and at most 0.9, got 0.95"),
    ({"monitor": "auc"}, "monitor: expected one of loss, accuracy, balanced-accuracy, macro-f1, got 'auc'"),
    ({"patience": 3}, "patience: needs images to validate on; set valid-fraction"),
    ({"patience": 3, "valid-fraction": 0.1, "evaluate-every": 0}, "patience: with evaluate-every=0 nothing"),
    ({"freeze-uppers-after": -2}, "freeze-uppers-after: expected a number at least -1, got -2"),
    ({"upper-weights": "f", "upper-weights-hash": "sha256:12"}, "upper-weights-hash: expected sha256: and 64"),
    ({"upper-weights-hash": "sha256:" + 64 * "0"}, "upper-weights-hash: is set, but upper-weights names no file"),
    ({"looks": -1}, "looks: expected a number at least 0 and at most 1024, got -1"),
    (
        {"looks": 1},
        "looks: needs frozen Uppers; set freeze-uppers-after to a number of rounds, or leave",
    ),
    ({"looks": 1, "freeze-uppers-after": 1, "mixup": 0.2}, "looks and mixup contradict each other: nodes send single"),
    ({"average-every": 2, "freeze-uppers-after": 0}, "average-every and freeze-uppers-after=0 contradict each other"),
    ({"adaptation-server": True, "freeze-uppers-after": 0}, "adaptation-server and freeze-uppers-after=0 contradict"),
    ({"adaptation-server": True, "adaptation-node": "013"}, "adaptation-node: expected a node's id in digits"),
    ({"momentum": 1.5}, "momentum: expected a number at least 0 and at most 1"),
    ({"weight-decay": -0.1}, "weight-decay: expected a number at least 0"),
    ({"alpha": -1.0}, "alpha: expected a number at least 0, got -1.0"),
    ({"test-fraction": 0.0}, "test-fraction: expected a number above 0 and below 1"),
    ({"test-fraction": 1.0}, "test-fraction: expected a number above 0 and below 1"),
    ({"seed": -1}, "seed: expected a number at least 0"),
    ({"seed": 2**32}, "seed: expected"),
    ({"preset": "safe"}, "preset: expected one of private, balanced, plain, got 'safe'"),
    ({"protection": "noise"}, "protection: expected one of none, narrow, code, got 'noise'"),
    ({"protection": "code", "code-size": 0}, "code-size: expected a number at least 1"),
    ({"protection": "code", "code-levels": 1}, "code-levels: expected a number at least 2 and at most 256"),
    ({"protection": "code", "code-levels": 257}, "code-levels: expected a number at least 2 and at most 256"),
    ({"protection": "code", "code-pool": 0}, "code-pool: expected a number at least 1"),
    ({"protection": "code", "code-noise": -0.5}, "code-noise: expected a number at least 0 and at most 100"),
    ({"code-noise": 0.5}, "code-noise: is set, but protection is none"),
    ({"gradient-feedback": True}, "gradient-feedback: is set, but wire-gradients=float32 rounds nothing"),
    ({"backbone-width": 0}, "backbone-width: expected a number at least 1"),
    ({"uppers": -1}, "uppers: expected a number at least 0"),
    ({"max-train": -1}, "max-train: expected"),
    ({"max-test": -1}, "max-test: expected"),
    ({"steps-per-round": -1}, "steps-per-round: expected"),
    ({"shift": -1}, "shift: expected"),
    ({"cutout": -1}, "cutout: expected"),
    ({"mixup": -0.1}, "mixup: expected a number at least 0"),
    ({"mixup": float("inf")}, "mixup: expected a number at least 0"),
    ({"patch-dropout": -0.1}, "patch-dropout: expected a number at least 0"),
    ({"patch-dropout": 1.0}, "patch-dropout: with 1 a sample keeps one Upper's patches"),
    ({"label-smoothing": -0.1}, "label-smoothing: expected a number at least 0"),
    ({"label-smoothing": 1.0}, "label-smoothing: with 1 all classes are equally correct"),
    ({"evaluate-every": -1}, "evaluate-every: expected"),
    ({"evaluate-batch-size": 0}, "evaluate-batch-size: expected"),
    ({"lower-threads": -1}, "lower-threads: expected"),
    ({"upper-threads": -1}, "upper-threads: expected"),
    ({"checkpoint-every": -1}, "checkpoint-every: expected"),
    ({"keep-checkpoints": 0}, "keep-checkpoints: expected a number at least 1 and at most 3"),
    ({"progress-every-s": -1.0}, "progress-every-s: expected"),
    ({"tracker": "tensorboard"}, "tracker: expected one of none, mlflow, wandb, got 'tensorboard'"),
    ({"tracker": "mlflow", "tracker-uri": "https://me:secret@host"}, "leave user and password out of the address"),
    ({"tracker": "wandb", "tracker-uri": "api.wandb.ai"}, "tracker-uri: expected an address such as https://"),
    ({"tracker-uri": "https://host"}, "tracker-uri goes with tracker=mlflow or tracker=wandb"),
    ({"exchange-port": 65_536}, "exchange-port: expected"),
    ({"node-timeout-s": 0.0}, "node-timeout-s: expected"),
    ({"step-timeout-s": float("inf")}, "step-timeout-s: expected"),
    ({"read-as": "files"}, "read-as: expected one of an empty text, folders, tables, got 'files'"),
    ({"class-folder": "middle"}, "class-folder: expected one of an empty text, top, leaf, got 'middle'"),
    ({"pixel-range": "0-4095"}, "pixel-range: expected dataset, or the values that become black and white"),
    ({"pixel-range": "9..9"}, "pixel-range: expected dataset"),
    ({"background": "blue"}, "background: expected white, black, grey or #rrggbb, got 'blue'"),
    ({"stores": "open"}, "stores: expected one of sealed, plain, got 'open'"),
    ({"grid": "2x2"}, "grid: expected one of an empty text, auto, got '2x2'"),
    ({"margin": -1}, "margin: expected a number at least 0, got -1"),
    ({"margin": 2, "shift": 3}, "shift: shift=3 reaches beyond the 2 pixels that the stores keep"),
    ({"fit": "crop"}, "fit: expected one of exact, pad, got 'crop'"),
    ({"assignment": "random"}, "assignment: expected one of scatter, round-robin"),
    ({"backbone": "resnet101"}, "backbone: expected one of resnet18"),
    ({"cut": "layer5"}, "cut: expected one of stem"),
    ({"margin": 9, "context": 3, "stem": "imagenet"}, "context: 3 is no multiple of 4, by which the network reduces"),
    ({"context": -1}, "context: expected a number at least 0, got -1"),
    ({"margin": 4, "context": 4}, "context: context=4 and shift=1 together reach beyond the 4 pixels"),
    ({"padding": "mirror"}, "padding: expected one of zeros, replicate, got 'mirror'"),
    ({"stem": "tiny"}, "stem: expected one of auto, cifar, imagenet"),
    ({"upper-init": "same"}, "upper-init: expected one of alike, own"),
    ({"average-every": -1}, "average-every: expected"),
    ({"schedule": "step"}, "schedule: expected one of one-cycle"),
    ({"transport": "tcp"}, "transport: expected one of auto, stream, flower"),
    ({"on-missing-node": "stop"}, "on-missing-node: expected one of wait, continue"),
    ({"wire-activations": "int4"}, "wire-activations: expected one of float32"),
    ({"wire-gradients": ""}, "wire-gradients: expected one of float32"),
    ({"device": "gpu"}, 'device: expected "auto", "cpu", "cuda" or "cuda:N", got \'gpu\''),
    ({"dataset": ""}, "dataset: expected"),
    ({"run-name": "../x"}, "run-name: expected letters"),
    ({"adaptation-server": "yes"}, "adaptation-server: expected true or false"),
    ({"resume": ".hidden"}, "resume: expected letters"),
    ({"resume": "a", "resume-rounds": -1}, "resume-rounds: expected a number at least 0"),
    ({"predict": "../x"}, "predict: expected letters"),
    ({"lighten": "../x"}, "lighten: expected letters"),
    ({"audit": "../x", "audit-images": "b"}, "audit: expected letters"),
    (
        {"audit": "a", "audit-images": "b", "audit-victims": 1},
        "audit-victims: expected 2 or more, or 0 to choose, got 1",
    ),
    ({"audit": "a", "audit-images": "b", "audit-victims": -1}, "audit-victims: expected a number at least 0"),
    ({"audit": "a", "audit-images": "b", "audit-auxiliary": 5}, "audit-auxiliary: expected a number at least 20"),
    ({"audit": "a", "audit-images": "b", "audit-epochs": 0}, "audit-epochs: expected a number at least 1"),
    ({"predict": "a", "predict-split": "all"}, "predict-split: expected one of test, train, got 'all'"),
    ({"predict": "a", "predict-without": "one"}, "predict-without: expected numbers of Uppers"),
]
CONTRADICTORY = [
    ({"stride": "4x4"}, "stride: is set, but patch-size is not"),
    ({"grid": "auto", "patch-size": "8x8"}, "grid: auto chooses patch-size and stride"),
    ({"average-every": 8, "upper-init": "own"}, "average-every and upper-init=own contradict each other"),
    ({"resume": "a", "run-name": "b"}, "resume and run-name contradict each other"),
    ({"resume": "a", "restore": "asked.psl"}, "restore and resume contradict each other"),
    ({"lighten": "a", "lighten-with": CONDITIONS, "resume": "b"}, "lighten and resume contradict each other"),
    ({"lighten": "a", "lighten-with": CONDITIONS, "predict": "b"}, "lighten and predict contradict each other"),
    ({"lighten": "a", "lighten-with": CONDITIONS, "restore": "b"}, "lighten and restore contradict each other"),
    ({"lighten": "a", "lighten-with": CONDITIONS, "run-name": "b"}, "lighten and run-name contradict each other"),
    ({"code-size": 16}, "code-size: is set, but protection is none"),
    ({"protection": "narrow", "code-levels": 4}, "code-levels: is set, but protection is narrow"),
    ({"protection": "code", "wire-activations": "int8"}, "wire-activations and protection=code contradict each other"),
    ({"exchange-cert": "a.pem"}, "exchange-cert and exchange-key belong together"),
    ({"exchange-key": "a.key"}, "exchange-cert and exchange-key belong together"),
    (
        {"exchange-plaintext-on-untrusted-network": True, "exchange-client-ca": "ca.crt"},
        "exchange-plaintext-on-untrusted-network contradicts",
    ),
    ({"stores": "plain", "keys": "."}, "keys and stores=plain contradict each other"),
    ({"stores": "plain", "owner": "owner.pub"}, "owner and stores=plain contradict each other"),
    ({"audit": "a"}, "audit-images: is needed with audit"),
    ({"audit-images": "b"}, "audit-images: is set, but audit is not"),
    ({"audit": "a", "audit-images": "b", "resume": "c"}, "audit and resume contradict each other"),
    ({"predict": "a", "resume": "b"}, "predict and resume contradict each other"),
    ({"predict": "a", "restore": "asked.psl"}, "predict and restore contradict each other"),
    ({"resume-rounds": 5}, "resume-rounds: is set, but resume is not"),
    ({"resume-anyway": True}, "resume-anyway: is set, but resume is not"),
    ({"resume-collect": True}, "resume-collect: is set, but resume is not"),
    ({"predict-split": "train"}, "predict-split: is set, but predict is not"),
    ({"predict-images": "3"}, "predict-images: is set, but predict is not"),
    ({"predict-without": "3"}, "predict-without: is set, but predict is not"),
    ({"predict-light": True}, "predict-light: is set, but predict is not"),
    ({"lighten-with": CONDITIONS}, "lighten-with: is set, but lighten is not"),
    ({"lighten-with": "max-drop=2"}, "lighten-with: is set, but lighten is not"),
    (
        {"lighten": "a", "lighten-with": "max-drop=2"},
        "lighten-with: max-drop: 2 may be meant in points or as a share",
    ),
    ({"lighten": "a"}, "lighten-with: give one condition of accuracy"),
    ({"lighten": "a", "lighten-with": "max-drop=0.1"}, "lighten-with: give one condition of speed"),
    ({"adaptation-server": True, "alpha": 0.0}, "adaptation-server: there is no Adaptation Net with alpha = 0"),
    ({"patch-size": "4x8", "shift": 4}, "shift: 4 pixels would empty patches of 4x8; choose 0 to 3"),
]


@pytest.mark.parametrize(("values", "message"), [*MISTYPED, *UNKNOWN, *OUT_OF_RANGE, *CONTRADICTORY])
def test_wrong_settings_are_refused(values, message):
    assert all((MISTYPED, UNKNOWN, OUT_OF_RANGE, CONTRADICTORY))
    with pytest.raises(ConfigError) as caught:
        kind_of(values)
    assert message in str(caught.value)


TEXTS = [
    ("lr=.5", 0.5),
    ("lr=1e-3", 1e-3),
    ("lr=nan", "lr: expected a number at least 0, got nan"),
    ("lr=much", "lr: expected a number, got 'much'"),
    ("seed=0x10", 16),
    ("seed=1_000", 1000),
    ("rounds=2.5", "rounds: expected a whole number, got '2.5'"),
    ("rounds=true", "rounds: expected a whole number, got 'true'"),
    ("flip=true", True),
    ("flip=1", "flip: expected true or false, got '1'"),
    ("dataset='my pictures'", "my pictures"),
    ("dataset=3", "3"),
]


@pytest.mark.parametrize(("word", "expected"), TEXTS)
def test_what_people_type_is_read_by_the_settings_type(word, expected):
    assert TEXTS
    values = parse_settings([word])
    if isinstance(expected, str) and ": expected" in expected:
        with pytest.raises(ConfigError) as caught:
            RunConfig.from_mapping(values)
        assert expected in str(caught.value)
        return
    (key,) = values
    found = RunConfig.from_mapping(values).value(key)
    assert (found, type(found)) == (expected, type(expected))


def test_every_bounded_setting_is_tried_above():
    tried = {key for values, _ in OUT_OF_RANGE for key in values}
    free = {"image-column", "label-column", "flip", "autocast", "collect-model", "workspace", "exchange-host"}
    free |= {"exchange-cert", "exchange-key", "exchange-client-ca", "exchange-plaintext-on-untrusted-network"}
    free |= {"exchange-advertise", "stride", "keys", "owner", "restore", "predict-images"}
    free |= {
        "allow-whole-images",
        "predict-light",
        "resume-anyway",
        "resume-collect",
        "lighten-with",
        "keys-in-open-simulation",
        "train-split",
        "test-split",
        "split-column",
        "leave-out",
    }
    assert known_settings().keys() == tried | free


STEMS = [
    ("auto", (32, 95), "cifar"),
    ("auto", (96, 32), "imagenet"),
    ("cifar", (224, 224), "cifar"),
    ("imagenet", (8, 8), "imagenet"),
]


@pytest.mark.parametrize(("stem", "image", "expected"), STEMS)
def test_stem_by_image_size(stem, image, expected):
    assert STEMS
    assert RunConfig.of(stem=stem).network.stem_for(image) == expected


def test_workspace(monkeypatch, tmp_path):
    monkeypatch.setenv("PSL_WORKSPACE", str(tmp_path / "of environment"))
    assert RunConfig().workspace_path() == tmp_path / "of environment"
    assert RunConfig.of(workspace=str(tmp_path / "own")).workspace_path() == tmp_path / "own"
    monkeypatch.delenv("PSL_WORKSPACE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunConfig().workspace_path() == tmp_path / "psl-flower"
    assert RunConfig.of(workspace="~/w").workspace_path() == tmp_path / "w"


def test_a_home_that_is_none_is_refused_in_words(tmp_path):
    for setting in ("keys", "workspace"):
        config = RunConfig.from_mapping({setting: "~no-such-user/x"})
        with pytest.raises(ConfigError, match=f"{setting}: ~no-such-user/x: Could not determine home"):
            config.keys_path() if setting == "keys" else config.workspace_path()
