"""A run that audits a trained run over its nodes, on images that the auditor brings.

The server sends every node the patches of these images, and gets what the trained Uppers make of them. Nothing of the
nodes' own images is asked for.
"""

from __future__ import annotations

import torch

from psl_flower.engine.lower import LowerEngine
from psl_flower.inference.evaluation import other_test_images
from psl_flower.inference.trained_model import TrainedModel
from psl_flower.kinds import Audit
from psl_flower.leakage.elsewhere import audit_elsewhere
from psl_flower.leakage.images import AuditSettings
from psl_flower.leakage.page import write
from psl_flower.text import counted
from psl_flower.wire import questions
from server.run import ServerRun
from strategies.asked_nodes import AskedNodes

# Images of a message.
_BATCH = 256


def audit(run: ServerRun[Audit]) -> None:
    """Attack the auditor's images; report and page go to the run's folder leak/, as those of `psl leak`.

    Raises
    ------
    PslError
        If the images cannot be used, or a node refuses, is missing, or keeps no weights of this run.
    """
    kind, config, description = run.kind, run.blueprint.config, run.stores.description
    lower = run.blueprint.lower_engine(torch.device("cpu"))
    lower.go_to(max(run.source.checkpoints.steps()), run.source.checkpoints)
    net = run.blueprint.network().eval().requires_grad_(False)
    net.lower.load_state_dict(lower.lower.state_dict())
    trained = TrainedModel(
        net=net, description=description, config=config, device=torch.device("cpu"), account=run.source.read_account()
    )
    images = other_test_images(trained, kind.audit_images)
    run.reporter.say("starting", f"asking the nodes what their Uppers make of images of {kind.audit_images}")
    report, pictures = audit_elsewhere(
        net, config, description, (kind.audit_images, images.batches),
        AuditSettings(victims=kind.audit_victims, auxiliary=kind.audit_auxiliary, epochs=kind.audit_epochs),
        run=run.source.name, ask=_Nodes(run, lower).smash,
        on_progress=lambda what, done, total: run.reporter.say("auditing", f"{what}: {done} of {total}"),
    )  # fmt: skip
    _, page = write(run.folder.path, report, pictures)
    run.reporter.end("completed", f"{report.verdict} {counted(report.victims, 'image')} rebuilt: {page}")


class _Nodes:
    """The nodes' Uppers, as they were when the run ended."""

    def __init__(self, run: ServerRun[Audit], lower: LowerEngine) -> None:
        blueprint = run.blueprint
        self._nodes = AskedNodes(run.grid, run.node_task(), blueprint.description.assignment, run.config.wire)
        self._grid, self._saved = blueprint.grid, dict(lower.saved)
        self._positions = [blueprint.description.positions_of(m) for m in range(blueprint.description.num_uppers)]

    def smash(self, images_NCHW: torch.Tensor, more: int) -> torch.Tensor:
        """Return the smashed data float32 (N, P, C', h', w') of images uint8 (N, C, H, W); `more` images follow."""
        count = len(images_NCHW)
        batches = (images_NCHW[first : first + _BATCH] for first in range(0, count, _BATCH))
        return torch.cat(
            [
                self._ask(self._grid.split(images_BCHW), more + max(0, count - (number + 1) * _BATCH))
                for number, images_BCHW in enumerate(batches)
            ]
        )

    def _ask(self, patches_BPChw: torch.Tensor, more: int) -> torch.Tensor:
        sent = {m: {"patches": patches_BPChw[:, list(own)]} for m, own in enumerate(self._positions)}
        answers = self._nodes.ask(
            lambda task: questions.SmashImages(task=task, saved={m: self._saved[m] for m in task.parties}, more=more),
            tensors={"patches": sent},
        )
        by_position: dict[int, torch.Tensor] = {}
        for m, own in enumerate(self._positions):
            smashed_BKChw = answers[m].tensors("smashed", m)["smashed"]
            by_position |= {position: smashed_BKChw[:, k] for k, position in enumerate(own)}
        return torch.stack([by_position[position] for position in range(len(by_position))], dim=1)
