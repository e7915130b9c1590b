"""What a dishonest server tries for more draws of the noise on one code, or for two codes with the same noise."""

from __future__ import annotations

import math

import msgspec
import pytest
import torch

from psl_flower.engine.build import Blueprint
from psl_flower.engine.exchange import Down
from psl_flower.engine.noise import weights_digest
from psl_flower.engine.upper_averaging import weight_vector
from psl_flower.errors import ProtocolError, RunError
from psl_flower.wire.messages import Average, Share, Step
from psl_flower.wire.plan import pack_samples
from tests.engines import Federation, settings

NOISY = {"backbone_width": 8, "protection": "narrow", "code_size": 6, "cut": "layer2", "code_noise": 1.0}


@pytest.fixture
def parts(stores_for, tmp_path):
    config = settings(**NOISY)
    return Federation(config, stores_for(config), tmp_path)


def evaluation(parts, samples=(0, 1)):
    """Return a plan that trains nothing, of images as they are."""
    plan = next(parts.driver.task.evaluation_plans(0))
    return msgspec.structs.replace(plan, samples=pack_samples(samples))


def learn(parts, upper, steps=1, **changes):
    """Let an Upper train, on the run's own plans but for the changes; return what it sent last."""
    sent = torch.empty(0)
    for _ in range(steps):
        plan = msgspec.structs.replace(parts.driver.task.train_plan(upper.step), **changes)
        sent = upper.run(plan).tensor
        upper.handle(Down(Step(gradient_of=plan.id), torch.randn(sent.shape)))
    return sent


def saved(parts, steps=2):
    """Return an Upper that has trained and saved."""
    upper = parts.uppers[0]
    learn(parts, upper, steps)
    upper.handle(Down(Step(save=True)))
    return upper


@torch.no_grad()
def noise_on(upper, plan):
    """Return the noise (B, numbers) on what an Upper answers to a plan; its weights stay as they are."""
    before = {name: tensor.clone() for name, tensor in upper.model.state_dict().items()}
    upper.model.train(plan.mode == "train")
    clean = upper.model(upper._read(plan)).reshape(plan.num_samples, -1)
    upper.model.load_state_dict(before)
    return upper.run(plan).tensor.flatten(1) - clean


def alike(first, second):
    return torch.allclose(first, second, atol=1e-4)


def test_an_upper_said_to_be_at_another_step_draws_the_same(parts):
    """The server names the step and the checkpoint with which a stream is opened."""
    upper, plan, answers = saved(parts), evaluation(parts), []
    for step in range(2, 6):
        upper.go_to(step, 2)
        answers.append(upper.run(plan).tensor)
    assert all(torch.equal(answer, answers[0]) for answer in answers)


def test_no_step_before_that_of_the_checkpoint_is_trained_again(parts):
    """From there the server could train on for ever, and see each image as often as it likes."""
    upper = saved(parts)
    with pytest.raises(RunError, match="cannot be at step 1 with what was saved after step 2"):
        upper.go_to(1, 2)


@pytest.mark.parametrize("changes", [
    {"lr": 0.0}, {"lr": 1e-30}, {"samples": pack_samples([0, 1, 2, 3])}, {"augment_seed": 5},
], ids=["no learning", "hardly any learning", "other images", "other views"])  # fmt: skip
def test_a_training_step_is_that_of_the_settings(changes, parts):
    """Steps without learning would show an image again and again, each time in another batch with other noise."""
    upper = parts.uppers[0]
    learn(parts, upper)
    with pytest.raises(ProtocolError, match="is not the one that the run's settings make"):
        learn(parts, upper, **changes)


@pytest.mark.parametrize(
    "frozen", [{}, {"freeze_uppers_after": 0}, {"freeze_uppers_after": 0, "looks": 2}], ids=["never", "frozen", "kept"]
)
def test_a_look_is_that_of_the_settings(frozen, stores_for, tmp_path):
    """Each view has noise of its own, so views of a server's choosing would average it away."""
    config = settings(**NOISY, **{"flip": False, "shift": 0, "cutout": 3}, **frozen)
    parts = Federation(config, stores_for(config), tmp_path)
    upper, plan = parts.uppers[0], msgspec.structs.replace(evaluation(parts, [0]), mode="look")
    for seed in range(5):
        with pytest.raises(ProtocolError, match="is not the one that the run's settings make"):
            upper.run(msgspec.structs.replace(plan, augment_seed=seed))


