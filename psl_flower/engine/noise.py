"""The noise on codes in a training: one draw for each code that an Upper can make, from a node's secret.

A code follows from the Upper's weights and a patch's pixels; in training also from the other patches of the batch. So
does its draw: the same code made again gets the same noise, so repeated requests average nothing away. A code that
differs by ever so little gets another draw, since the difference of two codes with the same noise would have none.

Shape suffixes: B batch, K positions of one Upper, N = B*K, C channels, h and w pixels of a patch as the network takes
it, d numbers of a patch's code.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import torch
from torch import nn

from psl_flower.config import RunConfig
from psl_flower.config.fields import flat
from psl_flower.config.network import NetworkSettings
from psl_flower.protection.noise import drawn
from psl_flower.wire.plan import Plan

# Settings of a network that make no other code of the same weights and pixels.
_NOT_OF_CODES = (
    "upper-init", "upper-weights", "upper-weights-hash", "average-every", "alpha", "adaptation-server", "preset",
)  # fmt: skip
_COUNT = "num_batches_tracked"
_STATISTICS = ("running_mean", "running_var")


@torch.no_grad()
def weights_digest(model: nn.Module, *, training: bool) -> bytes:
    """Return a digest, 32 bytes, of all that a model's outputs depend on, except its inputs.

    That is its weights, and in evaluation BatchNorm's statistics; in training it takes the batch's.
    """
    digest = hashlib.sha256()
    for name, tensor in _deciding_tensors(model, training):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update((tensor.cpu() + 0.0).contiguous().numpy().data)  # 0 and -0 are equal
    return digest.digest()


def _deciding_tensors(model: nn.Module, training: bool) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    for name, buffer in model.named_buffers():
        kind = name.rpartition(".")[2]
        if kind != _COUNT and not (training and kind in _STATISTICS):
            yield name, buffer


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeNoise:
    """The standard normal numbers of which all Uppers of a run make noise."""

    size: int  #: Numbers of a patch's code, d.
    run: bytes  #: Differs between runs that make other codes of the same weights and pixels; 32 bytes.

    def of(
        self, key: bytes, plan: Plan, weights: bytes, positions: Sequence[int], patches_NChw: torch.Tensor
    ) -> torch.Tensor:
        """Return the numbers (N, d), float32 on the CPU, for the codes of a plan's patches.

        `key` is that of the Upper's store (`psl_flower.patches.store.PatchStore.noise_key`), `weights` the
        `weights_digest` of the Upper as it is now, in the plan's mode. `patches_NChw`, float32, are what the Upper
        makes codes of: B*K, a sample's positions one after the other.
        """
        # Networks treat 0 and -0 alike, so both must hash alike.
        rows = (patches_NChw.detach().cpu() + 0.0).contiguous().numpy()
        places = [(sample, position) for sample in plan.sample_indices().tolist() for position in positions]
        records = [
            struct.pack("<qq", *place) + hashlib.sha256(row).digest() for place, row in zip(places, rows, strict=True)
        ]
        head = self.run + weights
        if plan.mode == "train":
            head += hashlib.sha256(b"".join(records)).digest()
        return torch.from_numpy(drawn(key, [head + record for record in records], self.size))


def code_noise_of(config: RunConfig) -> CodeNoise | None:
    """Return the source of the noise on a run's codes; None if it adds none."""
    protection = config.network.cut_protection
    if not protection.noise:
        return None
    network, default = flat(config.network), flat(NetworkSettings())
    # Defaults are left out, so that later versions with more settings draw the same noise.
    named = {key: value for key, value in network.items() if key not in _NOT_OF_CODES and value != default[key]}
    run = hashlib.sha256(msgspec.json.encode(named | {"autocast": config.machine.autocast}, order="sorted")).digest()
    return CodeNoise(size=protection.size, run=run)
