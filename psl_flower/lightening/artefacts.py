"""The files of a light model: every Upper and the Lower as int8 ONNX, and the whole network joined from them.

    upper-000.onnx ...   float32 patches (N, C, h, w), pixels in 0..1 -> float32 smashed data (N, C', h', w')
    lower.onnx           float32 smashed data (B, P, C', h', w') -> float32 logits (B, K)
    model.onnx           float32 images (B, C, H, W), pixels in 0..1 -> float32 logits (B, K)

torch.onnx exports, onnxruntime's static quantisation makes int8 of it (weights for each output channel, activations
calibrated on training images), and `onnx.compose` joins the parts, so the whole answers exactly as its parts do. Uppers
differ in their weights alone, so one of them is exported and given the others' weights.

Shape suffixes: B batch, N patches of one Upper (B*K), P patches, C channels, H and W pixels of an image, h and w of a
patch.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch

from psl_flower.errors import RunError
from psl_flower.inference.export import check_answers, metadata_of
from psl_flower.inference.onnx_files import INPUT, OUTPUT, OnnxModule, open_session, quiet, runtime_errors, to_onnx
from psl_flower.inference.trained_model import Normalised
from psl_flower.lightening.judging import PATCHES, SMASHED
from psl_flower.lightening.parts import Cut, Join
from psl_flower.models import PatchSplitNet
from psl_flower.models.split import Upper
from psl_flower.patches import PatchGrid
from psl_flower.patches.description import StoreSetDescription
from psl_flower.system.devices import to_device
from psl_flower.system.files import write_file
from psl_flower.system.machine import require_packages

if TYPE_CHECKING:
    import onnx

WHOLE_FILE, LOWER_FILE = "model.onnx", "lower.onnx"
_CALIBRATION_BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefacts:
    """A network as ONNX models."""

    uppers: tuple[onnx.ModelProto, ...]  #: Models by Upper.
    lower: onnx.ModelProto  #: The Lower.
    #: Graphs before the Uppers, and between them and the Lower; without weights.
    cut: onnx.ModelProto
    join: onnx.ModelProto
    whole: onnx.ModelProto  #: The whole network.

    def save(self, folder: Path) -> Path:
        """Write all files, the whole network last; makes the folder and returns the whole network's path.

        Raises
        ------
        RunError
            If the disk refuses.
        """
        files = {upper_file(m): model for m, model in enumerate(self.uppers)}
        files |= {LOWER_FILE: self.lower, WHOLE_FILE: self.whole}
        for name, model in files.items():
            write_file(folder / name, model.SerializeToString(), RunError, parents=True)
        return folder / WHOLE_FILE


def upper_file(upper: int) -> str:
    """Return the name of an Upper's file."""
    return f"upper-{upper:03d}.onnx"


def check_packages() -> None:
    """Raise ConfigError unless the packages that lightening needs are installed."""
    require_packages("lightening", "lighten", "matplotlib", "onnx", "onnxruntime", "onnxscript")


def make_float(net: PatchSplitNet, description: StoreSetDescription) -> Artefacts:
    """Return a folded network (`quantising.folded`) as ONNX in float32, checked against the network.

    Raises
    ------
    ExportError
        If ONNX has no operator for one of the network's, or the answers of onnxruntime differ.
    """
    net = to_device(copy.deepcopy(net), "cpu", torch.contiguous_format).requires_grad_(False)
    C, (h, w) = description.channels, net.grid.field_size
    first = cast(Upper, net.uppers[0])
    patches_NChw = torch.rand(3, C, h, w, generator=torch.Generator().manual_seed(0))
    smashed_NChw = first(patches_NChw)
    template = to_onnx(Normalised(_scrambled(first), description), (patches_NChw,), [PATCHES], [SMASHED])
    smashed_BPChw = torch.stack([smashed_NChw] * len(net.assignment), 1)
    lower = to_onnx(net.lower, (smashed_BPChw,), [SMASHED], [OUTPUT])
    uppers = tuple(
        _with_weights(template, {f"net.{name}": tensor for name, tensor in upper.state_dict().items()})
        for upper in net.uppers
    )
    made = _joined(description, uppers, lower, *_cut_and_join(description, net.grid, smashed_NChw.shape[1:]))
    _check(net, description, made.whole)
    return made


class QuantisedUpper(NamedTuple):
    """An Upper in int8, and what the Lower's calibration needs of it."""

    model: onnx.ModelProto  #: The Upper in int8.
    #: Smashed data of the patches that it was calibrated on, as the Upper in float32 answers.
    smashed_NChw: torch.Tensor


def quantise_upper(upper: onnx.ModelProto, patches_NChw: torch.Tensor, bits: int) -> QuantisedUpper:
    """Return an Upper in int8, calibrated on its own patches, uint8; `bits` and errors as in `make_int8`."""
    pixels_NChw = patches_NChw.float() / 255
    session = open_session(upper.SerializeToString(), torch.get_num_threads())
    maps = [session.run([SMASHED], {PATCHES: part.numpy()})[0] for part in torch.split(pixels_NChw, _CALIBRATION_BATCH)]
    smashed_NChw = torch.cat([torch.from_numpy(part) for part in maps])
    return QuantisedUpper(_quantised(upper, PATCHES, pixels_NChw, bits), smashed_NChw)


