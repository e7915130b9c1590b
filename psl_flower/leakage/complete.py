"""The complete audit of a run: all attackers on the server's side, what nodes learn, one report.

Shape suffixes: N images, C channels, H and W pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from psl_flower.leakage.audit import Attacked, Attacks
from psl_flower.leakage.gradients import LabelGuess, guess_labels
from psl_flower.leakage.joining import Seen
from psl_flower.leakage.recording import RecordedLooks
from psl_flower.leakage.replay import Replay
from psl_flower.leakage.report import Leakage, Replayed
from psl_flower.leakage.seams import Seam, match_seams
from psl_flower.leakage.smashed import smashed_bytes
from psl_flower.models import PatchSplitNet

# Records of each store among which neighbours are looked for.
_CANDIDATES = 1000


class Pictures(NamedTuple):
    """A row of the sheet."""

    title: str  #: Caption of the row.
    images_NCHW: torch.Tensor  #: Pixels in 0..1.


def audit(
    attacks: Attacks, net: PatchSplitNet, *, run: str = "", bits: int | None = None, replay: Replay | None = None
) -> tuple[Leakage, list[Pictures]]:
    """Attack the codes of a finished network, all looks of its training if they are known, and the floors.

    Parameters
    ----------
    attacks : Attacks
        On which images.
    net : PatchSplitNet
        In eval mode. Of one whose smashed data other machines made (`Attacks.received`) the Lower is used alone.
    run : str
        Its name, for the report.
    bits : int or None
        That an image's codes take in a look; None if they are no codes.
    replay : Replay or None
        What the Lower received of the victims and the auxiliary images, in this order; None: one look is attacked.

    Returns
    -------
    Leakage, and rows of auxiliary images that no decoder was trained on: as they are, as each level rebuilds them, and
    as they are made from the class alone.
    """
    (one, unique), classes = attacks.of_codes(net), attacks.of_classes()
    unpaired = attacks.of_unpaired(net)
    attacked = [("one look", one)]
    if attacks.received is None:
        attacked.append(("one look, mended by weights", attacks.of_weights(net, one)))
    if replay is not None:
        joined = all_looks(attacks, net, replay.looks, one)
        looks = joined.best.looks
        mended = attacks.of_weights(net, joined)
        mended_title = f"{looks} looks, then mended by weights and the last look"
        attacked = [(f"{looks} looks", joined), (mended_title, mended), *attacked]
    attacked.append(("one look, without queries", unpaired))
    settings, description = attacks.settings, attacks.description
    report = Leakage(
        run=run,
        dataset=attacks.dataset or description.dataset,
        victims=len(attacks.victims.labels_N),
        auxiliary=len(attacks.auxiliary.labels_N),
        auxiliary_asked=settings.auxiliary,
        candidates=attacks.num_candidates,
        epochs=settings.epochs,
        seed=settings.seed,
        bits=bits,
        numbers=smashed_bytes(net, description) // 4,
        unique=unique,
        findings=(
            *(finding for _, found in attacked for finding in found.findings), *attacks.of_logits(net).findings,
            *classes.findings,
        ),
        threads=torch.get_num_threads(),
        replayed=None if replay is None else Replayed(
            shown=replay.looks.shown, joined=replay.looks.joined, exact=replay.exact, seconds=replay.seconds
        ),
        labels=None if replay is None else _labels(attacks, replay.looks),
        seams=_seams(attacks),
    )  # fmt: skip
    shown = [Pictures(title, found.shown_NCHW) for title, found in attacked]
    return report, [
        Pictures("originals", attacks.originals()),
        *shown,
        Pictures("from the class alone", classes.shown_NCHW),
    ]


def all_looks(attacks: Attacks, net: PatchSplitNet, looks: RecordedLooks, one: Attacked) -> Attacked:
    """Attack with all looks of the training and that of the finished network, beginning with what that one showed."""
    given, target = attacks.smashed(net)
    first = len(attacks.victims.labels_N)
    victims, auxiliary = (
        Seen(
            torch.cat([looks.smashed_LNPChw[:, images], finished[None]]),
            torch.cat([looks.flipped_LN[:, images], torch.zeros(1, len(finished), dtype=torch.bool)]),
        )
        for images, finished in ((slice(first), target), (slice(first, None), given))
    )
    return attacks.of_looks(one, auxiliary, victims)


def _labels(attacks: Attacks, looks: RecordedLooks) -> LabelGuess | None:
    labels_N = np.concatenate([attacks.victims.labels_N, attacks.auxiliary.labels_N])
    own_LND = looks.smashed_LNPChw[:, :, list(looks.positions)].flatten(2)
    return guess_labels(looks.gradient_LND, own_LND, labels_N, attacks.description.num_classes)


def _seams(attacks: Attacks) -> tuple[Seam, ...]:
    images_NCHW = torch.cat([attacks.victims.images_NCHW, attacks.auxiliary.images_NCHW])[:_CANDIDATES]
    description = attacks.description
    patches_NPChw = description.grid().split(images_NCHW).numpy()
    return match_seams(description.grid(), patches_NPChw, description.assignment)
