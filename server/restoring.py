"""A run that restores images: nodes answer the restorers' authorisation, the server relays."""

from __future__ import annotations

from psl_flower.errors import ConfigError
from psl_flower.flower.asking import ask_hosts
from psl_flower.flower.link import NodeLink
from psl_flower.kinds import Restore
from psl_flower.sealed import authorisation
from psl_flower.sealed import manifest as manifests
from psl_flower.system.files import read_file, write_file
from psl_flower.text import counted, expanded
from psl_flower.wire.questions import SealForRestorers
from server.run import ServerRun


def restore(run: ServerRun[Restore]) -> None:
    """Let the nodes answer the authorisation that the settings name; the answers go to ``<run>/answers``.

    Raises
    ------
    RestoreRefused
        If the authorisation is not valid for this dataset; each node checks it as well, for itself.
    PslError
        If a node refuses, is missing for `node_timeout_s`, or does not answer.
    """
    stores, file = run.stores, run.kind.restore
    run.folder.write_description(stores.description)
    if not stores.sealed:
        raise ConfigError("restore: these stores are plain; only sealed ones have restorers (stores=sealed)")
    request = read_file(expanded(file, "restore"), limit=authorisation.MAX_AUTHORISATION_BYTES)
    asked = authorisation.check(request, manifests.load(stores.folder))
    run.reporter.say(
        "starting", f"asking the nodes for their patches of {counted(len(asked.images), 'image')}: {asked.why}"
    )
    task = run.node_task()
    link = NodeLink(task, stores.description.assignment, run.config.wire)
    link.open_in_time(run.grid, {})
    answers = ask_hosts(
        run.grid, link.placement, task, lambda task: SealForRestorers(task=task, request=request),
        run.config.wire.node_timeout_s,
    )  # fmt: skip
    sealed = {m: answer.part(m) for m, answer in answers.items()}  # the server can read none of them
    folder = run.folder.path / "answers"
    for m, answer in sealed.items():
        write_file(folder / f"upper-{m:03d}.psl", answer, mode=0o644, parents=True)
    run.reporter.end(
        "completed",
        f"{counted(len(sealed), 'answer')} for {counted(len(asked.images), 'image')}: {folder}; "
        "the recipients open them: "
        f"psl restore --request {file} --answers {folder} ...",
    )
