"""The audit of what smashed data give away: a planted leak is found, and where there is none, none is reported."""

import html

import numpy as np
import pytest
import torch
from PIL import Image

from psl_flower.errors import ConfigError
from psl_flower.leakage.attack import Pairs, divided, rebuild, train_decoder
from psl_flower.leakage.audit import Attacks
from psl_flower.leakage.complete import audit
from psl_flower.leakage.decoders import DECODERS, Sizes
from psl_flower.leakage.images import AuditSettings, chosen_samples, most_looks
from psl_flower.leakage.joining import Seen
from psl_flower.leakage.measures import interval, psnr, ranks, ssim
from psl_flower.leakage.page import render, row_png
from psl_flower.leakage.report import CODES, CONSTANT, LABEL, LOGITS, QUERY, UNPAIRED, WEIGHTS
from psl_flower.leakage.smashed import normalised, smash
from psl_flower.models import PatchSplitNet
from psl_flower.models.architectures import backbone_size
from psl_flower.patches import PatchGrid
from psl_flower.patches.description import StoreSetDescription
from psl_flower.protection import Protection
from psl_flower.text import counted
from tests.engines import settings
from tests.unit.leaks import GRID, finding, found_by, network, pictures


def slow_ssim(first, second, side=7):
    """Return SSIM of two arrays (H, W) by its definition, window by window."""
    total = []
    for y in range(first.shape[0] - side + 1):
        for x in range(first.shape[1] - side + 1):
            a, b = first[y : y + side, x : x + side].ravel(), second[y : y + side, x : x + side].ravel()
            (var_a, covariance), (_, var_b) = np.cov(a, b)
            above = (2 * a.mean() * b.mean() + 1e-4) * (2 * covariance + 9e-4)
            total.append(above / ((a.mean() ** 2 + b.mean() ** 2 + 1e-4) * (var_a + var_b + 9e-4)))
    return np.mean(total)


def test_ssim_is_its_definition():
    drawn = np.random.default_rng(0)
    first = drawn.random((2, 3, 12, 10))
    second = np.clip(first + drawn.normal(0, 0.2, first.shape), 0, 1)
    found = ssim(torch.from_numpy(first), torch.from_numpy(second))
    expected = [
        np.mean([slow_ssim(a, b) for a, b in zip(*pair, strict=True)]) for pair in zip(first, second, strict=True)
    ]
    assert found.tolist() == pytest.approx(expected, abs=1e-9)
    assert 0.2 < found.mean() < 0.9
    assert ssim(torch.from_numpy(first), torch.from_numpy(first)).tolist() == pytest.approx([1, 1])


def test_small_images_have_a_smaller_window():
    a, b = torch.rand(1, 1, 4, 9), torch.rand(1, 1, 4, 9)
    assert float(ssim(a, b)) == pytest.approx(slow_ssim(a[0, 0].numpy(), b[0, 0].numpy(), side=3), abs=1e-5)


def test_psnr_by_hand():
    black, grey = torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), 0.1)
    assert psnr(black, grey).item() == pytest.approx(20, abs=1e-4)
    assert psnr(black, black).item() == pytest.approx(100)


def test_ranks_by_hand():
    true = torch.tensor([0.0, 0.5, 1.0]).reshape(3, 1, 1, 1)
    assert ranks(torch.tensor([0.1, 0.9, 0.4]).reshape(3, 1, 1, 1), true).tolist() == [1, 2, 3]
    # What tells nothing is not ranked first by luck.
    assert ranks(torch.full((3, 1, 1, 1), 0.5), torch.ones(3, 1, 1, 1)).tolist() == [3, 3, 3]
    # Images that are nobody's true one count, too.
    others = torch.tensor([0.05, 2.0]).reshape(2, 1, 1, 1)
    assert ranks(torch.tensor([0.06, 0.9, 0.4]).reshape(3, 1, 1, 1), true, others).tolist() == [2, 2, 4]


def test_an_interval_holds_the_mean_and_narrows():
    drawn = np.random.default_rng(1).normal(3, 1, 400)
    few, many = interval(drawn[:40]), interval(drawn)
    assert few.low < few.mean < few.high
    assert many.high - many.low == pytest.approx(4 * 0.05, rel=0.25)
    assert many.high - many.low < few.high - few.low
    assert interval(drawn) == many


SIZES = [
    (PatchGrid(image_size=(18, 22), patch_size=(10, 12), stride=(8, 10)), (3, 5, 6)),
    (GRID, (70, 8, 8)),
    (GRID, (4, 1, 1)),
]


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(("grid", "smashed"), SIZES)
def test_a_decoder_makes_images_of_any_smashed_data(name, grid, smashed):
    assert len(DECODERS) >= 2
    decoder = DECODERS[name](Sizes(grid=grid, smashed=smashed, channels=3))
    images = decoder(torch.randn(2, grid.num_patches, *smashed)).detach()
    assert images.shape == (2, 3, *grid.image_size)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1


