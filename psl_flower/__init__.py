"""Patch split learning: train a classifier without giving any server whole images.

Images are cut into patches, and each patch position is stored on its own node. A node's Upper model computes
features of its patches; the Lower model on the server joins the features, computes the loss and sends gradients back.

Words
-----
========================  ==============================================================================================
patch grid, position      how an image is cut; patch p has the same place in every image, row-major from 0
patch store               the patches of some positions of every image, one store per Upper; sealed (encrypted) or plain
Upper model               the first layers, on a node beside its store; vertical federated learning's bottom model
Lower model               the other layers, on the server; vertical federated learning's top model
cut                       where the network is divided, after the stem or a stage of the backbone
smashed data              the Upper's output at the cut, which is sent up; its gradient comes down
Adaptation Net            small head that gives each Upper its own auxiliary loss; used in training only
step, round               one mini-batch through all parties; the steps (by default an epoch) that one Flower round runs
generation, key epoch     state of a sealed dataset after each change; the keys in force from one rotation to the next
owner, restorer           holds images, labels and root key; may reassemble images, k restorers together
========================  ==============================================================================================

"Upper" and "Lower" are the source method's words; they run the other way from "bottom" and "top".

Tasks
-----
========================  ==============================================================================================
cut images and join maps  `PatchGrid`
build the networks        `PatchSplitNet`, `AdaptationNet`; their loss: `full_loss`
read settings             `RunConfig.of(lr=0.1)`, or `RunConfig.from_mapping(parse_settings(["lr=0.1"]))`
read a dataset            `open_dataset`
make or open its stores   `prepare_stores`
train in this process     `OneProcessTrainer`, to the very weights of the federated run
find runs                 `list_runs`, `open_run`, `choose_run` (the newest that has a model)
use a trained model       `load("RUN").predict("photo.png")`, a `TrainedModel`; `load_trained_model` of a run's folder
measure a trained model   `evaluate` with `own_test_images`
catch any error           `PslError`
own parties and models    `psl_flower.flower.SplitLearning`, `split_client`; in one process `psl_flower.split.fit_local`
train over Flower         `strategies.PatchSplit` with `clients.upper_app.upper_app`; from a shell `psl train`
========================  ==============================================================================================

For example, 20 steps on the embedded digits::

    from psl_flower import OneProcessTrainer, RunConfig, prepare_stores

    config = RunConfig.of(dataset="digits", max_train=200, max_test=100, batch_size=20, rounds=2)
    stores = prepare_stores(config)
    opened = [stores.open(m) for m in range(stores.description.num_uppers)]
    trainer = OneProcessTrainer(config, stores.description, stores.labels, opened)
    trainer.train(20)
    print(trainer.evaluate().accuracy)

Rooms
-----
Each imports only those below it; docs/architecture.md draws and explains them.

========================  ==============================================================================================
cli                       the program `psl`: one module per group of commands
flower                    the Flower side: finding nodes, transports, parties with their own models
launch                    start `flwr run` in a simulation on this machine, watch it, end it
kinds                     what a run does: train, resume, restore, predict, lighten, audit; settings, folder and handler
lightening                a smaller int8 model from a trained one (`psl lighten`)
inference                 a trained model: load, evaluate, export, do without some nodes
baselines                 what patch-split learning is compared with: the whole image, federated averaging
leakage                   what smashed data give away, measured by rebuilding images (`psl leak`)
doctor                    what `psl doctor` checks on a host before a run
split                     training over parties with models and data of any kind
runs                      a run's folder, resuming it, its predictions and mistakes
stores                    patch stores: make, find and open them, plain or sealed
sealed                    encrypted stores, signed manifests and labels, restoration, rotation
engine                    a step: Upper, Lower, Adaptation Net, rounds, checkpoints; the same in one process
data                      datasets from the hub or folders, as streams of images and labels
config                    the settings, in typed groups
protection                what hides smashed data at the cut, as settings
models                    the networks, and what crosses the cut
wire                      codecs, frames, messages, streams with TLS
patches                   the grid, who holds which position, what a patch store is
system                    files, processors, devices of this machine
text                      what people type and read: paths, KEY=VALUE, amounts
losses                    the full loss
seeds                     every random choice, from a seed and a name
errors                    every error that a user can meet
========================  ==============================================================================================

Importing psl_flower loads neither torch nor Flower; a name is imported when it is first used.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import lazy_loader

from psl_flower.text import OneLine

if TYPE_CHECKING:
    from psl_flower.config import RunConfig as RunConfig
    from psl_flower.data.sources import open_dataset as open_dataset
    from psl_flower.engine.one_process import OneProcessTrainer as OneProcessTrainer
    from psl_flower.errors import PslError as PslError
    from psl_flower.inference.evaluation import evaluate as evaluate
    from psl_flower.inference.evaluation import own_test_images as own_test_images
    from psl_flower.inference.trained_model import TrainedModel as TrainedModel
    from psl_flower.inference.trained_model import load as load
    from psl_flower.inference.trained_model import load_trained_model as load_trained_model
    from psl_flower.kinds import parse_settings as parse_settings
    from psl_flower.losses import full_loss as full_loss
    from psl_flower.models import AdaptationNet as AdaptationNet
    from psl_flower.models import PatchSplitNet as PatchSplitNet
    from psl_flower.patches import PatchGrid as PatchGrid
    from psl_flower.runs.choosing import choose_run as choose_run
    from psl_flower.runs.folder import list_runs as list_runs
    from psl_flower.runs.folder import open_run as open_run
    from psl_flower.stores.prepare import prepare_stores as prepare_stores

__version__ = "0.1.0"

# Of all processes and modules: messages repeat words from files and from the network.
logging.getLogger("psl_flower").addFilter(OneLine())

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "config": ["RunConfig"],
        "data.sources": ["open_dataset"],
        "engine.one_process": ["OneProcessTrainer"],
        "errors": ["PslError"],
        "inference.evaluation": ["evaluate", "own_test_images"],
        "inference.trained_model": ["TrainedModel", "load", "load_trained_model"],
        "kinds": ["parse_settings"],
        "losses": ["full_loss"],
        "models": ["AdaptationNet", "PatchSplitNet"],
        "patches": ["PatchGrid"],
        "runs.choosing": ["choose_run"],
        "runs.folder": ["list_runs", "open_run"],
        "stores.prepare": ["prepare_stores"],
    },
)
