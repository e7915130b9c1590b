"""The trained model as the owner gets it: all Uppers and the Lower in one network, in one process.

Shape suffixes: B batch, K classes, C channels, H and W pixels of an image.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save
from torch import nn

from psl_flower.config import RunConfig, default_workspace
from psl_flower.config.data import BY_DATASET, pixel_range_text
from psl_flower.data.account import Account
from psl_flower.data.files import read_image_file
from psl_flower.data.images import convert_channels, resize_image
from psl_flower.data.pixels import Decoder
from psl_flower.engine.build import Blueprint
from psl_flower.engine.inputs import channel_column, normalise
from psl_flower.errors import DataError, RunError
from psl_flower.models import PatchSplitNet
from psl_flower.patches.assignment import assign
from psl_flower.patches.description import StoreSetDescription
from psl_flower.runs.choosing import choose_run
from psl_flower.runs.folder import MODEL_FILE, RunFolder
from psl_flower.system.devices import choose_device, to_device
from psl_flower.system.files import read_file, write_file
from psl_flower.text import printable

# Images that `TrainedModel.predict` classifies at a time.
PREDICTION_BATCH = 64
Picture = str | Path | Image.Image | NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction for one image."""

    class_names: tuple[str, ...]  #: Label k -> name.
    probabilities: tuple[float, ...]  #: Softmax of the logits (K,).

    @property
    def label(self) -> str:
        """Name of the most probable class."""
        return self.top(1)[0][0]

    @property
    def probability(self) -> float:
        """Its probability."""
        return self.top(1)[0][1]

    def top(self, count: int) -> list[tuple[str, float]]:
        """Return the names and probabilities of at most `count` classes, the most probable first."""
        ranked = sorted(zip(self.class_names, self.probabilities, strict=True), key=lambda pair: -pair[1])
        return ranked[:count]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel:
    """A trained network and all that it takes to use it.

    Attributes
    ----------
    net : PatchSplitNet
        In eval mode, in float32, on `device`.
    description : StoreSetDescription
        Describes the images: size, channels, classes, statistics.
    config : RunConfig
        The settings of the run that trained it.
    device : torch.device
        Where it computes.
    account : Account, optional
        What was read for its training, and how pixels were mapped.
    """

    net: PatchSplitNet
    description: StoreSetDescription
    config: RunConfig
    device: torch.device
    account: Account | None = None

    def decoder(self) -> Decoder:
        """Return a decoder like the one used for the training images."""
        given, account = self.config.data, self.account
        if account is None:
            return Decoder("" if given.pixel_range == BY_DATASET else given.pixel_range, given.background)
        return Decoder(pixel_range_text(account.pixel_range), account.background)

    def prepare(self, images: Sequence[NDArray[np.uint8] | Image.Image]) -> torch.Tensor:
        """Return images of any sizes as one batch, uint8 (B, C, H, W), as they are when patches are cut.

        Each is brought to the channels of the training images, resized with antialiasing until it covers their size,
        and cropped at the centre.

        Parameters
        ----------
        images : sequence
            uint8 arrays (H, W), (H, W, 1) grey or (H, W, 3) RGB, or Pillow images.

        Raises
        ------
        DataError
            If the list is empty, or an image has another shape or dtype, or no pixels.
        """
        if not images:
            raise DataError("expected one image or more, got none")
        return torch.from_numpy(np.stack([self._prepare(image, f"image {b}") for b, image in enumerate(images)]))

    @torch.inference_mode()
    def logits(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (B, K), on the CPU, of images as `prepare` returns them.

        Raises
        ------
        DataError
            If their dtype or shape is another.
        """
        return self.join(self.smash(images_BCHW))

    @torch.inference_mode()
    def smash(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Return the smashed data (B, P, C', h', w'), on `device`; parameters and errors as in `logits`."""
        expected = (self.description.channels, *self.description.image_size)
        if images_BCHW.dtype != torch.uint8 or tuple(images_BCHW.shape[1:]) != expected:
            shape = ", ".join(map(str, expected))
            raise DataError(f"expected uint8 (B, {shape}), got {images_BCHW.dtype} {tuple(images_BCHW.shape)}")
        return self.net.smash(normalise(images_BCHW, self.description.mean, self.description.std, self.device))

    @torch.inference_mode()
    def join(self, smashed_BPChw: torch.Tensor, absent: Collection[int] = ()) -> torch.Tensor:
        """Return float32 logits (B, K), on the CPU, of smashed data; zeros stand for those of absent Uppers."""
        if absent:
            smashed_BPChw = smashed_BPChw.clone()
            smashed_BPChw[:, [p for p, m in enumerate(self.net.assignment) if m in absent]] = 0.0
        return self.net.join(smashed_BPChw).cpu()

    def predict(self, images: Picture | Iterable[Picture]) -> list[Prediction]:
        """Classify images, in batches of `PREDICTION_BATCH`.

        Parameters
        ----------
        images : Picture or iterable of Picture
            One or more images of any sizes: paths of files, Pillow images, or uint8 arrays as `prepare` takes them;
            an array (B, H, W, C) is a batch.

        Returns
        -------
        list[Prediction]
            One for each image, in order.

        Raises
        ------
        CorruptImage
            If a file cannot be decoded.
        DataError
            See `prepare`.
        """
        decoder, found = self.decoder(), list[Prediction]()
        remaining = _one_by_one(images)
        while batch := list(islice(remaining, PREDICTION_BATCH)):
            prepared_BCHW = np.stack(
                [
                    self._prepare(_pixels(image, decoder, len(found) + b), f"image {len(found) + b}")
                    for b, image in enumerate(batch)
                ]
            )
            probability_BK = self.logits(torch.from_numpy(prepared_BCHW)).softmax(1)
            found += [Prediction(self.description.class_names, tuple(row)) for row in probability_BK.tolist()]
        if not found:
            raise DataError("expected one image or more, got none")
        return found

    def _prepare(self, image: NDArray[np.uint8] | Image.Image, where: str) -> NDArray[np.uint8]:
        pixels = self.decoder().image(image, where) if isinstance(image, Image.Image) else image
        pixels_HWC = pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels
        if pixels_HWC.ndim != 3 or pixels_HWC.dtype != np.uint8 or not pixels_HWC.size:
            raise DataError(f"{where}: expected uint8 (H, W, C), got {pixels.dtype} {pixels.shape}")
        converted_HWC = convert_channels(pixels_HWC, self.description.channels, where)
        return resize_image(converted_HWC, self.description.image_size).transpose(2, 0, 1)


def _one_by_one(images: Picture | Iterable[Picture]) -> Iterator[Picture]:
    if isinstance(images, str | Path | Image.Image):
        return iter([images])
    if isinstance(images, np.ndarray):
        return iter(images if images.ndim == 4 else [images])
    return iter(images)


def _pixels(image: Picture, decoder: Decoder, number: int) -> NDArray[np.uint8] | Image.Image:
    if isinstance(image, str | Path):
        where = printable(image)
        return decoder.file(read_image_file(image, where), where)
    return decoder.image(image, f"image {number}") if isinstance(image, Image.Image) else image


class Normalised(nn.Module):
    """A network, or an Upper, with its normalisation inside, so that it can be used without knowing anything else.

    The network is shared, not copied, and changed to eval mode.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, net: nn.Module, description: StoreSetDescription) -> None:
        super().__init__()
        self.net = net
        device = next(net.parameters()).device
        self.register_buffer("mean", channel_column(description.mean, device))
        self.register_buffer("std", channel_column([s or 1.0 for s in description.std], device))
        self.eval()

    def forward(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        """Return the logits for float32 images, or patches, with pixels in 0..1."""
        answer: torch.Tensor = self.net((pixels_NCHW - self.mean) / self.std)
        return answer


def save_trained_model(folder: Path, state: Mapping[str, torch.Tensor]) -> Path:
    """Write the weights of a trained network atomically to `folder`/model.safetensors; makes the folder.

    `state` has tensors by the names of `PatchSplitNet.state_dict()`.

    Raises
    ------
    RunError
        If the disk refuses.
    """
    path = folder / MODEL_FILE
    # Tensors may be views into one buffer that a frame came in, which the format does not allow.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    write_file(path, save(tensors, metadata={"format": "pt"}), RunError, parents=True)
    return path


def load_trained_model(run: RunFolder, device: torch.device | str = "cpu") -> TrainedModel:
    """Build the network of a run with its trained weights, in eval mode.

    Raises
    ------
    RunError
        If the run has no model (it may not have finished), or a file is damaged or of another run.
    StoreError
        If the run's manifest is missing or damaged.
    """
    config, path = run.read_config(), run.model / MODEL_FILE
    weights = _load_weights(path, run, config)
    description = run.read_description()
    # An owner's stores may have another assignment than the setting's default.
    set_here = config.patches.assignment != RunConfig().patches.assignment
    if (
        set_here
        and assign(description.grid(), description.num_uppers, config.patches.assignment) != description.assignment
    ):
        raise RunError(f"{run.path}: config.toml and manifest.json are of different runs")
    blueprint = Blueprint(config, description)
    net, config = blueprint.network(), blueprint.config
    _check_weights(path, weights, net.state_dict())
    net.load_state_dict(weights)
    chosen = torch.device(device)
    net = to_device(net.eval().requires_grad_(False), chosen)
    return TrainedModel(net=net, description=description, config=config, device=chosen, account=run.read_account())


def load(run: str = "", workspace: str = "", device: str = "auto") -> TrainedModel:
    """Load the model of a run by its name: `psl_flower.load("RUN").predict(["photo.png"])`.

    Parameters
    ----------
    run : str
        Name; empty: the newest run that has a model.
    workspace : str
        Folder of the runs; empty: $PSL_WORKSPACE or ~/psl-flower, as in the commands.
    device : str
        As the setting `device`.

    Raises
    ------
    RunError, StoreError
        See `choose_run` and `load_trained_model`.
    """
    return load_trained_model(choose_run(default_workspace(workspace), run), choose_device(device))


def _load_weights(path: Path, run: RunFolder, config: RunConfig) -> dict[str, torch.Tensor]:
    if not path.exists():
        if not config.output.collect_model:
            raise RunError(f"{path}: the run has no model, since its settings say collect-model = false")
        status = run.read_status()
        where = f" (it is {status.state!r}, at step {status.step} of {status.total_steps})" if status else ""
        raise RunError(f"{path}: the run has no model; it may not have finished{where}")
    try:
        return read_tensors(read_file(path, RunError))
    except (SafetensorError, ValueError) as error:
        raise RunError(f"{path}: the model is damaged: {error}") from error


def _check_weights(path: Path, found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Raise RunError unless names, shapes and dtypes are the network's."""
    wrong = sorted(found.keys() ^ expected.keys()) or [
        name
        for name, tensor in expected.items()
        if found[name].shape != tensor.shape or found[name].dtype != tensor.dtype
    ]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise RunError(f"{path}: holds another network than the run's settings describe: {wrong[0]}{more}")