@pytest.fixture(scope="module")
def description(stores_for) -> StoreSetDescription:
    return stores_for(settings()).description


HARD = AuditSettings(victims=60, auxiliary=800, epochs=12, seed=1)


@pytest.fixture(scope="module")
def attacks(description):
    return Attacks(description, pictures(60, seed=1), pictures(800, seed=2), HARD)


@pytest.fixture(scope="module")
def floors(attacks):
    return attacks.of_classes()


def test_a_planted_leak_is_found(attacks, floors):
    codes, unique = attacks.of_codes(network())
    best, floor = (max(f.ssim.mean for f in found.findings) for found in (codes, floors))
    assert best > 0.9 > 0.7 > floor
    assert max(f.first for f in codes.findings) > 0.9
    assert unique == 1


class Silent(PatchSplitNet):
    """Sends the same of every image."""

    def smash(self, images_BCHW, normal):
        return torch.ones(len(images_BCHW), 4, 5, 1, 1)


def test_a_network_that_says_nothing_is_at_the_floor(attacks, floors):
    silent = Silent(grid=GRID, num_uppers=4, num_classes=10, in_channels=1, size=backbone_size("resnet18", 8))
    codes, unique = attacks.of_codes(silent)
    constant = next(f for f in floors.findings if f.knows == CONSTANT)
    assert max(f.ssim.mean for f in codes.findings) <= constant.ssim.mean + 0.05
    assert max(f.first for f in codes.findings) <= 0.1
    assert unique == 0


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_of_shuffled_codes_is_at_the_floor(name, attacks, floors):
    known = attacks.auxiliary
    with torch.no_grad():
        smashed = network().smash(known.images_NCHW.float() / 255)
    shuffled = Pairs(
        smashed[torch.randperm(len(smashed), generator=torch.Generator().manual_seed(0))], known.images_NCHW / 255
    )
    sizes = Sizes(grid=GRID, smashed=tuple(smashed.shape[2:]), channels=1)
    trained = train_decoder(name, sizes, shuffled, epochs=4, seed=0)
    victims = attacks.victims.images_NCHW.float() / 255
    with torch.no_grad():
        found = rebuild(trained.decoder, network().smash(victims))
    constant = next(f for f in floors.findings if f.knows == CONSTANT)
    assert float(ssim(found, victims).mean()) <= constant.ssim.mean + 0.05


def test_codes_are_attacked_with_the_noise_that_nodes_add(description):
    known = pictures(300, seed=5)
    noisy = network(Protection(name="narrow", size=6, noise=0.5))
    sent = smash([noisy, noisy], description, known.images_NCHW)
    assert sent.shape == (300, 4, 12, 1, 1)
    with torch.no_grad():
        clean = noisy.smash(normalised(known.pixels_NCHW, description))
    added = [part - clean for part in sent.split(6, dim=2)]
    # New for each image and look, and as large as the nodes make it.
    assert len(torch.cat(added).unique()) > 0.99 * 2 * clean.numel()
    assert all(abs(float(part.std()) - 0.5) < 0.02 for part in added)
    assert torch.equal(smash([noisy, noisy], description, known.images_NCHW), sent)


def test_looks_add_up(attacks):
    """Two signs of each patch show less than those of four networks together."""

    def net(seed):
        protection = Protection(name="code", size=2, levels=2)
        return PatchSplitNet(
            grid=GRID, num_uppers=4, num_classes=10, in_channels=1, size=backbone_size("resnet18", 8), cut="stem",
            protection=protection, seed=seed,
        ).eval()  # fmt: skip

    few = Attacks(attacks.description, pictures(40, 3), pictures(500, 4), AuditSettings(victims=40, epochs=8))
    nets = [net(k) for k in range(4)]
    one, _ = few.of_codes(nets[-1])
    given, target = (torch.stack(sent) for sent in zip(*(few.smashed(each) for each in nets), strict=True))
    together = few.of_looks(
        one, *(Seen(sent, torch.zeros(4, sent.shape[1], dtype=torch.bool)) for sent in (given, target))
    )
    assert max(f.ssim.mean for f in together.findings) > max(f.ssim.mean for f in one.findings) + 0.03


def test_victims_have_no_part_in_training_and_stopping():
    pairs = Pairs(torch.arange(100.0).reshape(100, 1, 1, 1, 1), torch.zeros(100, 1, 8, 8))
    training, validation = divided(pairs)
    assert training.smashed_NPChw.flatten().tolist() == list(range(90))
    assert validation.smashed_NPChw.flatten().tolist() == list(range(90, 100))


def test_victims_and_auxiliary_images_are_disjoint():
    pool = np.arange(200, 300)
    victims, others = chosen_samples(pool, AuditSettings(victims=30, auxiliary=50, seed=3), 8)
    assert (len(victims), len(others)) == (30, 50)
    assert not set(victims) & set(others)
    assert set(victims) | set(others) <= set(pool)
    # Smashed data of 100 MiB an image leave room for the fewest.
    assert len(chosen_samples(pool, AuditSettings(victims=30), 2**27)[1]) == 20
    with pytest.raises(ConfigError, match="victims: of 100 training images 5 are left to learn from.*80 or fewer"):
        chosen_samples(pool, AuditSettings(victims=95), 8)


