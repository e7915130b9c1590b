"""The audit: every decoder on the codes of a run's images, and on what the server knows in any case, as floors.

Shape suffixes: N images, P positions, C channels, h and w of a patch's smashed data, K classes, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from psl_flower.config.fields import Settings, setting
from psl_flower.engine.inputs import normalise
from psl_flower.errors import ConfigError
from psl_flower.leakage.attack import Pairs, divided, rebuild, train_decoder
from psl_flower.leakage.decoders import DECODERS, Sizes
from psl_flower.leakage.measures import interval, psnr, ranks, ssim
from psl_flower.leakage.report import CODES, CONSTANT, LABEL, Finding, Leakage
from psl_flower.models import PatchSplitNet
from psl_flower.patches.description import StoreSetDescription

# Fewer teach a decoder nothing.
LEAST_IMAGES = 20
# Smashed data of the auxiliary images are held in memory, float32.
_MOST_BYTES = 2**30
_BATCH = 256
# Images of the sheet.
_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSettings(Settings):
    """How hard the attacker tries, and on how many images."""

    victims: int = setting(500, "training images that the attacker rebuilds", least=2, most=10_000)
    auxiliary: int = setting(
        5000, "other training images that it has, to learn from; fewer where memory is short", least=LEAST_IMAGES
    )
    epochs: int = setting(30, "passes of a decoder over them at most", least=1)
    seed: int = setting(0, "of the victims' choice and of the decoders", least=0, most=2**32 - 1)


class Known(NamedTuple):
    """Images with their classes.

    Attributes
    ----------
    images_NCHW : torch.Tensor
        uint8.
    labels_N : ndarray
        int64.
    """

    images_NCHW: torch.Tensor
    labels_N: NDArray[np.int64]

    @classmethod
    def joined(cls, batches: Iterable[tuple[torch.Tensor, NDArray[np.int64]]]) -> Known:
        """Return the images of all batches."""
        images, labels = zip(*batches, strict=True)
        return cls(torch.cat(images), np.concatenate(labels))


def chosen_samples(
    pool_N: NDArray[np.int64], settings: AuditSettings, num_bytes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw the victims and the auxiliary images from the training images; no image is both.

    Parameters
    ----------
    pool_N : ndarray
        Samples to draw from, int64.
    settings : AuditSettings
        How many.
    num_bytes : int
        Of an image's smashed data, which bounds the auxiliary images.

    Raises
    ------
    ConfigError
        If too few images are left.
    """
    drawn = np.random.default_rng(settings.seed).permutation(pool_N)
    victims, others = drawn[: settings.victims], drawn[settings.victims :]
    others = others[: min(settings.auxiliary, max(LEAST_IMAGES, _MOST_BYTES // num_bytes))]
    if len(others) < LEAST_IMAGES:
        raise ConfigError(
            f"victims: of {len(pool_N)} training images {len(others)} are left to learn from, at least {LEAST_IMAGES} "
            f"are needed; set --victims to {max(2, len(pool_N) - LEAST_IMAGES)} or fewer"
        )
    return np.sort(victims), others


def smashed_bytes(nets: Sequence[PatchSplitNet], description: StoreSetDescription) -> int:
    """Return the bytes of an image's smashed data, of all looks together, as float32."""
    images = torch.zeros(1, description.channels, *description.image_size, dtype=torch.uint8)
    return _smash(nets, description, images).numel() * 4


class Attacked(NamedTuple):
    """What all decoders found from one kind of knowledge.

    Attributes
    ----------
    findings : tuple of Finding
        One for each decoder.
    shown_NCHW : torch.Tensor
        Images that no decoder was trained on, as the best of them makes them; pixels in 0..1.
    """

    findings: tuple[Finding, ...]
    shown_NCHW: torch.Tensor


@dataclass(frozen=True, slots=True)
class Audit:
    """Attacks on the images of one run.

    Attributes
    ----------
    description : StoreSetDescription
        Of the images.
    victims, auxiliary : Known
        Disjoint.
    settings : AuditSettings
        How hard the attacker tries.
    on_progress : callable
        Called with (what, epochs done, epochs at most).
    """

    description: StoreSetDescription
    victims: Known
    auxiliary: Known
    settings: AuditSettings
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None

    def of_codes(self, nets: Sequence[PatchSplitNet]) -> tuple[Attacked, float]:
        """Attack with what crosses the cut of these states of the network, joined; one for each look.

        Returns the findings, and the share of victims whose codes no other victim has.
        """
        given, target = (
            Pairs(_smash(nets, self.description, known.images_NCHW), known.images_NCHW.float() / 255)
            for known in (self.auxiliary, self.victims)
        )
        scaling = _Scaling.of(given.smashed_NPChw)
        return self._attack(CODES, scaling(given), scaling(target)), _unique(target.smashed_NPChw)

    def of_classes(self) -> Attacked:
        """Attack with the class alone, and with nothing: the floors."""
        given, target = (
            Pairs(_classes(known.labels_N, self.description), known.images_NCHW.float() / 255)
            for known in (self.auxiliary, self.victims)
        )
        attacked = self._attack(LABEL, given, target)
        return attacked._replace(findings=(*attacked.findings, _constant(given, target)))

    def originals(self) -> torch.Tensor:
        """Return the images that `Attacked.shown_NCHW` are made of."""
        images_NCHW = self.auxiliary.images_NCHW.float() / 255
        return divided(Pairs(images_NCHW, images_NCHW))[1].images_NCHW[:_SHOWN]

    def _attack(self, knows: str, given: Pairs, target: Pairs) -> Attacked:
        description, settings = self.description, self.settings
        sizes = Sizes(grid=description.grid(), smashed=_shape(given.smashed_NPChw), channels=description.channels)
        findings, shown = [], {}
        for name in DECODERS:
            what = f"{name} from {knows}"

            def note(epoch: int, score: float, what: str = what) -> None:
                self.on_progress(what, epoch, settings.epochs)

            trained = train_decoder(name, sizes, given, epochs=settings.epochs, seed=settings.seed, on_epoch=note)
            found = rebuild(trained.decoder, target.smashed_NPChw)
            findings.append(_finding(name, knows, found, target.images_NCHW, trained.validation_ssim, trained.epochs))
            held_back = divided(given)[1].part(slice(_SHOWN))
            shown[trained.validation_ssim] = rebuild(trained.decoder, held_back.smashed_NPChw)
        return Attacked(tuple(findings), shown[max(shown)])


def audit(
    attacks: Audit, net: PatchSplitNet, *, run: str = "", bits: int | None = None
) -> tuple[Leakage, torch.Tensor]:
    """Attack the codes of a finished network, and the floors.

    Parameters
    ----------
    attacks : Audit
        On which images.
    net : PatchSplitNet
        In eval mode.
    run : str
        Its name, for the report.
    bits : int or None
        That an image's codes take in a look; None where they are no codes.

    Returns
    -------
    Leakage, and a sheet (rows, columns, C, H, W) of pixels in 0..1: auxiliary images that no decoder was trained on, as
    they are, as the best decoder rebuilds them, and as it makes them from the class alone.
    """
    (codes, unique), classes = attacks.of_codes([net]), attacks.of_classes()
    settings, description = attacks.settings, attacks.description
    report = Leakage(
        run=run,
        dataset=description.dataset,
        victims=len(attacks.victims.labels_N),
        auxiliary=len(attacks.auxiliary.labels_N),
        auxiliary_asked=settings.auxiliary,
        epochs=settings.epochs,
        seed=settings.seed,
        looks=1,
        bits=bits,
        numbers=smashed_bytes([net], description) // 4,
        unique=unique,
        findings=(*codes.findings, *classes.findings),
    )
    return report, torch.stack([attacks.originals(), codes.shown_NCHW, classes.shown_NCHW])


class _Scaling(NamedTuple):
    """To mean 0 and deviation 1 of each channel and position, over the auxiliary images."""

    mean_PC: torch.Tensor
    std_PC: torch.Tensor

    @classmethod
    def of(cls, smashed_NPChw: torch.Tensor) -> _Scaling:
        mean_PC = smashed_NPChw.mean((0, 3, 4), keepdim=True)
        return cls(mean_PC, smashed_NPChw.std((0, 3, 4), keepdim=True).clamp_min(1e-3))

    def __call__(self, pairs: Pairs) -> Pairs:
        return pairs._replace(smashed_NPChw=(pairs.smashed_NPChw - self.mean_PC) / self.std_PC)


@torch.no_grad()
def _smash(nets: Sequence[PatchSplitNet], description: StoreSetDescription, images_NCHW: torch.Tensor) -> torch.Tensor:
    """Return the smashed data (N, P, C * looks, h, w) of images uint8."""
    parts = []
    for images in images_NCHW.split(_BATCH):
        pixels = normalise(images, description.mean, description.std, torch.device("cpu"))
        parts.append(torch.cat([net.eval().smash(pixels) for net in nets], dim=2))
    return torch.cat(parts)


def _classes(labels_N: NDArray[np.int64], description: StoreSetDescription) -> torch.Tensor:
    """Return classes (N, P, K, 1, 1) as 0 and 1, in the place of smashed data."""
    one_hot_NK = torch.nn.functional.one_hot(torch.from_numpy(labels_N), description.num_classes).float()
    return one_hot_NK[:, None, :, None, None].repeat(1, description.grid().num_patches, 1, 1, 1)


def _constant(given: Pairs, target: Pairs) -> Finding:
    mean = given.images_NCHW.mean(0, keepdim=True)
    found = mean.expand_as(target.images_NCHW)
    validation = divided(given)[1].images_NCHW
    return _finding(
        "mean image", CONSTANT, found, target.images_NCHW, float(ssim(mean.expand_as(validation), validation).mean()), 0
    )


def _finding(
    name: str, knows: str, found_NCHW: torch.Tensor, true_NCHW: torch.Tensor, validation_ssim: float, epochs: int
) -> Finding:
    rank_N = ranks(found_NCHW, true_NCHW)
    return Finding(
        attacker=name,
        knows=knows,
        ssim=interval(ssim(found_NCHW, true_NCHW).numpy()),
        psnr=interval(psnr(found_NCHW, true_NCHW).numpy()),
        median_rank=float(np.median(rank_N)),
        first=float((rank_N == 1).mean()),
        validation_ssim=validation_ssim,
        epochs=epochs,
    )


def _unique(smashed_NPChw: torch.Tensor) -> float:
    """Return the share of images whose codes no other of them has."""
    _, inverse_N, counts = smashed_NPChw.flatten(1).unique(dim=0, return_inverse=True, return_counts=True)
    return float((counts[inverse_N] == 1).float().mean())


def _shape(smashed_NPChw: torch.Tensor) -> tuple[int, int, int]:
    _, _, C, h, w = smashed_NPChw.shape
    return C, h, w
