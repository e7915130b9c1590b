"""A tiny run folder with a model, for the tests of what is done with trained models."""

from pathlib import Path

import numpy as np
import torch

from psl_flower.config import RunConfig
from psl_flower.engine.build import Blueprint
from psl_flower.engine.rounds import Predictions
from psl_flower.inference.trained_model import save_trained_model
from psl_flower.models import PatchSplitNet
from psl_flower.runs.folder import RunFolder, Status, create_run
from psl_flower.stores.prepare import prepare_stores


def make_run(workspace: Path, name: str = "tiny", **settings: object) -> tuple[RunFolder, PatchSplitNet]:
    """Return a run on 40 digits, as training leaves it, and its network, whose weights are random."""
    config = RunConfig.of(**{"dataset": "digits", "max_train": 40, "max_test": 20, "uppers": 2} | settings)
    description = prepare_stores(config.replace(workspace=str(workspace))).description
    run = create_run(workspace, name, config.data.dataset)
    run.write_config(config)
    run.write_description(description)
    run.append_metrics({"round": 1, "step": 2, "accuracy": 0.25})
    run.append_metrics({"round": 2, "step": 4, "accuracy": None})
    run.write_status(Status(state="completed", step=4, total_steps=4))
    net = Blueprint(config, description).network()
    # BatchNorm statistics that are not the initial ones.
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        net.train()(torch.rand(8, description.channels, *description.image_size))
    save_trained_model(run.model, net.state_dict())
    return run, net.eval()


def finish(run: RunFolder, accuracy: float = 0.75) -> None:
    """Give a run two rounds of metrics, and predictions of its 20 test images: a quarter of them wrong."""
    test = run.read_description().samples_of("test")
    label = np.arange(len(test)) % 10
    predicted = np.where(np.arange(len(test)) % 4 == 0, (label + 1) % 10, label)
    confidence = np.linspace(0.5, 0.9, len(test)).astype(np.float32)
    run.write_predictions(Predictions(sample=test, label=label, predicted=predicted, confidence=confidence, loss=0.5))
    for number in (3, 4):
        run.append_metrics({
            "round": number, "step": 2 * number, "loss": 3.0 / number, "train_accuracy": 0.2 * number,
            "accuracy": accuracy, "balanced_accuracy": 0.7, "macro_f1": 0.65, "test_loss": 0.5, "images_per_s": 123.0,
            "seconds": 30.0, "bytes_up": 1_000_000, "bytes_down": 2_000_000, "step_s": 0.1, "upper_s": 0.05,
            "lower_s": 0.04, "wire_s": 0.01,
        })  # fmt: skip