def make_int8(description: StoreSetDescription, made: Artefacts, images_BCHW: torch.Tensor, bits: int) -> Artefacts:
    """Return the same network in int8, calibrated on training images, uint8 (B, C, H, W).

    `made` is the network in float32; weights have 7 or 8 `bits` (`settings.LARGEST_WEIGHT`).

    Raises
    ------
    ExportError
        If the runtime cannot quantise or load an operator.
    """
    cut = open_session(made.cut.SerializeToString(), torch.get_num_threads())
    patches = [torch.from_numpy(part) for part in cut.run(None, {INPUT: images_BCHW.float().numpy()})]
    parts = [
        quantise_upper(upper, patches_NChw, bits) for upper, patches_NChw in zip(made.uppers, patches, strict=True)
    ]
    return with_quantised_uppers(description, made, parts, bits)


def with_quantised_uppers(
    description: StoreSetDescription, made: Artefacts, parts: Sequence[QuantisedUpper], bits: int
) -> Artefacts:
    """Return the network in int8 from its Uppers in int8 and the Lower in float32; otherwise as `make_int8`."""
    smashed_BPChw = Join(description)(*(part.smashed_NChw for part in parts))
    lower = _quantised(made.lower, SMASHED, smashed_BPChw, bits)
    return _joined(description, tuple(part.model for part in parts), lower, made.cut, made.join)


def _cut_and_join(
    description: StoreSetDescription, grid: PatchGrid, smashed_shape: Sequence[int]
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    counts = [len(description.positions_of(m)) for m in range(description.num_uppers)]
    images_BCHW = torch.rand(2, description.channels, *description.image_size)
    cut = to_onnx(Cut(description, grid), (images_BCHW,), [INPUT], [f"cut_{m}" for m in range(len(counts))])
    maps = tuple(torch.rand(2 * count, *smashed_shape) for count in counts)
    names = [f"map_{m}" for m in range(len(counts))]
    return cut, to_onnx(Join(description), maps, names, ["joined"], batches=counts)


def _joined(
    description: StoreSetDescription,
    uppers: tuple[onnx.ModelProto, ...],
    lower: onnx.ModelProto,
    cut: onnx.ModelProto,
    join: onnx.ModelProto,
) -> Artefacts:
    """Join the parts: images -> cut -> Uppers -> join -> Lower -> logits."""
    from onnx import compose

    whole = cut
    for m, upper in enumerate(uppers):
        part = compose.add_prefix(upper, f"upper_{m}/")
        whole = _merged(whole, part, {f"cut_{m}": f"upper_{m}/{PATCHES}"})
    joined = compose.add_prefix(join, "join/")
    whole = _merged(whole, joined, {f"upper_{m}/{SMASHED}": f"join/map_{m}" for m in range(len(uppers))})
    last = compose.add_prefix(lower, "lower/", rename_outputs=False)
    whole = _merged(whole, last, {"join/joined": f"lower/{SMASHED}"})
    # The parts call different numbers of rows "batch"; the runtime finds the shapes between them itself.
    del whole.graph.value_info[:]
    del whole.metadata_props[:]
    for key, value in metadata_of(description).items():
        whole.metadata_props.add(key=key, value=value)
    return Artefacts(uppers=uppers, lower=lower, cut=cut, join=join, whole=whole)


def _merged(first: onnx.ModelProto, second: onnx.ModelProto, io_map: dict[str, str]) -> onnx.ModelProto:
    from onnx import compose

    for model in (first, second):
        model.ir_version = min(first.ir_version, second.ir_version)
    return compose.merge_models(first, second, io_map=list(io_map.items()))


@torch.no_grad()
def _scrambled(upper: Upper) -> Upper:
    """Return a copy with random weights: the exporter makes one of weights that are equal, as an untrained Upper's."""
    result, draw = copy.deepcopy(upper), torch.Generator().manual_seed(0)
    for tensor in result.state_dict().values():
        tensor.normal_(generator=draw)
    return result


def _with_weights(model: onnx.ModelProto, weights: dict[str, torch.Tensor]) -> onnx.ModelProto:
    """Return a copy of a model with other weights, by their names."""
    import onnx
    from onnx import numpy_helper

    result = onnx.ModelProto()
    result.CopyFrom(model)
    placed = set()
    for tensor in result.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name].contiguous().numpy(), tensor.name))
            placed.add(tensor.name)
    missing = weights.keys() - placed
    assert not missing, f"the exporter has renamed weights: {sorted(missing)[:3]}"
    return result


def _quantised(model: onnx.ModelProto, name: str, values: torch.Tensor, bits: int) -> onnx.ModelProto:
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    batches = iter(torch.split(values, _CALIBRATION_BATCH))

    class Reader:
        def get_next(self) -> dict[str, Any] | None:
            batch = next(batches, None)
            return None if batch is None else {name: batch.contiguous().numpy()}

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "int8.onnx"
        with runtime_errors("onnxruntime cannot quantise this network"):
            quantize_static(
                copied, path, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=bits == 7,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            )  # fmt: skip
        return onnx.load(path)


def _check(net: PatchSplitNet, description: StoreSetDescription, model: onnx.ModelProto) -> None:
    """Raise ExportError unless the exported network answers as the network does."""
    exported = OnnxModule(model.SerializeToString(), 1)
    check_answers(WHOLE_FILE, description, Normalised(net, description), exported)
