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
from typing import cast

import torch

from psl_flower.errors import ConfigError, RunError
from psl_flower.inference.trained_model import Deployable, TrainedModel
from psl_flower.patches.description import StoreSetDescription
from psl_flower.system.files import write_atomically

METADATA_FILE = "model.json"
INPUT, OUTPUT = "images", "logits"
# Of the logits' scale: two libraries sum in different orders, in float32 through some twenty layers.
TOLERANCE = 1e-4
_CHECKED_BATCHES = (1, 2, 5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A written file.

    Attributes
    ----------
    path : Path
        Where it is.
    num_bytes : int
        Its size.
    difference : float
        Largest absolute difference of its logits from the network's, on random images.
    relative_difference : float
        The same, divided by the largest absolute logit.
    """

    path: Path
    num_bytes: int
    difference: float
    relative_difference: float


def export_torch(trained: TrainedModel, path: Path) -> Exported:
    """Write the network as one file that plain torch loads, and nothing of this project is needed for.

    Raises
    ------
    RunError
        If the file's answers differ from the network's by more than `TOLERANCE`, or the disk refuses.
    """
    _check_target(path)
    network = _on_cpu(trained)
    with torch.no_grad():
        program = torch.export.export(network, (_images(trained, 2),), dynamic_shapes=_any_batch())
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names files of this machine
    buffer = BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA_FILE: json.dumps(metadata_of(trained.description))})
    encoded = buffer.getvalue()
    loaded = torch.export.load(BytesIO(encoded)).module()
    return _write(path, encoded, *_compare(trained, network, lambda images_BCHW: loaded(images_BCHW)))


def export_onnx(trained: TrainedModel, path: Path) -> Exported:
    """Write the network as one self-contained ONNX file.

    Raises
    ------
    ConfigError
        If the packages for ONNX are not installed.
    RunError
        If onnxruntime's answers differ from the network's by more than `TOLERANCE`, the file would be above ONNX's
        limit of 2 GB, or the disk refuses.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        raise ConfigError(f"ONNX needs {error.name}, which is not installed: pip install 'psl-flower[onnx]'") from error

    _check_target(path)
    network = _on_cpu(trained)
    with torch.no_grad():
        program = torch.onnx.export(
            network,
            (_images(trained, 2),),
            dynamo=True,
            dynamic_shapes=_any_batch(),
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # names files of this machine
    for key, value in metadata_of(trained.description).items():
        model.metadata_props.add(key=key, value=value)
    if model.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF:
        raise RunError(f"{path}: the network is too large for one ONNX file (2 GB); export it for torch")
    encoded = model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(encoded, options, providers=["CPUExecutionProvider"])

    def run(images_BCHW: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: images_BCHW.numpy()})[0])

    return _write(path, encoded, *_compare(trained, network, run))


EXPORTERS: dict[str, tuple[str, Callable[[TrainedModel, Path], Exported]]] = {
    "torch": (".pt2", export_torch),
    "onnx": (".onnx", export_onnx),
}


def metadata_of(description: StoreSetDescription) -> dict[str, str]:
    """Return what is inside every exported file: JSON texts by name."""
    return {
        "class_names": json.dumps(description.class_names),
        "image_size": json.dumps(description.image_size),
        "channels": json.dumps(description.channels),
        "input": json.dumps("float32 (batch, channels, height, width), pixels in 0..1"),
        "output": json.dumps("float32 logits (batch, classes)"),
    }


def _on_cpu(trained: TrainedModel) -> Deployable:
    # The torch format keeps whole storages: it warns of weights in another memory order as if they were parts of one.
    network = copy.deepcopy(Deployable(trained)).to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return cast(Deployable, network)


def _any_batch() -> tuple[dict[int, torch.export.Dim]]:
    return ({0: torch.export.Dim("batch", min=1)},)


def _images(trained: TrainedModel, batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.rand(batch, trained.description.channels, *trained.description.image_size, generator=generator)


@torch.no_grad()
def _compare(
    trained: TrainedModel, network: Deployable, exported: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[float, float]:
    """Return the largest absolute difference of logits, and the largest absolute logit, over several batch sizes."""
    differences, scales = [], []
    for batch in _CHECKED_BATCHES:
        images_BCHW = _images(trained, batch)
        expected_BK = network(images_BCHW)
        differences.append((exported(images_BCHW) - expected_BK).abs().max())
        scales.append(expected_BK.abs().max())
    # torch's maximum, unlike Python's, keeps what is not a number.
    return float(torch.stack(differences).max()), float(torch.stack(scales).max())


def _check_target(path: Path) -> None:
    """Refuse before the work what cannot be written after it."""
    if path.is_dir():
        raise RunError(f"{path}: is a folder; name a file")
    if not path.parent.is_dir():
        raise RunError(f"{path}: cannot write: there is no folder {path.parent}")


def _write(path: Path, encoded: bytes, difference: float, scale: float) -> Exported:
    # Written this way round, an answer that is not a number is refused too.
    if not difference <= TOLERANCE * scale:
        raise RunError(
            f"{path}: not written: its logits differ by {difference:.2e} from the network's, whose largest is "
            f"{scale:.2e}; allowed is {TOLERANCE:g} of that"
        )
    try:
        write_atomically(path, encoded)
    except OSError as error:
        raise RunError(f"{path}: cannot write: {error.strerror or error}") from error
    return Exported(
        path=path,
        num_bytes=len(encoded),
        difference=difference,
        relative_difference=difference / scale if scale else 0.0,
    )
