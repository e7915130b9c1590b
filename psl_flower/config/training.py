"""Settings: steps, optimiser, schedule, augmentation, evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from psl_flower.config.fields import Settings, Size, setting, size_text
from psl_flower.errors import ConfigError

SCHEDULES = ("one-cycle", "cosine", "constant")
OPTIMIZERS = ("sgd", "adam", "adamw")
CLASS_WEIGHTS = ("none", "balanced")
NEVER = -1
# Takes the freezing of Uppers out of a run's settings.
UNFROZEN = {"freeze_uppers_after": NEVER, "looks": 0}
MONITORS = ("loss", "accuracy", "balanced-accuracy", "macro-f1")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings(Settings):
    """How the network is trained and evaluated."""

    rounds: int = setting(
        0, "Flower rounds; 0: chosen, at least 200 steps and 3 epochs in all", least=0, most=1_000_000
    )
    steps_per_round: int = setting(
        0, "training steps in a round; 0: one epoch, or chosen if rounds are", least=0, most=1_000_000_000
    )
    batch_size: int = setting(
        0, "images in a mini-batch, 2 or more; 0: 16 to 64, by the number of training images", least=0, most=65_536
    )
    lr: float = setting(0.0, "peak learning rate; 0: chosen by optimizer and batch-size", least=0)
    optimizer: str = setting("sgd", "optimiser of every party for its own weights", choices=OPTIMIZERS)
    momentum: float = setting(0.9, "momentum of SGD", least=0, most=1)
    nesterov: bool = setting(False, "Nesterov's momentum in SGD")
    weight_decay: float = setting(5e-4, "weight decay; of adamw apart from the gradient", least=0)
    clip_norm: float = setting(
        0.0, "largest L2 norm of a party's gradients, each party clips its own; 0: no clipping", least=0
    )
    upper_lr_scale: float = setting(1.0, "learning rate of the Uppers, as a multiple of lr", least=0)
    schedule: str = setting("one-cycle", "learning rate over the run", choices=SCHEDULES)
    warm_up_steps: int = setting(
        0, "steps in which the learning rate rises; 0: of one-cycle 30 % of all, else none", least=0
    )
    class_weights: str = setting(
        "none",
        "balanced: classes weigh in the loss in inverse proportion to their training images",
        choices=CLASS_WEIGHTS,
    )
    flip: bool = setting(False, "mirror images at random (all parties draw the same)")
    shift: int = setting(1, "shift images at random by up to this many pixels (all parties draw the same)", least=0)
    cutout: int = setting(0, "blank a random square of this many pixels a side in every image; 0: none", least=0)
    mixup: float = setting(0.0, "mix images in pairs with weights from Beta(mixup, mixup); 0: off", least=0)
    patch_dropout: float = setting(
        0.0, "probability that the Lower trains on a sample without one Upper's patches, below 1", least=0, most=1
    )
    freeze_uppers_after: int = setting(
        NEVER, "rounds after which the Uppers no longer change, and get no gradients; 0: from the start; -1: never",
        least=NEVER,
    )  # fmt: skip
    looks: int = setting(
        0,
        "with freeze-uppers-after: views of each training image that nodes then send once, and no more; 0: one a step",
        least=0, most=1024,
    )  # fmt: skip
    label_smoothing: float = setting(0.0, "share of a label spread over all classes, below 1", least=0, most=1)
    valid_fraction: float = setting(
        0.0, "share of the training images held back to validate on, drawn by the seed; 0: none", least=0, most=0.9
    )
    monitor: str = setting(
        "loss", "the measure by which validation images choose the step whose weights are kept", choices=MONITORS
    )
    patience: int = setting(
        0, "evaluations on the validation images without improvement that end training; 0: never", least=0
    )
    seed: int = setting(0, "seed of everything random", least=0, most=2**32 - 1)
    evaluate_every: int = setting(1, "rounds between evaluations on the test split; 0: only at the end", least=0)
    evaluate_batch_size: int = setting(256, "images in an evaluation batch", least=1, most=65_536)

    def check_shift(self, patch_size: Size) -> None:
        """Raise ConfigError if the shift is too large for patches of (height, width) pixels without a margin."""
        if self.shift >= min(patch_size):
            raise ConfigError(
                f"shift: {self.shift} pixels would empty patches of {size_text(patch_size)}; "
                f"choose 0 to {min(patch_size) - 1}, or keep a margin"
            )

    def _check(self) -> None:
        if self.batch_size == 1:
            raise ConfigError("batch-size: BatchNorm needs 2 or more images in a mini-batch, got 1; 0 chooses it")
        if self.patience and not self.valid_fraction:
            raise ConfigError(
                "patience: needs images to validate on; set valid-fraction, such as valid-fraction=0.1, or leave it out"
            )
        if self.patience and not self.evaluate_every:
            raise ConfigError("patience: with evaluate-every=0 nothing is evaluated before the end; set it to 1, say")
        if self.looks and self.freeze_uppers_after == NEVER:
            raise ConfigError(
                "looks: needs frozen Uppers; set freeze-uppers-after to a number of rounds, or leave looks out"
            )
        if self.looks and self.mixup:
            raise ConfigError(
                "looks and mixup contradict each other: nodes send single images once, so mixtures could not vary; "
                "leave one out"
            )
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ConfigError("nesterov: needs optimizer=sgd and a momentum above 0; leave nesterov out, or set those")
        if self.patch_dropout == 1:
            raise ConfigError("patch-dropout: with 1 a sample keeps one Upper's patches; choose less, such as 0.1")
        if self.label_smoothing == 1:
            raise ConfigError("label-smoothing: with 1 all classes are equally correct; choose less, such as 0.1")
