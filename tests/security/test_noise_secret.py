"""The Lower, with all that it holds, cannot tell the noise on a code; noise from the run's seed it can."""

from __future__ import annotations

import hashlib

import pytest
import torch

from psl_flower.engine.inputs import network_input
from psl_flower.engine.local import LocalExchange
from psl_flower.engine.noise import weights_digest
from psl_flower.engine.upper import UpperEngine
from psl_flower.seeds import derive
from psl_flower.wire.frames import frame_bytes
from tests.engines import Federation, settings

NOISY = {"backbone_width": 8, "protection": "narrow", "code_size": 6, "cut": "layer2", "code_noise": 1.0}
PURPOSES = ("", "noise", "code-noise", "upper", "lower", "pass", "view", "flip", "adaptation", "epoch", "augment")


class Listening(LocalExchange):
    """Keeps every message, and what each Upper answered to a plan."""

    def __init__(self, parts: Federation) -> None:
        super().__init__(parts.parties, parts.wire)
        self.messages, self.answers = [], []

    def carry(self, frames, expected, meanwhile):
        answers = super().carry(frames, expected, meanwhile)
        self.messages += [bytes(frame_bytes(frame)) for frame in (*frames.values(), *answers.values())]
        self.answers += [(frames[m].message.plan, m, frame) for m, frame in answers.items() if frame.tensors]
        return answers


class OfTheSeed(UpperEngine):
    """Takes its secret from the run's seed."""

    def __init__(self, model, store, *options):
        super().__init__(model, store, *options)
        self._noise_key = hashlib.sha256(b"0").digest()


def noise_of_first_step(parts: Federation, plan, m: int, received: torch.Tensor) -> tuple[torch.Tensor, tuple]:
    """Return what was added to the code of Upper m, by its weights, known from the seed, and the very patches.

    And all but the key that the draw depends on. No Lower has the patches: this attacker knows more.
    """
    model, store = parts.blueprint.upper(m), parts.stores.open(m)
    description, positions = parts.description, store.meta.positions
    pixels = network_input(
        store.read(plan.sample_indices()), positions, plan, parts.blueprint.augmentation(), description.mean,
        description.std,
    )  # fmt: skip
    model.train()
    given = plan, weights_digest(model, training=True), positions, pixels
    with torch.no_grad():
        return received.reshape(-1, received.shape[-1]) - model(pixels).flatten(1), given


def known_keys(parts: Federation, heard: Listening) -> set[bytes]:
    """Return all keys that can be made of what the Lower holds, in the ways that programs make them."""
    training = parts.blueprint.config.training
    numbers = [training.seed, *(plan.augment_seed for plan, _, _ in heard.answers)]
    numbers += [derive(number, purpose) for number in list(numbers) for purpose in PURPOSES]
    numbers += [derive(training.seed, purpose, n) for purpose in PURPOSES for n in range(8)]
    known = [str(number).encode() for number in numbers]
    known += [number.to_bytes(size, order) for number in numbers for size in (8, 32) for order in ("little", "big")]
    known += [parts.blueprint.encode(), parts.description.fingerprint.encode(), parts.blueprint.code_noise.run, b""]
    known += [bytes.fromhex(parts.description.fingerprint), *heard.messages]
    keys = {hashlib.sha256(item).digest() for item in known} | {
        hashlib.blake2b(item, digest_size=32).digest() for item in known
    }
    return keys | {item.ljust(32, b"\0")[:32] for item in known} | {item.rjust(32, b"\0")[-32:] for item in known}


@pytest.mark.parametrize("kept", [True, False], ids=["a secret of the store", "the run's seed"])
def test_the_lower_tries_all_that_it_holds(kept, stores_for, tmp_path):
    config = settings(**NOISY)
    parts = Federation(config, stores_for(config), tmp_path, **({} if kept else {"make_engine": OfTheSeed}))
    heard = Listening(parts)
    parts.driver.run(heard, 2, evaluate=False)
    plan, m, frame = next(answer for answer in heard.answers if answer[0].id.step == 0)
    added, given = noise_of_first_step(parts, plan, m, frame.tensors[0])
    assert 0.4 < added.std() < 2.0, "the attacker has the noise itself; now for the rest of it"
    keys, made = known_keys(parts, heard), parts.blueprint.code_noise
    assert len(keys) > 500
    found = [key for key in keys if torch.allclose(made.of(key, *given), added, atol=1e-4)]
    assert bool(found) != kept
    if kept:
        # It tries the right way: with the node's key it would find the draw.
        own = parts.stores.open(m).noise_key()
        assert torch.allclose(made.of(own, *given), added, atol=1e-4)
        assert own not in b"".join(heard.messages) + parts.blueprint.encode()


def test_two_nodes_share_no_draw(stores_for, tmp_path):
    config = settings(**NOISY)
    parts, samples = Federation(config, stores_for(config), tmp_path), [0, 1, 2, 3]
    plan = parts.driver.task.train_plan(0)
    patches = torch.zeros(len(samples), 3, 8, 8)
    drawn = [
        parts.blueprint.code_noise.of(upper._noise_key, plan, bytes(32), [0], patches)
        for upper in parts.uppers.values()
    ]
    assert len(torch.cat(drawn).unique()) == len(drawn) * len(samples) * 6
