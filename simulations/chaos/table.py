"""The report in words."""

from __future__ import annotations

from simulations.chaos.results import STARTING, Report
from simulations.reports import Spread
from simulations.tables import Cells, Presentation, Row, again, machine, spread


def present(report: Report) -> Presentation:
    """Return the report in words."""
    return Presentation(title=title(report), tables=(kills(report),), notes=notes(report), command=command(report))


def title(report: Report) -> str:
    """Return one line: what became of which run, and where."""
    settings, count = report.settings, len(report.measurements)
    return (
        f"{count} kill{'s' * (count > 1)} survived, weights "
        f"{'bit-equal to' if report.equal else 'DIFFERENT from'} those of the undisturbed run; {settings['dataset']}, "
        f"batch {settings['batch-size']}, {report.steps} steps; {machine(report)}"
    )


def kills(report: Report) -> Cells:
    """Return names and cells of the table of kills, by what was killed."""
    rows: list[Row] = []
    for role in report.kills:
        found = [kill for kill in report.measurements if kill.role == role]
        lost = [kill.lost_s for kill in found if kill.lost_s is not None]
        shown = spread(Spread.of(lost), _seconds) if lost else "-"
        rows.append((role, str(len(found)), str(sum(kill.steps_repeated for kill in found)), shown))
    return ("killed", "times", "steps repeated", "lost by a kill, s"), rows


def notes(report: Report) -> str:
    """Return how to read the table."""
    starting = sum(kill.moment == STARTING for kill in report.measurements)
    unknown = sum(kill.lost_s is None for kill in report.measurements)
    except_for = f" (not known of {unknown} kills)" if unknown else ""
    return (
        f"A run in Flower's simulation on this machine with a checkpoint every {report.settings['checkpoint-every']} "
        f"steps; one process at a time was killed (SIGKILL), {starting} of them while the run was beginning anew after "
        f"the kill before, and `psl train --retries` recovered ({report.restarts} times). {report.steps_repeated} of "
        f"{report.steps} steps were done again; {report.seconds:.0f} s in all, of which {report.seconds_lost:.0f} s "
        f"were lost by kills{except_for}: from a kill to the first step after it or to the next kill, median (lowest "
        "to highest). The undisturbed run is the same network trained in one process on the same batches. Load of the "
        f"machine before: {report.machine['load_before']}."
    )


def command(report: Report) -> str:
    """Return the command line that does the same again."""
    options = ["--kills", str(len(report.measurements)), "--seed", str(report.seed), "--steps", str(report.steps)]
    return again("chaos", options, {})


def _seconds(value: float) -> str:
    return f"{value:.1f}"