def test_memory_bounds_the_looks():
    assert most_looks(AuditSettings(looks=7), 1000, 256) == 7
    assert most_looks(AuditSettings(looks=7), 1000, 2**18) == 2
    assert most_looks(AuditSettings(looks=7), 1000, 2**30) == 1
    assert most_looks(AuditSettings(looks=0), 1000, 256) == 0


VERDICTS = [
    (0.95, 0.9, "Images can be rebuilt from what the server receives (SSIM 0.95"),
    (0.40, 0.0, "What the server receives shows more of an image than its class"),
    (0.22, 0.5, "What the server receives shows more of an image than its class"),
    (0.22, 0.0, "These attackers rebuild no more"),
]


@pytest.mark.parametrize(("similarity", "first", "verdict"), VERDICTS)
def test_the_verdict_in_words(similarity, first, verdict):
    report = found_by(finding(CODES, similarity, first, QUERY))
    assert report.verdict.startswith(verdict)
    assert "knowing class alone 0.20" in report.verdict
    assert len(report.rows()) == 5
    assert report.lines()[0] == report.verdict
    assert report.lines()[1] == report.reduced  # 3 passes, and as many images as there are
    assert (
        report.reduced
        == "A reduced audit: its attackers had at most 3 passes in place of 30. A full one may find more."
    )
    assert "20 other training images (of 50 asked)" in report.lines()[2]
    assert "One look, that of the finished network, was attacked" in report.lines()[3]
    # As of a report from before the number was kept.
    assert report.threads is None and "computed with" not in " ".join(report.lines())


def test_all_looks_and_the_strongest_level_come_first():
    report = found_by(
        finding(CODES, 0.3, 0, QUERY), finding(CODES, 0.25, 0, UNPAIRED), finding(CODES, 0.35, 0, WEIGHTS),
        finding(CODES, 0.4, 0, QUERY, 5), finding(CODES, 0.5, 0.1, WEIGHTS, 5),
    )  # fmt: skip
    assert "class (with 5 looks: SSIM 0.50, 10% nearest to the true image; one look: SSIM 0.35" in report.verdict
    assert "too weakly" not in report.verdict
    # Who has five looks may use one of them.
    report = found_by(finding(CODES, 0.8, 0, QUERY), finding(CODES, 0.2, 0, QUERY, 5))
    assert report.verdict.startswith("Images can be rebuilt from what the server receives (with 5 looks: SSIM 0.80")
    # But then the decoders of five were trained too weakly, and that is said.
    assert report.verdict.endswith(
        "The decoders that join 5 looks did worse than those of one (SSIM 0.20, not 0.80): they were trained too weakly, "
        "so more looks may show more than was measured."
    )


def test_report_and_page(attacks):
    small = Attacks(
        attacks.description, pictures(8, 5), pictures(40, 6), AuditSettings(victims=8, auxiliary=40, epochs=1)
    )
    report, shown = audit(small, network(Protection(name="code", size=4), "layer1"), run="<a>", bits=16)
    assert {(f.knows, f.level) for f in report.findings} == {
        (CODES, QUERY), (CODES, UNPAIRED), (CODES, WEIGHTS), (LOGITS, ""), (LABEL, ""), (CONSTANT, ""),
    }  # fmt: skip
    assert len(report.findings) == 4 * len(DECODERS) + 2
    # The last tenth of the auxiliary images are candidates, too.
    assert (report.numbers, report.bits, report.candidates) == (16, 16, 8 + 4)
    assert (report.replayed, report.labels) == (None, None)
    assert report.threads == torch.get_num_threads()
    assert f"The decoders computed with {counted(report.threads, 'thread')}" in " ".join(report.lines())
    assert [seam.records for seam in report.seams] == [48] * 4
    assert [title for title, _ in shown] == [
        "originals", "one look", "one look, mended by weights", "one look, without queries", "from the class alone",
    ]  # fmt: skip
    assert all(images.shape == (4, 1, 16, 16) for _, images in shown)
    page = html.unescape(render(report, shown))
    assert page.count("data:image/png;base64,") == len(shown)
    assert "<h1>What run &lt;a&gt; gives away</h1>" in render(report, shown)
    assert all(line in page for line in report.lines())


def test_a_row_of_pictures():
    images = torch.rand(3, 1, 8, 10)
    from io import BytesIO

    picture = Image.open(BytesIO(row_png(images, zoom=2)))
    assert picture.size == (3 * 10 * 2, 8 * 2)
    assert np.abs(np.asarray(picture)[::2, ::2][:, 10:20] / 255 - images[1, 0].numpy()).max() < 0.01
