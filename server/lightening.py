"""A run that lightens instead of training: the whole method over the federation, patches where they are.

Every training is one of the patch-split strategy, with the transports, checkpoints and recovery of any other; between
trainings the owner's model is collected, cut or folded here, and put in place again.
"""

from __future__ import annotations

import copy
import dataclasses
import shutil
import time
from pathlib import Path

import msgspec
import numpy as np
import torch
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from psl_flower.engine.build import Blueprint
from psl_flower.engine.checkpoints import Checkpoints, load_state, save_state
from psl_flower.engine.round_ends import rounds_left
from psl_flower.errors import TrainingStopped
from psl_flower.inference.onnx_files import open_session
from psl_flower.inference.trained_model import load_trained_model
from psl_flower.kinds import Lighten
from psl_flower.lightening.artefacts import (
    LOWER_FILE,
    WHOLE_FILE,
    Artefacts,
    QuantisedUpper,
    check_packages,
    with_quantised_uppers,
)
from psl_flower.lightening.folder import LighteningFolder, LightModel, files_in, onnx_inference
from psl_flower.lightening.judging import Speed, measure_speed
from psl_flower.lightening.method import Answers, Lightening
from psl_flower.lightening.names import title_of
from psl_flower.lightening.on_node import IN_PLACE
from psl_flower.lightening.report import write_report, write_result
from psl_flower.lightening.settings import EDGE, LighteningSettings
from psl_flower.lightening.training import LightTraining, lower_engine, shapes_up, training_config
from psl_flower.models import PatchSplitNet
from psl_flower.text import counted, duration
from psl_flower.wire.node_messages import NodeTask
from server.predicting import light_parties
from server.run import Parties, ServerRun
from strategies.lightening import LightNodes


def lighten(run: ServerRun[Lighten]) -> None:
    """Find a light model as the settings ask for it, and put it in place; see `psl_flower.lightening.folder`.

    Raises
    ------
    PslError
        If the run, a setting, a node or the runtime does not allow it.
    TrainingStopped
        If the user asked to stop; called again, it continues.
    """
    check_packages()
    began = time.monotonic()
    goals, settings = run.kind.request
    folder = LighteningFolder(run.source, settings, federated=True)
    trained = load_trained_model(run.source, run.device)
    backend = FederatedBackend(run, settings)
    backend.check_nodes()
    found = Lightening(folder, trained, settings, backend).find(goals, lambda line: run.reporter.say("judging", line))
    report = write_report(found)
    if found.third is not None:
        backend.put_in_place(found.third)
        folder.mark_in_place()
    write_result(found)
    what = found.reason
    if found.choice is not None:
        what = f"light model: {title_of(found.choice.what)}, in place on the nodes"
    run.reporter.end("completed", f"{what}; {duration(time.monotonic() - began)}; report: {report}")


