"""Uppers that compute with the pixels beside their patches: seams vanish, and the map is the patch's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from psl_flower.engine.augment import Augmentation
from psl_flower.engine.build import Blueprint
from psl_flower.errors import ConfigError
from psl_flower.models import PatchSplitNet
from psl_flower.models.architectures import CUTS, STEMS, BackboneSize, reduction
from psl_flower.models.split import Upper, smashed_size
from psl_flower.patches import PatchGrid
from psl_flower.stores.prepare import prepare_stores
from tests.engines import settings
from tests.property.test_margin_property import SAMPLES

THIN = BackboneSize(depths=(1, 1, 1, 1), widths=(4, 4, 4, 4))
# (cut, stem, context, whether that is as far as a place of the map at the cut sees).
SEAMS = [
    ("layer1", "cifar", 3, True), ("layer1", "cifar", 2, False), ("layer1", "cifar", 0, False),
    ("layer2", "cifar", 6, True), ("layer2", "cifar", 4, False), ("stem", "imagenet", 8, True),
    ("layer1", "imagenet", 16, True), ("layer1", "imagenet", 0, False), ("layer3", "cifar", 12, True),
]  # fmt: skip


@pytest.mark.parametrize(("cut", "stem", "context", "far"), SEAMS)
def test_within_the_context_no_seam_is_left(cut, stem, context, far):
    """In float64: the joined maps are the whole image's, but for what is near the image's border."""
    assert SEAMS
    torch.manual_seed(0)
    size, patch = (96, 64), (48, 32)
    nets = [
        PatchSplitNet(
            grid=PatchGrid(image_size=size, patch_size=side, stride=side, margin=m),
            num_uppers=1, num_classes=3, cut=cut, stem=stem, size=THIN, seed=1,
        ).double().eval()
        for side, m in ((patch, context), (size, 0))
    ]  # fmt: skip
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    found, whole = (net.grid.tile(net.smash(images)) for net in nets)
    assert found.shape == whole.shape
    # What a place sees beyond the image's border: repeated pixels here, zeros in the whole image.
    near = 24 // reduction(cut, stem)
    inner = np.s_[:, :, near:-near, near:-near]
    assert found[inner].numel() > 0
    assert torch.allclose(found[inner], whole[inner], rtol=1e-9, atol=1e-9) == far


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("cut", CUTS)
def test_the_map_is_as_large_as_without(cut, stem):
    step = reduction(cut, stem)
    plain, wide = (Upper(cut=cut, stem=stem, size=THIN, context=c) for c in (0, 2 * step))
    shape = smashed_size(plain, (3, 24, 20))
    assert smashed_size(wide, (3, 24 + 4 * step, 20 + 4 * step)) == shape
    if cut != "pool":
        assert shape[1:] == (-(-24 // step), -(-20 // step))
    assert plain.state_dict().keys() == wide.state_dict().keys()


@pytest.mark.parametrize(
    ("cut", "stem", "context", "words"),
    [
        ("layer2", "cifar", 3, "context: 3 is no multiple of 2, .* up to cut=layer2; the nearest are 2 and 4"),
        ("pool", "imagenet", 33, "context: 33 is no multiple of 32, .*; the nearest are 32 and 64"),
        ("layer1", "imagenet", 1, "the nearest are 0 and 4"),
    ],
)
def test_a_context_between_places_of_the_map_is_refused(cut, stem, context, words):
    with pytest.raises(ConfigError, match=words):
        Upper(cut=cut, stem=stem, context=context)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"context": 1}, "context=1 and shift=1 together reach beyond the 0 pixels .* stores with margin=2 or more"),
        ({"margin": 2, "context": 2}, "reach beyond the 2 pixels .* stores with margin=3 or more"),
    ],
)
def test_a_context_that_stores_lack_is_refused_before_any_are_made(changes, words, stores_for, tmp_path):
    with pytest.raises(ConfigError, match=words):
        prepare_stores(settings(workspace=str(tmp_path), **changes))
    assert list(tmp_path.iterdir()) == []
    description = stores_for(settings(margin=changes.get("margin", 0))).description
    if "margin" not in changes:
        with pytest.raises(ConfigError, match=words):
            Blueprint(settings(**changes), description).augmentation()


@pytest.mark.parametrize("flip", [False, True])
def test_a_square_goes_on_in_the_context(flip):
    """What is blanked of the patches' context is blanked of the neighbours, where the mirrored grid puts them."""
    cut = PatchGrid(image_size=(12, 16), patch_size=(6, 8), stride=(6, 8), margin=4)
    near, far = (Augmentation(grid=cut, context=c, flip=flip, cutout=7) for c in (0, 3))
    own, wide = (drawn.blanked(range(4), 5, SAMPLES) for drawn in (near, far))
    assert np.array_equal(wide[:, :, 3:-3, 3:-3], own)
    flipped = torch.from_numpy(near.flipped(5, SAMPLES))
    whole = cut.tile(torch.from_numpy(own[:, :, None]).float(), flipped)[:, 0].bool().numpy()
    for b, turned in enumerate(flipped):
        for p, (y, x) in enumerate(cut.corners()):
            left = 16 - 8 - x if turned else x
            inside = [(i, j) for i in range(12) for j in range(14) if 0 <= y - 3 + i < 12 and 0 <= left - 3 + j < 16]
            assert all(wide[b, p, i, j] == whole[b, y - 3 + i, left - 3 + j] for i, j in inside)
