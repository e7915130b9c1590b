"""Noise on codes: what a draw depends on, and on what not."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch

from psl_flower.config import RunConfig
from psl_flower.engine.build import Blueprint
from psl_flower.engine.noise import CodeNoise, code_noise_of, weights_digest
from psl_flower.errors import StoreError
from psl_flower.kinds.kind import TRAINED
from psl_flower.protection import Protection
from psl_flower.protection.noise import drawn
from psl_flower.sealed.identities import Identity, Role
from psl_flower.sealed.rotate import Changes, rotate
from psl_flower.stores.plain import NOISE_FILE, PlainStore
from psl_flower.wire.plan import Plan, StepId, pack_samples
from tests.engines import settings
from tests.unit.test_plain_store import write
from tests.vectors.sealed_support import ArraySource, World

KEY = bytes(range(32))


def noise(run=bytes(32)):
    return CodeNoise(size=3, run=run)


def plan(samples, mode="look", seed=0, *, step=0, attempt=0, **options):
    return Plan(
        id=StepId(0, step, attempt), mode=mode, lr=0.0, samples=pack_samples(samples), augment_seed=seed, **options
    )


def pixels(samples, positions=(0, 1), shade=0):
    """Return the patches (B*K, C, h, w) of samples, all different."""
    values = [1000 * sample + 10 * position + shade for sample in samples for position in positions]
    return torch.tensor(values, dtype=torch.float32)[:, None, None, None].repeat(1, 1, 2, 2)


def rows(made, given, *, key=KEY, weights=bytes(32), positions=(0, 1), shade=0):
    """Return the draws of each patch of a plan, as bytes."""
    patches = pixels(given.sample_indices().tolist(), positions, shade)
    return [row.numpy().tobytes() for row in made.of(key, given, weights, positions, patches)]


def test_numbers_are_normal_and_their_rows_independent():
    found = drawn(KEY, [bytes([b]) for b in range(200)], 501)
    assert found.shape == (200, 501) and found.dtype == np.float32
    assert abs(found.mean()) < 0.01 and abs(found.std() - 1) < 0.01
    assert abs((np.abs(found) > 2).mean() - 0.0455) < 0.004
    assert np.abs(np.corrcoef(found[:20]) - np.eye(20)).max() < 0.25
    assert drawn(KEY, [b"a"], 1).shape == (1, 1)


def test_a_row_depends_on_key_and_record_alone():
    whole = drawn(KEY, [b"a", b"b", b"c"], 7)
    assert np.array_equal(drawn(KEY, [b"c", b"a"], 7), whole[[2, 0]])
    assert not np.isclose(drawn(KEY[::-1], [b"a", b"b", b"c"], 7), whole).any()
    # What all versions of this program must agree on, or runs that are resumed end in other weights.
    assert whole[0, :4].tolist() == pytest.approx([1.00164, -0.93282, 1.63548, 0.12416], abs=1e-5)


def test_a_draw_depends_on_settings_that_make_another_code_and_on_no_other():
    def run(**settings):
        made = code_noise_of(RunConfig.of(protection="code", code_noise=0.5, **settings))
        return made.run.hex()[:16]

    # What all versions must agree on, those that know more settings included.
    assert run() == "099e87ec2c082d44"
    assert run(lr=0.3, average_every=4) == run()
    assert len({run(), run(code_size=8), run(cut="layer2"), run(autocast=True)}) == 4


def test_the_same_patch_has_the_same_noise_in_any_batch():
    made = noise()
    first = rows(made, plan([3, 5, 9], seed=7))
    assert rows(made, plan([9, 3], "evaluate", seed=8, step=4, attempt=4)) == [*first[4:], *first[:2]]
    assert made.of(KEY, plan([3, 5]), bytes(32), [0, 1], pixels([3, 5])).shape == (4, 3)
    # Another shade at one position is another draw there alone, and 0 is -0.
    moved = pixels([3])
    moved[1] += 1
    again = made.of(KEY, plan([3]), bytes(32), [0, 1], moved)
    assert [again[0].numpy().tobytes(), again[1].numpy().tobytes() == first[1]] == [first[0], False]
    nothing = torch.zeros(1, 1, 2, 2)
    assert torch.equal(*(made.of(KEY, plan([3]), bytes(32), [0], sign * nothing) for sign in (1, -1)))


def test_in_training_another_batch_has_other_noise():
    made = noise()
    first, again, other = (rows(made, plan(samples, "train")) for samples in ([3, 5], [3, 5], [3, 7]))
    assert first == again
    assert not set(first) & {*other, *rows(made, plan([3, 5]))}


def test_records_positions_patches_modes_weights_runs_and_stores_share_no_draw():
    made, samples = noise(), range(50)
    seen = list(itertools.chain(
        rows(made, plan(samples, "train")),
        rows(made, plan(samples, "train"), weights=b"2" * 32),
        rows(made, plan(samples)),
        rows(made, plan(samples), weights=b"2" * 32),
        rows(made, plan(samples), positions=(2, 3)),
        rows(made, plan(samples), shade=1),
        rows(made, plan(samples), key=bytes(32)),
        rows(noise(b"1" * 32), plan(samples)),
    ))  # fmt: skip
    numbers = np.frombuffer(b"".join(seen), np.float32)
    assert len(set(seen)) == 8 * 100
    assert len(np.unique(numbers)) > 0.99 * len(numbers)


def test_a_digest_changes_with_what_codes_depend_on():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    before = copy.deepcopy(model)

    def both(of=model):
        return weights_digest(of, training=True), weights_digest(of, training=False)

    first = both()
    assert both(before) == first and first[0] != first[1]
    model(torch.randn(4, 1, 2, 2))  # moves statistics, which training does not use
    moved = both()
    assert moved[0] == first[0] and moved[1] != first[1]
    model[1].num_batches_tracked += 1
    assert both() == moved
    with torch.no_grad():
        model[0].bias[1] = torch.nextafter(model[0].bias[1], torch.tensor(9.0))
    assert not {*both()} & {*moved}
    model.load_state_dict(before.state_dict())
    assert both() == first


def test_predictions_and_longer_trainings_draw_as_the_run_did(stores_for):
    config = settings(protection="code", code_noise=0.5, cut="layer4", average_every=2)
    description = stores_for(config).description

    def run(**changes):
        return Blueprint(config.replace(**changes), description).code_noise.run

    assert run(**TRAINED) == run(rounds=7) == run(transport="flower", on_missing_node="continue") == run()
    assert run(seed=1) == run(lr=0.5) == run(flip=False, average_every=0) == run()
    assert len({run(), run(code_noise=0.6), run(cut="layer3"), run(autocast=True)}) == 4
    assert Blueprint(settings(), description).code_noise is None


@torch.no_grad()
@pytest.mark.parametrize("levels", [0, 5])
def test_noise_is_added_before_rounding_and_cannot_be_outgrown(levels):
    pair = Protection(name="code" if levels else "narrow", size=3, levels=levels or 2, noise=0.5)(4)
    assert pair.upper[3].weight is None
    maps, given = torch.randn(6, 4, 4, 4), torch.randn(6, 3)
    pair.upper.eval()
    clean, noisy = pair.upper(maps).flatten(1), pair.upper(maps, given).flatten(1)
    if levels:
        assert {round(float(value), 4) for value in noisy.unique()} <= {-1.0, -0.5, 0.0, 0.5, 1.0}
        before = pair.upper[:4](maps) + given * 0.5
        assert torch.equal(noisy, pair.upper[4](before))
    else:
        assert torch.equal(noisy, clean + given * 0.5)
    assert Protection(name="narrow", size=3)(4).upper[3].weight is not None


def test_a_plain_store_keeps_its_secret_for_its_user(tmp_path):
    place = write(tmp_path / "store")
    first, second = PlainStore(place), PlainStore(place)
    assert not (place / NOISE_FILE).exists()
    key = first.noise_key()
    assert len(key) == 32 and second.noise_key() == key == PlainStore(place).noise_key()
    assert (place / NOISE_FILE).stat().st_mode & 0o777 == 0o600
    assert PlainStore(write(tmp_path / "other")).noise_key() != key
    (place / NOISE_FILE).chmod(0o644)
    with pytest.raises(StoreError, match="may be read by others"):
        first.noise_key()
    (place / NOISE_FILE).chmod(0o600)
    (place / NOISE_FILE).write_bytes(b"short")
    with pytest.raises(StoreError, match="expected 32 bytes, found 5"):
        first.noise_key()
    first.close()
    with pytest.raises(StoreError, match="is closed"):
        first.noise_key()
    without = write(tmp_path / "without")
    (without / ".lock").mkdir()
    with pytest.raises(StoreError, match="code-noise needs a secret here, and none can be made"):
        PlainStore(without).noise_key()


def test_sealed_stores_and_their_epochs_have_keys_of_their_own(tmp_path):
    world = World(tmp_path / "out", nodes=[Identity.generate(Role.NODE, f"node{m}") for m in range(2)])
    world.seal(ArraySource(5, 2, (4, 4, 3)))

    def keys():
        return [world.open(m).noise_key() for m in range(2)]

    before = keys()
    assert keys() == before
    rotate(world.out, world.owner, world.places, Changes())
    after = keys()
    assert len({*before, *after}) == 4 and {len(key) for key in after} == {32}
    store = world.open(0)
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.noise_key()
    # Not what the manifest or the files show.
    public = b"".join(path.read_bytes() for path in world.out.rglob("*") if path.is_file())
    assert not any(key in public for key in (*before, *after))
