"""ONNX files of networks and of their parts: torch.onnx writes them, onnxruntime runs them on the CPU."""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from psl_flower.errors import ExportError, RunError

if TYPE_CHECKING:
    import onnx
    import onnxruntime

# Input and output of a whole network's file.
INPUT, OUTPUT = "images", "logits"
_one_at_a_time = threading.RLock()


def to_onnx(
    module: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    input_names: list[str],
    output_names: list[str],
    batches: Sequence[int] | None = None,
) -> onnx.ModelProto:
    """Return a module as ONNX, for any batch; `batches`: images for each of the first axis, if inputs differ.

    Raises
    ------
    ExportError
        If ONNX has no operator for one of the module's.
    """
    batch = torch.export.Dim("batch", min=1)
    dims = [{0: count * batch if count > 1 else batch} for count in batches or [1] * len(inputs)]
    shapes: Any = (tuple(dims),) if batches else tuple(dims)
    with torch.no_grad(), quiet():
        try:
            program = torch.onnx.export(
                module.eval(), inputs, dynamo=True, dynamic_shapes=shapes, input_names=input_names,
                output_names=output_names, verbose=False,
            )  # fmt: skip
        except torch.onnx.OnnxExporterError as error:
            deepest: BaseException = error
            while deepest.__cause__ is not None:
                deepest = deepest.__cause__
            why = str(deepest).splitlines()[0]
            raise ExportError(f"this network cannot be written as ONNX: {why}") from error
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # names files of this machine
    return model


def open_session(model: Path | bytes, threads: int) -> onnxruntime.InferenceSession:
    """Return a session of onnxruntime on the CPU.

    Raises
    ------
    ExportError
        If the runtime does not support an operator of the model, or the file is damaged.
    RunError
        If there is no such file.
    """
    import onnxruntime

    if isinstance(model, Path) and not model.is_file():
        raise RunError(f"{model}: there is no such file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    where = f"{model}: " if isinstance(model, Path) else ""
    with runtime_errors(f"{where}onnxruntime cannot run this model"):
        return onnxruntime.InferenceSession(
            str(model) if isinstance(model, Path) else model, options, providers=["CPUExecutionProvider"]
        )


class OnnxModule(nn.Module):
    """An ONNX file, or its content, in the place of a model: one float32 input and output, run on the CPU.

    Raises ExportError and RunError as `open_session`.
    """

    def __init__(self, model: Path | bytes, threads: int) -> None:
        super().__init__()
        self._session = open_session(model, threads)
        self._input, self._output = self._session.get_inputs()[0].name, self._session.get_outputs()[0].name

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the input without the batch, which may be any."""
        return tuple(self._session.get_inputs()[0].shape[1:])

    def forward(self, values: torch.Tensor, flipped: None = None) -> torch.Tensor:
        """Return the model's output, on the CPU; `flipped` only matches a Lower's signature."""
        given = {self._input: values.detach().float().contiguous().cpu().numpy()}
        return torch.from_numpy(self._session.run([self._output], given)[0])


@contextlib.contextmanager
def runtime_errors(problem: str) -> Iterator[None]:
    """Raise ExportError, with `problem` before the runtime's own words, for what onnxruntime raises."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    # The runtime's errors have no common base.
    kinds = (
        state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NoModel,
        state.NotImplemented, state.RuntimeException,
    )  # fmt: skip
    try:
        yield
    except kinds as error:
        raise ExportError(f"{problem}: {str(error).splitlines()[0]}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the libraries' advice to their developers; one thread at a time, since logging is off for all threads."""
    with _one_at_a_time:
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.disable(before)
