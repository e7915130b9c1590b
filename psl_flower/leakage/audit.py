"""The attacks: three levels of knowledge on a run's images, and as floors what the server knows in any case.

Shape suffixes: N images, P positions, C channels, h and w of a patch's smashed data, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from psl_flower.leakage.attack import Pairs, Trained, divided, rebuild, train_decoder
from psl_flower.leakage.decoders import DECODERS, Sizes
from psl_flower.leakage.images import AuditSettings, Known
from psl_flower.leakage.joining import Seen, best_mean, scaled, train_joined
from psl_flower.leakage.known_weights import best_steps, mended
from psl_flower.leakage.measures import interval, psnr, ranks, ssim
from psl_flower.leakage.recording import side_by_side
from psl_flower.leakage.report import CODES, CONSTANT, LABEL, LOGITS, QUERY, UNPAIRED, WEIGHTS, AttackFinding
from psl_flower.leakage.smashed import Scaling, in_place_of_smashed, logits, normalised, one_hot, smash, unique_share
from psl_flower.leakage.unpaired import LabelledSmashed, substitute
from psl_flower.models import PatchSplitNet
from psl_flower.patches.description import StoreSetDescription
from psl_flower.text import OnProgress, counted

# Images among which the true one is ranked, at most.
_CANDIDATES = 1000
# Images of the sheet.
_SHOWN = 8


class Attacked(NamedTuple):
    """What all decoders found from one kind of knowledge."""

    findings: tuple[AttackFinding, ...]  #: One for each decoder.
    #: Auxiliary images that no decoder was trained on, as the best of them makes them; pixels in 0..1.
    held_back_NCHW: torch.Tensor
    victims_NCHW: torch.Tensor  #: The victims as it makes them.
    #: The decoders of one look, in the order of `DECODERS`, where they were trained for codes.
    trained: tuple[Trained, ...] = ()

    @property
    def shown_NCHW(self) -> torch.Tensor:
        """Some of the images held back."""
        return self.held_back_NCHW[:_SHOWN]

    @property
    def best(self) -> AttackFinding:
        """The best of them, by auxiliary images."""
        return max(self.findings, key=lambda found: found.validation_ssim)


@dataclass(frozen=True, slots=True)
class Attacks:
    """Attacks on the images of one run."""

    description: StoreSetDescription  #: Description of the images.
    #: Disjoint.
    victims: Known
    auxiliary: Known
    settings: AuditSettings  #: Effort of the attacker.
    on_progress: OnProgress = lambda what, done, total: None  #: Called with (what, done, at most).
    #: Smashed data (N, P, C, h, w) of the auxiliary images and of the victims, where other machines made them; by
    #: default the network does.
    received: tuple[torch.Tensor, torch.Tensor] | None = None
    dataset: str = ""  #: Name of the images if they are not the run's own.

    @property
    def num_candidates(self) -> int:
        """Images among which the true one is ranked: the victims, and auxiliary images held back from training."""
        return len(self.victims.labels_N) + len(self._distractors)

    def smashed(self, net: PatchSplitNet) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the smashed data of auxiliary images and of victims."""
        if self.received is not None:
            return self.received
        given, target = (smash([net], self.description, known.images_NCHW) for known in (self.auxiliary, self.victims))
        return given, target

    def of_codes(self, net: PatchSplitNet) -> tuple[Attacked, float]:
        """Attack with query access and what crosses the cut of this network, one look.

        Returns the findings, and the share of victims whose codes no other victim has.
        """
        smashed = self.smashed(net)
        given, target = self._pairs(*smashed)
        scaling = Scaling.of(smashed[0])
        return self._attack(CODES, scaling(given), scaling(target), level=QUERY), unique_share(smashed[1])

    def of_looks(self, one: Attacked, given: Seen, target: Seen) -> Attacked:
        """Attack with all looks at the auxiliary images, to learn from, and at the victims, as received.

        It begins with the decoders of `of_codes`, whose look is the last one.
        """
        given, target = scaled(given, target)
        apart = bool(given.flipped_LN.any() or target.flipped_LN.any())
        looks, images_NCHW = len(given.flipped_LN), self.auxiliary.pixels_NCHW
        grid = self.description.grid().with_margin(0)  # what a decoder makes are patches without one
        kept = given.part(slice(len(images_NCHW) - len(self._held_back), None))
        found = []

        def add(attacker: str, trained: Trained, held_back_NCHW: torch.Tensor, victims_NCHW: torch.Tensor) -> None:
            finding = self._finding(attacker, CODES, victims_NCHW, trained, level=QUERY, looks=looks)
            found.append(Attacked((finding,), held_back_NCHW, victims_NCHW))

        for name, alone in zip(DECODERS, one.trained, strict=True):
            mean = best_mean(alone.decoder, kept, self._held_back, grid)
            add(
                f"{name}, {mean.about}", alone._replace(validation_ssim=mean.validation_ssim),
                *(mean.of(alone.decoder, seen, grid) for seen in (kept, target)),
            )  # fmt: skip
            trained = train_joined(
                name, self._sizes(given.smashed_LNPChw[0]), alone.decoder, given, images_NCHW, apart=apart,
                epochs=self.settings.epochs, seed=self.settings.seed,
                on_epoch=self._note(f"{name} from {looks} looks of {CODES} {QUERY}"),
            )  # fmt: skip
            add(
                f"{name}, all looks read at once", trained,
                *(rebuild(trained.decoder, side_by_side(*seen, apart=apart)) for seen in (kept, target)),
            )  # fmt: skip
        best = max(found, key=lambda one: one.best.validation_ssim)
        return best._replace(findings=tuple(one.best for one in found))

    def of_unpaired(self, net: PatchSplitNet) -> Attacked:
        """Attack with one look and substitutes for the Uppers, which the attacker cannot query."""
        real = self.smashed(net)
        scaling, settings, classes = Scaling.of(torch.cat(real)), self.settings, self.description.num_classes
        of_auxiliary, of_victims = (one_hot(known.labels_N, classes) for known in (self.auxiliary, self.victims))
        made = substitute(
            net, LabelledSmashed(torch.cat(real), torch.cat([of_auxiliary, of_victims])),
            normalised(self.auxiliary.pixels_NCHW, self.description), of_auxiliary,
            epochs=settings.epochs, seed=settings.seed,
            on_epoch=lambda epoch: self.on_progress("substitute Uppers", epoch, settings.epochs),
        )  # fmt: skip
        sent = smash([made], self.description, self.auxiliary.images_NCHW)
        (given, target), shown = self._pairs(sent, real[1]), Pairs(real[0], self.auxiliary.pixels_NCHW)
        return self._attack(
            CODES, Scaling.of(sent)(given), scaling(target), level=UNPAIRED, shown=divided(scaling(shown))[1]
        )

    def of_weights(self, net: PatchSplitNet, begun: Attacked) -> Attacked:
        """Mend what a decoder made of its looks, by the finished network's weights and smashed data: one look."""
        given, target = self._pairs(*self.smashed(net))
        scaling, held_back = Scaling.of(given.smashed_NPChw), divided(given)[1]
        started, best = begun.held_back_NCHW, begun.best
        steps = best_steps(
            net, self.description, scaling, started, held_back,
            lambda done, total: self.on_progress(f"mending images of {counted(best.looks, 'look')}", done, total),
        )  # fmt: skip
        victims, shown = (
            mended(net, self.description, scaling, start, smashed, steps)
            for start, smashed in (
                (begun.victims_NCHW, target.smashed_NPChw), (begun.shown_NCHW, held_back.smashed_NPChw[:_SHOWN]),
            )
        )  # fmt: skip
        trained = Trained(torch.nn.Identity(), best.validation_ssim, best.epochs)
        name = f"{best.attacker}, mended in {steps} steps"
        finding = self._finding(name, CODES, victims, trained, level=WEIGHTS, looks=best.looks)
        return Attacked((finding,), shown, victims)

    def of_classes(self) -> Attacked:
        """Attack with the class alone, and with nothing: the floors."""
        known = (one_hot(known.labels_N, self.description.num_classes) for known in (self.auxiliary, self.victims))
        given, target = self._pairs(*(in_place_of_smashed(classes, self._num_patches) for classes in known))
        attacked = self._attack(LABEL, given, target)
        return attacked._replace(findings=(*attacked.findings, self._constant()))

    def of_logits(self, net: PatchSplitNet) -> Attacked:
        """Attack with what the finished network answers of an image, and no codes."""
        known = (logits(net, smashed) for smashed in self.smashed(net))
        given, target = self._pairs(*(in_place_of_smashed(values, self._num_patches) for values in known))
        scaling = Scaling.of(given.smashed_NPChw)
        return self._attack(LOGITS, scaling(given), scaling(target))

    def originals(self) -> torch.Tensor:
        """Return the images that `Attacked.shown_NCHW` are made of."""
        return self._held_back[:_SHOWN]

    @property
    def _num_patches(self) -> int:
        return self.description.grid().num_patches

    @property
    def _held_back(self) -> torch.Tensor:
        images_NCHW = self.auxiliary.pixels_NCHW
        return divided(Pairs(images_NCHW, images_NCHW))[1].images_NCHW

    @property
    def _distractors(self) -> torch.Tensor:
        return self._held_back[: max(0, _CANDIDATES - len(self.victims.labels_N))]

    def _pairs(self, given_NPChw: torch.Tensor, target_NPChw: torch.Tensor) -> tuple[Pairs, Pairs]:
        return Pairs(given_NPChw, self.auxiliary.pixels_NCHW), Pairs(target_NPChw, self.victims.pixels_NCHW)

    def _sizes(self, smashed_NPChw: torch.Tensor) -> Sizes:
        C, h, w = smashed_NPChw.shape[2:]
        return Sizes(grid=self.description.grid(), smashed=(C, h, w), channels=self.description.channels)

    def _note(self, what: str) -> Callable[[int, float], None]:
        return lambda epoch, score: self.on_progress(what, epoch, self.settings.epochs)

    def _attack(
        self, knows: str, given: Pairs, target: Pairs, *, level: str = "", shown: Pairs | None = None
    ) -> Attacked:
        settings, sizes = self.settings, self._sizes(given.smashed_NPChw)
        held_back, found = (shown or divided(given)[1]).smashed_NPChw, []
        for name in DECODERS:
            what = f"{name} from {knows} {level}".rstrip()
            trained = train_decoder(
                name, sizes, given, epochs=settings.epochs, seed=settings.seed, on_epoch=self._note(what)
            )
            victims = rebuild(trained.decoder, target.smashed_NPChw)
            finding = self._finding(name, knows, victims, trained, level=level)
            found.append(Attacked((finding,), rebuild(trained.decoder, held_back), victims, (trained,)))
        best = max(found, key=lambda one: one.best.validation_ssim)
        return best._replace(findings=tuple(one.best for one in found), trained=tuple(one.trained[0] for one in found))

    def _constant(self) -> AttackFinding:
        mean, held_back = self.auxiliary.pixels_NCHW.mean(0, keepdim=True), self._held_back
        score = float(ssim(mean.expand_as(held_back), held_back).mean())
        found = mean.expand_as(self.victims.images_NCHW)
        return self._finding("mean image", CONSTANT, found, Trained(torch.nn.Identity(), score, 0))

    def _finding(
        self, name: str, knows: str, found_NCHW: torch.Tensor, trained: Trained, *, level: str = "", looks: int = 1
    ) -> AttackFinding:
        true_NCHW = self.victims.pixels_NCHW
        rank_N = ranks(found_NCHW, true_NCHW, self._distractors)
        return AttackFinding(
            attacker=name,
            knows=knows,
            level=level,
            looks=looks,
            ssim=interval(ssim(found_NCHW, true_NCHW).numpy()),
            psnr=interval(psnr(found_NCHW, true_NCHW).numpy()),
            median_rank=float(np.median(rank_N)),
            first=float((rank_N == 1).mean()),
            validation_ssim=trained.validation_ssim,
            epochs=trained.epochs,
        )
