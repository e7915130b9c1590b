"""A node's part in a lightening: Uppers of other sizes in training, and files that onnxruntime runs, beside its store.

The files of one training or judgement are in one folder on the node, <checkpoints>:

- step-00000000.pt, ...: as in any training; step 0 are the weights that were put in place
- teacher.pt: the teacher's Upper, if there is one
- upper.onnx: the Upper as a file, put in place to be judged, or to predict with

Shape suffixes: B images, K positions of one Upper, N patches (B*K), C channels, h and w of a patch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from psl_flower.engine.build import Blueprint, CompressionTraining, OnnxInference
from psl_flower.engine.checkpoints import Checkpoints, load_state, same_network, save_state
from psl_flower.engine.upper import UpperEngine
from psl_flower.errors import LighteningError, NoCheckpoint, RunError
from psl_flower.inference.onnx_files import OnnxModule, open_session
from psl_flower.lightening.judging import PATCHES, SMASHED, Speed, measure_speed
from psl_flower.models.split import Upper
from psl_flower.patches.store import PatchStore
from psl_flower.system.files import read_file, write_file
from psl_flower.system.machine import require_packages

if TYPE_CHECKING:
    import onnx

    from psl_flower.lightening.artefacts import QuantisedUpper

# <state of an Upper>/light/<lightening>/<part>/
LIGHT_FOLDER = "light"
IN_PLACE = "third"  # the part that stays
UPPER_FILE = "upper.onnx"
_TEACHER_FILE = "teacher.pt"


def check_runtime() -> None:
    """Raise ConfigError unless this machine can run and quantise light Uppers."""
    require_packages("a light model", "lighten", "onnx", "onnxruntime")


def put_in_place(
    blueprint: Blueprint,
    training: CompressionTraining,
    store: PatchStore,
    checkpoints: Checkpoints,
    weights: Mapping[str, torch.Tensor],
    teacher: Mapping[str, torch.Tensor],
) -> None:
    """Keep an Upper's initial weights for a training, as its checkpoint of step 0, and those of its teacher, if any.

    Older states of the lightening on this node are removed.

    Raises
    ------
    RunError
        If the weights are of other networks, or the disk refuses.
    """
    _drop_others(checkpoints.folder)
    checkpoints.drop_after(-1)
    m = store.meta.upper
    if training.teacher is not None:
        _loaded(blueprint.upper(m, training.teacher), teacher)
        save_state(checkpoints.folder / _TEACHER_FILE, dict(teacher))
    student = _loaded(_student(blueprint, training, m), weights)
    engine = UpperEngine(student, store, blueprint.upper_options(torch.device("cpu")), checkpoints)
    checkpoints.save(0, engine.state())


def training_engine(
    blueprint: Blueprint,
    training: CompressionTraining,
    store: PatchStore,
    checkpoints: Checkpoints,
    device: torch.device,
) -> UpperEngine:
    """Return the engine of an Upper in a training of a lightening; parameters as in `put_in_place`.

    Raises
    ------
    NoCheckpoint
        If no weights were put in place here.
    RunError
        If those of the teacher are missing, damaged or of another network.
    """
    if not checkpoints.steps():
        raise NoCheckpoint(
            f"{checkpoints.folder}: no weights of this training are in place here; to start it again, remove its "
            "checkpoints in the run's light folder on the server, and call psl lighten again"
        )
    m, teacher = store.meta.upper, None
    if training.teacher is not None:
        taught = load_state(checkpoints.folder / _TEACHER_FILE)
        teacher = _loaded(blueprint.upper(m, training.teacher), taught).eval().requires_grad_(False)
    model = _student(blueprint, training, m)
    return UpperEngine(model, store, blueprint.upper_options(device), checkpoints, teacher)


def onnx_engine(
    blueprint: Blueprint, inference: OnnxInference, store: PatchStore, checkpoints: Checkpoints
) -> UpperEngine:
    """Return an Upper that predicts by its file, `UPPER_FILE` beside its checkpoints; it cannot be trained.

    Raises
    ------
    RunError
        If there is no such file, or another one than that expected.
    ConfigError, ExportError
        If this node cannot run it.
    """
    check_runtime()
    path = checkpoints.folder / UPPER_FILE
    content = _read(path)
    if hashlib.sha256(content).hexdigest() != inference.digests.get(store.meta.upper):
        raise RunError(f"{path}: is another light Upper than the one expected; call psl lighten again")
    options = blueprint.upper_options(torch.device("cpu"))
    # The file takes pixels in 0..1 and normalises them itself.
    C = blueprint.description.channels
    neutral = dataclasses.replace(options, mean=[0.0] * C, std=[1.0] * C, autocast=False, averaged=False)
    # A folder without checkpoints: a file has no steps.
    return UpperEngine(OnnxModule(content, torch.get_num_threads()), store, neutral, Checkpoints(path))


def keep_file(folder: Path, content: bytes) -> None:
    """Put an Upper's file in place, and remove the states of other parts of the lightening.

    Raises
    ------
    LighteningError
        If it is no ONNX model, or refers to other files.
    ConfigError, ExportError
        If this node cannot run it.
    RunError
        If the disk refuses.
    """
    check_runtime()
    _parsed(content)
    open_session(content, 1)
    _drop_others(folder)
    write_file(folder / UPPER_FILE, content, RunError, parents=True)


def quantise(
    model: bytes, blueprint: Blueprint, store: PatchStore, samples_B: NDArray[np.int64], bits: int
) -> QuantisedUpper:
    """Return an Upper in int8, calibrated on the patches of these samples; errors as in `artefacts.make_int8`."""
    check_runtime()
    from psl_flower.lightening.artefacts import quantise_upper

    patches_BKChw = _patches(blueprint, store, samples_B)
    return quantise_upper(_parsed(model), patches_BKChw.flatten(0, 1), bits)


def measure(folder: Path, blueprint: Blueprint, store: PatchStore, *, batch: int, threads: int) -> Speed:
    """Return the speed of an Upper's file on this node, with its own patches; see `judging.measure_speed`.

    Raises
    ------
    RunError, ExportError
        If the file is missing or cannot be run.
    """
    check_runtime()
    patches_BKChw = _patches(blueprint, store, np.resize(np.arange(len(store)), batch))
    K = patches_BKChw.shape[1]
    session = open_session(folder / UPPER_FILE, threads)
    return measure_speed(session, patches_BKChw.flatten(0, 1), names=(PATCHES, SMASHED), per_image=K)


def _patches(blueprint: Blueprint, store: PatchStore, samples_B: NDArray[np.int64]) -> torch.Tensor:
    """Return the patches of samples, uint8 (B, K, C, h, w), as an Upper takes them."""
    return blueprint.augmentation().unmoved(torch.from_numpy(store.read(samples_B)))


def _parsed(content: bytes) -> onnx.ModelProto:
    """Return the model that bytes from the server hold; raises LighteningError unless it is one, whole in itself."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_from_string(content)
    except DecodeError as error:
        raise LighteningError(f"no ONNX model came from the server: {error}") from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(model)):
        raise LighteningError("the model from the server refers to other files, so that it could read this node's")
    return model


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield all tensors of a model: of its graph, of its functions, and of the graphs within these."""
    yield from _tensors_of_graph(model.graph)
    for function in model.functions:
        yield from _tensors_of_nodes(function.node)
        for attribute in function.attribute_proto:
            yield from _tensors_of_attribute(attribute)
    for training in model.training_info:
        yield from _tensors_of_graph(training.initialization)
        yield from _tensors_of_graph(training.algorithm)


def _tensors_of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from _tensors_of_attribute(attribute)


def _tensors_of_attribute(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    yield from (attribute.t, *attribute.tensors)
    for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
        yield from (sparse.values, sparse.indices)
    for inner in (attribute.g, *attribute.graphs):
        yield from _tensors_of_graph(inner)


def _drop_others(folder: Path) -> None:
    """Remove the states of other parts of the same lightening, except the model in place to predict with."""
    for other in folder.parent.glob("*"):
        if other.name not in (folder.name, IN_PLACE):
            shutil.rmtree(other, ignore_errors=True)


def _student(blueprint: Blueprint, training: CompressionTraining, m: int) -> Upper:
    model = blueprint.upper(m, training.size)
    if not training.weight_bits:
        return model
    from psl_flower.lightening.quantising import folded, with_rounding

    return with_rounding(folded(model), training.weight_bits)


def _loaded(model: Upper, weights: Mapping[str, torch.Tensor]) -> Upper:
    with same_network("the weights are"):
        model.load_state_dict(dict(weights))
    return model


def _read(path: Path) -> bytes:
    if not path.exists():
        raise RunError(f"{path}: no light Upper was put in place here; call psl lighten again")
    return read_file(path, RunError)
