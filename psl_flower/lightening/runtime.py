"""A light artefact in the place of a model: onnxruntime behind the interface of torch's modules, for inference."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from psl_flower.lightening.judging import open_session


class OnnxModule(nn.Module):
    """Runs an ONNX file of one float32 input and one float32 output on the CPU.

    Parameters
    ----------
    model : Path or bytes
        The file, or what is in it.
    threads : int
        Of onnxruntime.

    Raises
    ------
    LighteningError, RunError
        As `open_session`.
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
        """Return what the artefact answers, on the CPU; `flipped` stands where a Lower takes which are mirrored."""
        given = {self._input: values.detach().float().contiguous().cpu().numpy()}
        return torch.from_numpy(self._session.run([self._output], given)[0])
