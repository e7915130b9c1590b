"""Training in every codec of `psl_flower.wire.codecs` gives the weights of one process, wherever a tensor goes twice.

Smashed data cross a second time to an Adaptation Net elsewhere, and are stored and read again where frozen Uppers send
looks. A codec that promises too much (`Codec.keeps_values_when_joined`, `Codec.keeps_values_by_sample`) fails here.
"""

from __future__ import annotations

import pytest
import torch

from psl_flower.engine.local import LocalExchange
from psl_flower.wire import codecs
from psl_flower.wire.codecs import CODECS, FloatCodec
from tests.engines import Federation, Oracle, differences, same_predictions, settings
from tests.equivalence.frozen_parts import STEPS, Parts, frozen

BATCHES = 3
FLOAT32 = CODECS["float32"]


def trained_elsewhere(codec, stores_for, folder):
    """Return one process and the parties, trained with two Uppers and the Adaptation Net on a node."""
    config = settings(
        adaptation_server=True, uppers=2, steps_per_round=20, wire_activations=codec, wire_gradients=codec
    )
    stores = stores_for(config)
    whole, parts = Oracle(config, stores, at=(BATCHES,)), Federation(config, stores, folder)
    before = parts.snapshot()
    predictions = parts.run(stop_step=BATCHES)
    assert {name.split(".")[0] for name in differences(before, parts.snapshot())} >= {"uppers", "lower", "adaptation"}
    return whole, parts, predictions


def trained_on_looks(codec, stores_for, folder):
    """Return one process and the parties, trained with two Uppers that are frozen from the start and send one look."""
    config = frozen(looks=1, freeze_uppers_after=0, uppers=2, wire_activations=codec, wire_gradients=codec)
    stores = stores_for(config)
    whole, parts = Oracle(config, stores, at=(STEPS,)), Parts(config, stores, folder)
    report = parts.driver.run(LocalExchange(parts.parties, parts.wire), STEPS, evaluate=True)
    return whole, parts, report.predictions


TWICE = {trained_elsewhere: BATCHES, trained_on_looks: STEPS}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("train", TWICE, ids=lambda train: train.__name__)
def test_training_is_bit_equal_to_one_process(train, codec, stores_for, tmp_path):
    assert CODECS
    whole, parts, predictions = train(codec, stores_for, tmp_path)
    assert differences(whole.after[TWICE[train]], parts.snapshot()) == []
    assert parts.losses == whole.losses
    assert same_predictions(predictions, whole.predictions)


class Scaled(FloatCodec):
    """One scale and whole numbers up to 8 for a tensor; inherits the promises of `FloatCodec`, which it breaks."""

    def nbytes(self, shape):
        return 4 + FloatCodec.nbytes(self, shape)

    def encode(self, tensor):
        scale, numbers = self._scaled(tensor)
        return [*FloatCodec.encode(self, scale), *FloatCodec.encode(self, numbers)]

    def decode(self, buffer, shape, dtype=torch.float32):
        scale, content = memoryview(buffer)[:4], memoryview(buffer)[4:]
        values = FLOAT32.decode(content, shape) * FLOAT32.decode(scale, ())
        return values.to(dtype)

    def roundtrip(self, tensor):
        scale, numbers = self._scaled(tensor)
        return numbers * scale

    def _scaled(self, tensor):
        values = tensor.detach().to(torch.float32)
        scale = values.abs().amax().clamp(min=1e-30) / 8
        return scale, (values / scale).round()


@pytest.mark.parametrize("train", TWICE, ids=lambda train: train.__name__)
def test_the_comparison_notices_a_codec_that_promises_too_much(train, stores_for, tmp_path, monkeypatch):
    monkeypatch.setitem(codecs.CODECS, "float16", Scaled("float16", torch.float32))
    whole, parts, _ = train("float16", stores_for, tmp_path)
    assert differences(whole.after[TWICE[train]], parts.snapshot()) != []
