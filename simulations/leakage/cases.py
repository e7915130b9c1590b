"""The cases that are trained and attacked, with their settings, and the benchmark's options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from psl_flower.config import RunConfig, fields
from psl_flower.config.fields import setting
from psl_flower.leakage.images import AuditSettings
from psl_flower.leakage.report import QUERY, UNPAIRED, WEIGHTS
from simulations.options import one_of, seed, several
from simulations.reports import Values

_PLAIN: Values = {"wire-activations": "bfloat16", "wire-gradients": "bfloat16"}
_CODE: Values = {"cut": "layer4", "protection": "code", "wire-gradients": "float16"}
_FINE: Values = {"patch-size": "8x8"}
# What accuracy is compared with.
REFERENCE = "plain-layer1"
CASES: dict[str, Values] = {
    REFERENCE: _PLAIN,
    "plain-layer2": {**_PLAIN, "cut": "layer2"},
    "plain-layer3": {**_PLAIN, "cut": "layer3"},
    "plain-layer4": {**_PLAIN, "cut": "layer4"},
    "plain-pool": {**_PLAIN, "cut": "pool"},
    "narrow32-layer4": {**_PLAIN, "cut": "layer4", "protection": "narrow", "code-size": 32},
    "code32-layer1": {**_CODE, "cut": "layer1", "code-size": 32},
    "code32-layer2": {**_CODE, "cut": "layer2", "code-size": 32},
    "code32-layer3": {**_CODE, "cut": "layer3", "code-size": 32},
    "code32-layer4": {**_CODE, "code-size": 32},
    "code32-pool": {**_CODE, "cut": "pool", "code-size": 32},
    "code16-layer4": {**_CODE, "code-size": 16},
    "code8-layer4": {**_CODE, "code-size": 8},
    # Noise from the nodes' secrets, and gradients of a byte a number, without and with what rounding took.
    "code16-layer4-noise0.5": {**_CODE, "code-size": 16, "code-noise": 0.5},
    "code16-layer4-noise1": {**_CODE, "code-size": 16, "code-noise": 1.0},
    "code16-layer4-int8": {**_CODE, "code-size": 16, "wire-gradients": "int8"},
    "code16-layer4-int8-feedback": {**_CODE, "code-size": 16, "wire-gradients": "int8", "gradient-feedback": True},
    # As many bits, of more levels or of finer patches.
    "code16x4-layer4": {**_CODE, "code-size": 16, "code-levels": 4},
    "code8-layer4-4x4": {**_CODE, **_FINE, "code-size": 8},
    "code4-layer4-4x4": {**_CODE, **_FINE, "code-size": 4},
    # One trunk, near enough, for all positions.
    "plain-layer1-averaged": {**_PLAIN, "average-every": 8},
    "code32-layer4-averaged": {**_CODE, "code-size": 32, "average-every": 8},
    "code16-layer4-averaged": {**_CODE, "code-size": 16, "average-every": 8},
}
_EACH = (REFERENCE, "code32-layer4", "code16-layer4")


@dataclass(frozen=True, kw_only=True)
class Options(fields.Settings):
    """What is trained and attacked, and how hard."""

    dataset: str = setting("digits", "digits, a hub name or a folder, such as ../shared/data/cifar10")
    cases: tuple[str, ...] = several(_EACH, f"of {','.join(CASES)}", one_of(tuple(CASES)))
    seeds: tuple[int, ...] = several((0,), "seeds; every case is trained with each", seed)
    levels: tuple[str, ...] = several(
        (QUERY,), f"what attackers may do: {QUERY}, always, {WEIGHTS}, {UNPAIRED}", one_of((QUERY, WEIGHTS, UNPAIRED))
    )
    width: int = setting(16, "width of the backbone", least=1, most=1024)
    images: int = setting(6000, "training images", least=64)
    test_images: int = setting(2000, "test images", least=1)
    epochs: int = setting(4, "passes over the training images", least=1)
    victims: int = setting(200, "training images that are attacked", least=2, most=10_000)
    auxiliary: int = setting(2000, "other training images that the attacker has", least=20)
    decoder_epochs: int = setting(12, "passes of a decoder over them at most", least=1)

    @property
    def audit(self) -> AuditSettings:
        """How hard the attacker tries."""
        return AuditSettings(victims=self.victims, auxiliary=self.auxiliary, epochs=self.decoder_epochs)

    def config_of(self, case: str, seed: int, workspace: Path) -> RunConfig:
        """Return the settings of a case's run."""
        photographs = self.dataset != "digits"
        shared: Values = {
            "dataset": self.dataset, "seed": seed, "backbone-width": self.width, "max-train": self.images,
            "max-test": self.test_images, "rounds": self.epochs, "stores": "plain", "workspace": str(workspace),
            # As in docs/accuracy.md.
            "batch-size": 128, "lr": 0.1, "autocast": True, "flip": photographs, "shift": 2 * photographs,
        }  # fmt: skip
        return RunConfig.from_mapping(shared | CASES[case])
