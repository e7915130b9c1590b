"""Weights that Uppers begin with, learnt elsewhere: one safetensors file, which its SHA-256 names.

It holds tensors `uppers.M.NAME`, of every Upper or of one for all, by the names of its `state_dict`. A node takes such
weights only if its operator allowed that very file, since chosen weights can make smashed data show
the patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save
from torch import nn

from psl_flower.engine.build import Blueprint
from psl_flower.errors import ConfigError, RunError
from psl_flower.models import PatchSplitNet
from psl_flower.system.files import read_file, sha256_name, write_file
from psl_flower.text import expanded

# Name of the copy in a run's folder, and in that of each Upper on its node.
FILE = "uppers.safetensors"
MOST_BYTES = 2**31


def write_uppers(path: Path, uppers: Sequence[nn.Module]) -> str:
    """Write the weights of Uppers, once if all are equal; return the file's "sha256:..."; RunError if refused."""
    states = [{name: tensor.cpu().contiguous() for name, tensor in upper.state_dict().items()} for upper in uppers]
    if all(torch.equal(tensor, states[0][name]) for state in states for name, tensor in state.items()):
        states = states[:1]
    tensors = {f"uppers.{m}.{name}": tensor for m, state in enumerate(states) for name, tensor in state.items()}
    content = save(tensors, metadata={"format": "pt"})
    write_file(path, content, RunError, parents=True)
    return sha256_name(content)


def read_weights(path: Path, expected: str) -> bytes:
    """Return the content of the file that `expected`, its "sha256:...", names; "" stands for any file.

    Raises
    ------
    RunError
        If it cannot be read, or is another file.
    """
    content = read_file(path, RunError, limit=MOST_BYTES)
    if expected:
        check_name(content, expected, str(path))
    return content


def check_name(content: bytes, expected: str, where: str) -> None:
    """Raise RunError unless the content is that of the file that `expected` names."""
    if (found := sha256_name(content)) != expected:
        raise RunError(f"{where}: expected the Upper weights {expected}, found {found}")


def load_upper(content: bytes, m: int, model: nn.Module, where: str) -> None:
    """Put the weights of Upper m in place of the model's own.

    Raises
    ------
    ConfigError
        If they are no safetensors, or of another network.
    """
    tensors = _tensors(content, where)
    prefix = f"uppers.{m}." if any(name.startswith("uppers.1.") for name in tensors) else "uppers.0."
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    expected = model.state_dict()
    for name in sorted(found.keys() | expected.keys()):
        if _about(found, name) != _about(expected, name):
            raise ConfigError(
                f"upper-weights: {where}: {name} of Upper {m} is {_about(found, name)}, the run's network has "
                f"{_about(expected, name)}; pretrain with the settings of this network"
            )
    model.load_state_dict(found)


def started_network(blueprint: Blueprint) -> PatchSplitNet:
    """Return the whole network with the weights that all parties begin with; raises as `read_weights`, `load_upper`."""
    net, network = blueprint.network(), blueprint.config.network
    if network.upper_weights:
        path = expanded(network.upper_weights, "upper-weights")
        content = read_weights(path, network.upper_weights_hash)
        for m, upper in enumerate(net.uppers):
            load_upper(content, m, upper, str(path))
    return net


def _tensors(content: bytes, where: str) -> dict[str, torch.Tensor]:
    try:
        return read_tensors(content)
    except (SafetensorError, ValueError) as error:
        raise ConfigError(f"upper-weights: {where}: is no safetensors file: {str(error).splitlines()[0]}") from error


def _about(tensors: Mapping[str, torch.Tensor], name: str) -> str:
    if name not in tensors:
        return "missing"
    return f"{str(tensors[name].dtype).removeprefix('torch.')} {tuple(tensors[name].shape)}"