def test_a_learning_rate_whose_last_bit_differs_is_the_same(parts):
    """The server's cosine may be of another machine."""
    upper = parts.uppers[0]
    plan = parts.driver.task.train_plan(0)
    upper.run(msgspec.structs.replace(plan, lr=math.nextafter(plan.lr, 1.0)))


def test_no_step_after_the_last_is_trained(parts):
    upper = parts.uppers[0]
    learn(parts, upper, 6)
    with pytest.raises(ProtocolError, match="the run has 6 steps"):
        learn(parts, upper)


def test_squares_that_miss_a_patch_draw_nothing_new(stores_for, tmp_path):
    config = settings(**NOISY, **{"flip": False, "shift": 0, "cutout": 3})
    parts = Federation(config, stores_for(config), tmp_path)
    upper, plan = parts.uppers[0], evaluation(parts, [0])
    seen = {}
    for seed in range(60):
        asked = msgspec.structs.replace(plan, mode="look", augment_seed=seed)
        pixels = upper._read(asked)
        seen.setdefault(pixels.numpy().tobytes(), set()).add(upper._normal(asked, pixels).numpy().tobytes())
    assert 10 < len(seen) < 45, "some squares miss the patch, or blank the same of it"
    assert {len(answers) for answers in seen.values()} == {1}


def test_statistics_that_move_leave_no_code_with_the_same_noise(parts):
    """A training batch moves BatchNorm's statistics; of two codes with the same noise the difference has none."""
    upper, plan = saved(parts), evaluation(parts)
    first = noise_on(upper, plan)
    upper.run(parts.driver.task.train_plan(2))  # the gradient never comes
    assert not alike(noise_on(upper, plan), first)
    upper.go_to(2, 2)
    assert alike(noise_on(upper, plan), first)


def test_another_batch_leaves_no_code_with_the_same_noise(stores_for, tmp_path):
    """In training a code depends on its batch. Going back to a checkpoint, a server can have an image in two of them."""
    config = settings(**NOISY, max_train=4, batch_size=2, flip=False, shift=0)
    parts = Federation(config, stores_for(config), tmp_path)
    upper, found = saved(parts), {}
    for step in range(2, 6):  # three epochs of 4 images
        upper.go_to(step, 2)
        plan = parts.driver.task.train_plan(step)
        for sample, noise in zip(plan.sample_indices().tolist(), noise_on(upper, plan), strict=True):
            found.setdefault(sample, []).append((set(plan.sample_indices().tolist()), noise))
    others = [looks for looks in found.values() if looks[0][0] != looks[1][0]]
    assert others
    assert not any(alike(first[1], second[1]) for first, second in others)


def test_runs_with_the_same_weights_draw_the_same(parts):
    """Further runs of Uppers that start from the same file would be further draws."""

    def made(**changes):
        return Blueprint(parts.config.replace(**changes), parts.description).code_noise

    assert made(seed=1) == made(lr=0.5) == made(flip=False, rounds=3) == made()
    # Of a code with more noise and one with less, of the same draw, follows the code.
    assert len({made(**changes).run for changes in ({}, {"code_noise": 0.5}, {"autocast": True})}) == 3


def test_a_digest_is_of_the_weights_as_they_are(stores_for, tmp_path):
    """It is computed once for each change; one that is missed would leave two codes with the same noise."""
    config = settings(**NOISY, average_every=2)
    parts = Federation(config, stores_for(config), tmp_path)
    upper, plan, digests = parts.uppers[0], evaluation(parts), []

    def look(changed):
        """Evaluate, and check that the digest is that of the weights, and another one if these have changed."""
        upper.run(plan)
        assert upper._digest(training=False) == weights_digest(upper.model, training=False)
        digests.append(upper._digest(training=False))
        assert len(set(digests[-2:])) == 1 + changed

    look(changed=False)
    look(changed=False)
    asked = parts.driver.task.train_plan(0)
    upper.run(asked)
    look(changed=True)  # the evaluation ends the step
    sent = upper.run(asked).tensor
    upper.handle(Down(Share(gradient_of=asked.id), torch.randn(sent.shape)))
    look(changed=True)
    mean = weight_vector(upper.model) + 1
    upper.handle(Down(Average(of=asked.id, save=True), mean))
    look(changed=True)
    averaged = digests[-1]
    learn(parts, upper)
    look(changed=True)
    upper.go_to(1)
    look(changed=True)
    assert digests[-1] == averaged
