"""Pictures, networks and reports for the tests of what smashed data give away."""

import numpy as np
import torch
from msgspec import convert, to_builtins
from torch import nn

from psl_flower.leakage.images import Known
from psl_flower.leakage.report import CONSTANT, LABEL, LOGITS, AttackFinding, Leakage
from psl_flower.models import PatchSplitNet
from psl_flower.models.architectures import backbone_size
from psl_flower.patches import PatchGrid
from psl_flower.protection import Protection

GRID = PatchGrid(image_size=(16, 16), patch_size=(8, 8), stride=(8, 8))


def pictures(count, seed=0):
    """Return smooth pictures uint8 (N, 1, 16, 16) of two classes, and their classes: brighter left, or right."""
    drawn = np.random.default_rng(seed)
    labels = drawn.integers(0, 2, count)
    coarse = torch.from_numpy(drawn.random((count, 1, 4, 4)))
    smooth = nn.functional.interpolate(coarse, size=(16, 16), mode="bilinear", align_corners=True)
    light = torch.linspace(-0.5, 0.5, 16) * torch.from_numpy(labels * 2.0 - 1).reshape(-1, 1, 1, 1)
    return Known(((0.7 * smooth + 0.3 * (light + 0.5)).clamp(0, 1) * 255).to(torch.uint8), labels.astype(np.int64))


def network(protection=None, cut="stem"):
    """Return a network of random weights, in eval mode."""
    protection = protection or Protection()
    net = PatchSplitNet(
        grid=GRID, num_uppers=4, num_classes=10, in_channels=1, size=backbone_size("resnet18", 8), cut=cut,
        protection=protection, seed=0,
    )  # fmt: skip
    return net.eval()


def finding(knows, mean, first=0.0, level="", looks=1):
    """Return what an attacker found, with this mean SSIM."""
    return AttackFinding(
        attacker="dense", knows=knows, level=level, looks=looks, ssim=(mean, mean - 0.01, mean + 0.01), psnr=(1, 1, 1),
        median_rank=2, first=first, validation_ssim=mean, epochs=3,
    )  # fmt: skip


def found_by(*findings):
    """Return the report of these findings, and of floors."""
    content = {"run": "r", "dataset": "d", "victims": 9, "auxiliary": 20, "auxiliary_asked": 50, "epochs": 3, "seed": 0}
    content |= {"bits": 64, "numbers": 64, "unique": 1.0, "candidates": 11}
    floors = [finding(LABEL, 0.2), finding(CONSTANT, 0.1), finding(LOGITS, 0.3)]
    return convert(content | {"findings": to_builtins([*findings, *floors])}, Leakage)
