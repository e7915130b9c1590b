"""The trained network as one file for others: torch or ONNX, without the Adaptation Net, checked before it is written.

The torch file is a `torch.export` program (.pt2), not TorchScript: TorchScript is deprecated since torch 2.10, and a
trace would fix what Python computes from the batch's size. `torch.export.load(path).module()` needs only torch.

Either takes float32 images (B, C, H, W), pixels in 0..1, any B, and returns float32 logits (B, K); classes and sizes
are inside (`METADATA_FILE` in the torch file, metadata_props in the ONNX file).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import torch

from psl_flower.errors import ExportError, RunError
from psl_flower.inference.onnx_files import INPUT, OUTPUT, OnnxModule, to_onnx
from psl_flower.inference.trained_model import Normalised, TrainedModel
from psl_flower.patches.description import StoreSetDescription
from psl_flower.system.devices import to_device
from psl_flower.system.files import write_file
from psl_flower.system.machine import require_packages

METADATA_FILE = "model.json"
# Of the logits' scale: two libraries sum in different orders, in float32 through some twenty layers.
TOLERANCE = 1e-4
_CHECKED_BATCHES = (1, 2, 5)
# As `TrainedModel.prepare` does it with Pillow. Normalisation is part of the exported network.
_PREPROCESSING = (
    "turn upright by EXIF; convert to grey or RGB by channels; resize with antialiasing (bilinear) until image_size is "
    "covered; crop at the centre (Pillow's ImageOps.fit); divide by 255"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A written file."""

    path: Path  #: Path of the file.
    num_bytes: int
    difference: float  #: Largest absolute difference of its logits from the network's, on random images.
    relative_difference: float  #: The same, divided by the largest absolute logit.


def export_torch(trained: TrainedModel, path: Path) -> Exported:
    """Write the network as one file that plain torch loads without this project.

    Raises
    ------
    ExportError
        If the file's answers differ from the network's by more than `TOLERANCE`.
    RunError
        If the disk refuses.
    """
    _check_target(path)
    network = _on_cpu(trained)
    with torch.no_grad():
        shapes = ({0: torch.export.Dim("batch", min=1)},)
        program = torch.export.export(network, (_images(trained.description, 2),), dynamic_shapes=shapes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names files of this machine
    buffer = BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA_FILE: json.dumps(metadata_of(trained.description))})
    encoded = buffer.getvalue()
    loaded = torch.export.load(BytesIO(encoded)).module()
    return _write(path, encoded, *check_answers(str(path), trained.description, network, loaded))


def export_onnx(trained: TrainedModel, path: Path) -> Exported:
    """Write the network as one self-contained ONNX file.

    Raises
    ------
    ConfigError
        If the packages for ONNX are not installed.
    ExportError
        If ONNX has no operator for one of the network's, the file would be above ONNX's limit of 2 GB, or
        onnxruntime's answers differ from the network's by more than `TOLERANCE`.
    RunError
        If the disk refuses.
    """
    require_packages("ONNX", "onnx", "onnx", "onnxruntime", "onnxscript")
    from onnx.checker import MAXIMUM_PROTOBUF

    _check_target(path)
    network = _on_cpu(trained)
    model = to_onnx(network, (_images(trained.description, 2),), [INPUT], [OUTPUT])
    for key, value in metadata_of(trained.description).items():
        model.metadata_props.add(key=key, value=value)
    if model.ByteSize() >= MAXIMUM_PROTOBUF:
        raise ExportError(f"{path}: the network is too large for one ONNX file (2 GB); export it for torch")
    encoded = model.SerializeToString()
    session = OnnxModule(encoded, torch.get_num_threads())
    return _write(path, encoded, *check_answers(str(path), trained.description, network, session))


EXPORTERS: dict[str, tuple[str, Callable[[TrainedModel, Path], Exported]]] = {
    "torch": (".pt2", export_torch),
    "onnx": (".onnx", export_onnx),
}


@torch.no_grad()
def check_answers(
    name: str,
    description: StoreSetDescription,
    network: Callable[[torch.Tensor], torch.Tensor],
    exported: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[float, float]:
    """Compare the logits of a network and of the file made of it, on random images in batches of several sizes.

    Both return float32 logits (B, K) of float32 images (B, C, H, W), pixels in 0..1, on the CPU. Return the largest
    absolute difference, and the largest absolute logit.

    Raises
    ------
    ExportError
        If the difference is above `TOLERANCE` of the largest logit, or NaN.
    """
    differences, scales = [], []
    for batch in _CHECKED_BATCHES:
        images_BCHW = _images(description, batch)
        expected_BK = network(images_BCHW)
        differences.append((exported(images_BCHW) - expected_BK).abs().max())
        scales.append(expected_BK.abs().max())
    # torch's maximum, unlike Python's, keeps NaN, and so does this comparison.
    difference, scale = float(torch.stack(differences).max()), float(torch.stack(scales).max())
    if not difference <= TOLERANCE * scale:
        raise ExportError(
            f"{name}: not written: its logits differ by {difference:.2e} from the network's, whose largest is "
            f"{scale:.2e}; allowed is {TOLERANCE:g} of that"
        )
    return difference, scale


def metadata_of(description: StoreSetDescription) -> dict[str, str]:
    """Return the metadata of every exported file: JSON texts by name."""
    return {
        "class_names": json.dumps(description.class_names),
        "image_size": json.dumps(description.image_size),
        "channels": json.dumps(description.channels),
        "input": json.dumps("float32 (batch, channels, height, width), pixels in 0..1"),
        "preprocessing": json.dumps(_PREPROCESSING),
        "output": json.dumps("float32 logits (batch, classes)"),
    }


def _on_cpu(trained: TrainedModel) -> Normalised:
    # The torch format keeps whole storages: it warns of weights in another memory order as if they were parts of one.
    network = copy.deepcopy(Normalised(trained.net, trained.description))
    return to_device(network, "cpu", torch.contiguous_format)


def _images(description: StoreSetDescription, batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.rand(batch, description.channels, *description.image_size, generator=generator)


def _check_target(path: Path) -> None:
    """Refuse a target that cannot be written, before the work."""
    if path.is_dir():
        raise RunError(f"{path}: is a folder; name a file")
    if not path.parent.is_dir():
        raise RunError(f"{path}: cannot write: there is no folder {path.parent}")


def _write(path: Path, encoded: bytes, difference: float, scale: float) -> Exported:
    write_file(path, encoded, RunError)
    return Exported(
        path=path,
        num_bytes=len(encoded),
        difference=difference,
        relative_difference=difference / scale if scale else 0.0,
    )