class FederatedBackend:
    """The federation: implements `psl_flower.lightening.method.Backend`.

    The run's stores serve for labels and description alone: patches are read on the nodes.
    """

    def __init__(self, run: ServerRun[Lighten], settings: LighteningSettings) -> None:
        self._run, self._settings = run, settings
        self._blueprint, self._description, self._reporter = run.blueprint, run.stores.description, run.reporter

    def check_nodes(self) -> None:
        """Raise NodeError unless every node can take part, and there is the one that speed is to be measured on."""
        self._reporter.say("starting", "asking the nodes whether they can take part")
        nodes = self._nodes("ready")
        if self._settings.target != EDGE:
            nodes.find(self._settings.target)
        nodes.ready()

    def train(self, training: LightTraining, net: PatchSplitNet) -> PatchSplitNet:
        """Train a network over the federation; see `Backend.train`. Raises PslError as any training."""
        if training.checkpoint.exists():
            net.load_state_dict(load_state(training.checkpoint)["net"])
            return net.eval()
        config = training_config(self._run.blueprint.config, training.epochs, rounding=training.weight_bits > 0)
        blueprint = Blueprint(config, self._description, training.on_nodes)
        parties = Parties(
            lower=lower_engine(blueprint, training, copy.deepcopy(net.lower), self._run.device),
            shapes=shapes_up(blueprint, training),
            checkpoints=Checkpoints(training.place / training.stage),
            node_task=self._node_task(f"{training.place.name}-{training.stage}", blueprint),
        )
        lower, checkpoints = parties.lower, parties.checkpoints
        if checkpoints.steps():
            lower.go_to(checkpoints.steps()[-1], checkpoints)
        else:
            self._reporter.say("starting", f"{training.what}: putting the Uppers' weights in place")
            self._place(parties.node_task, net, training)
            checkpoints.save(0, lower.state())
        uppers = self._train(blueprint, training, parties)
        for upper, weights in zip(net.uppers, uppers, strict=True):
            upper.load_state_dict(weights)
        net.lower.load_state_dict(lower.lower.state_dict())
        save_state(training.checkpoint, {"net": net.cpu().state_dict()})
        shutil.rmtree(checkpoints.folder, ignore_errors=True)
        return net.eval()

    def quantise(self, made: Artefacts, samples_N: NDArray[np.int64], bits: int) -> Artefacts:
        """Return a network in int8: Uppers calibrated on their nodes, the Lower on smashed data that they send."""
        import onnx

        self._reporter.say("quantising", f"quantising on the nodes, from {counted(len(samples_N), 'image')} each")
        models = [upper.SerializeToString() for upper in made.uppers]
        light, smashed = self._nodes("int8").quantise(models, samples_N, bits)
        parts = [
            QuantisedUpper(onnx.load_from_string(model), maps_NChw)
            for model, maps_NChw in zip(light, smashed, strict=True)
        ]
        return with_quantised_uppers(self._description, made, parts, bits)

    def answers(self, name: str, place: Path, samples_N: NDArray[np.int64]) -> Answers:
        """Put the Uppers' files in place on the nodes, and return what these and the Lower's answer."""
        num_uppers = self._description.num_uppers
        self._nodes(name).keep(files_in(place, num_uppers))
        light = LightModel(place / LOWER_FILE, onnx_inference(place, num_uppers), self._name_of_part(name))
        parties = light_parties(self._run, light, Checkpoints(place / "judging"))
        task = dataclasses.replace(self._blueprint.task(self._run.stores.labels), test=samples_N)
        about = f"judging {name}: {counted(len(samples_N), 'image')}, by the nodes and the Lower"
        predictions, _ = self._run.predictions(
            parties,
            task,
            on_placed=lambda placement: self._reporter.placed(placement, about, "judging"),
            on_evaluated=self._judged,
        )
        return Answers(predictions.predicted, predictions.label)

    def speed(self, place: Path) -> Speed:
        """Return the speed of the whole network's file on this machine, or of the Uppers' on the node asked for.

        The server has no images, so it times random pixels, which take as long.
        """
        settings = self._settings
        if settings.target != EDGE:
            nodes = self._nodes(place.name)
            nodes.keep(files_in(place, self._description.num_uppers))
            measured = nodes.measure(settings.target, batch=settings.batch, threads=settings.threads)
            return Speed(**msgspec.structs.asdict(measured))
        generator = torch.Generator().manual_seed(0)
        shape = (settings.batch, self._description.channels, *self._description.image_size)
        images_BCHW = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return measure_speed(open_session(place / WHOLE_FILE, settings.threads), images_BCHW)

    def put_in_place(self, third: Path) -> None:
        """Put the light Uppers in place on the nodes, to predict with."""
        self._nodes(IN_PLACE).keep(files_in(third, self._description.num_uppers))

    def _place(self, task: NodeTask, net: PatchSplitNet, training: LightTraining) -> None:
        weights = {m: upper.state_dict() for m, upper in enumerate(net.uppers)}
        uppers = training.teacher.net.uppers if training.teacher is not None else ()
        taught = {m: upper.state_dict() for m, upper in enumerate(uppers)}
        self._light(task).place(weights, taught)

    def _train(self, blueprint: Blueprint, training: LightTraining, parties: Parties) -> list[dict[str, torch.Tensor]]:
        """Train from the Lower's step to the end; return the Uppers' weights."""
        task, done = blueprint.task(self._run.stores.labels), parties.lower.step
        self._reporter.plan(
            rounds=blueprint.config.training.rounds, total_steps=task.total_steps, steps_per_round=task.steps_per_round,
            done=done, what=training.what,
        )  # fmt: skip
        strategy = self._run.strategy(
            parties, task, on_placed=lambda placement: self._reporter.placed(placement, training.what)
        )
        try:
            if left := rounds_left(task, done):
                strategy.start(self._run.grid, initial_arrays=ArrayRecord(), num_rounds=left)
            collected = strategy.collect(self._run.grid)
        finally:
            strategy.close()
        return [collected[m] for m in sorted(collected)]

    def _judged(self, done: int, total: int) -> None:
        self._reporter.predicted(done, total)
        if done < total and self._run.folder.stop_requested():
            raise TrainingStopped("stopped, as asked; what was trained is kept")

    def _nodes(self, name: str) -> LightNodes:
        return self._light(self._node_task(name, self._blueprint))

    def _light(self, task: NodeTask) -> LightNodes:
        return LightNodes(self._run.grid, task, self._description.assignment, self._run.config.wire)

    def _node_task(self, name: str, blueprint: Blueprint) -> NodeTask:
        return self._run.node_task(blueprint, self._name_of_part(name))

    def _name_of_part(self, name: str) -> str:
        return f"{self._run.folder.name}/{name}"
