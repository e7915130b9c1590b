"""A run that restores instead of training: the nodes answer restorers' authorisation, the server relays."""

from __future__ import annotations

from flwr.serverapp import Grid

from psl_flower.config import RunConfig
from psl_flower.engine.exchange import WireFormat
from psl_flower.errors import ConfigError
from psl_flower.runs.folder import RunFolder
from psl_flower.sealed import manifest as manifests
from psl_flower.sealed import remote
from psl_flower.sealed.disk import read_file, write_file
from psl_flower.stores.store_set import StoreSet
from psl_flower.text import expanded
from psl_flower.wire.node_messages import NodeTask
from server.reporting import Reporter
from strategies.collection import gather_answers
from strategies.link import NodeLink, TransportOptions


def restore(
    grid: Grid, config: RunConfig, run: RunFolder, stores: StoreSet, task: NodeTask, reporter: Reporter
) -> None:
    """Let the nodes answer the authorisation that the settings name; the answers go to ``<run>/answers``.

    Raises
    ------
    RestoreRefused
        If the authorisation is not valid for this dataset; each node checks it as well, for itself.
    PslError
        If a node refuses, is missing for `node_timeout_s`, or does not answer.
    """
    if not stores.sealed:
        raise ConfigError("restore: these stores are plain; only sealed ones have restorers (stores=sealed)")
    request = read_file(expanded(config.run.restore, "restore"), remote.MAX_AUTHORISATION_BYTES)
    asked = remote.check(request, manifests.load(stores.folder))
    reporter.say("starting", f"asking the nodes for their patches of {len(asked.images)} images: {asked.why}")
    # Single messages: nothing here needs all nodes at once.
    options = TransportOptions(transport="flower", node_timeout_s=config.wire.node_timeout_s)
    link = NodeLink(task, stores.description.assignment, False, WireFormat(), options)
    link.open_in_time(grid, {})
    answers = gather_answers(grid, link.placement, task, request, config.wire.node_timeout_s)
    folder = run.path / "answers"
    folder.mkdir(exist_ok=True)
    for m, answer in answers.items():
        write_file(folder / f"upper-{m:03d}.psl", answer)
    reporter.end(
        "completed",
        f"{len(answers)} answers for {len(asked.images)} images: {folder}; the recipients open them: "
        f"psl restore --request {config.run.restore} --answers {folder} ...",
    )
