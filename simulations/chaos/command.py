"""The command: from its arguments to the report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from simulations.chaos.storm import storm
from simulations.chaos.table import present
from simulations.command_line import check_out, count, deliver, exit_status, new_parser, workspace_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status, see `exit_status`; 1 also if the weights differ."""
    parser = make_parser()
    return exit_status(lambda: _storm(parser.parse_args(arguments)))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = new_parser(
        "chaos",
        "Kill processes of a run again and again, and compare the weights at its end with those of an undisturbed run.",
    )
    add = parser.add_argument
    add("--kills", type=count, default=5, help="processes to kill [5]")
    add("--seed", type=int, default=0, help="of roles and moments [0]")
    add("--steps", type=count, help="training steps [six for each kill]")
    return parser


def _storm(given: argparse.Namespace) -> None:
    check_out(given.out)
    with workspace_of("psl-chaos-") as workspace:
        report = storm(workspace, given.kills, given.seed, given.steps or 6 * given.kills)
    deliver(given, report, present(report))
    if not report.equal:
        sys.exit(1)
