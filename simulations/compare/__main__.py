"""The command: from its arguments to report, tables, plots and page; `python -m simulations.compare`."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Mapping

from psl_flower.baselines.fedavg import STRATEGIES
from psl_flower.errors import RunError
from psl_flower.system.folders import make_folder
from simulations import reports
from simulations.command_line import Benchmark, checked, ended_by_sigterm
from simulations.compare import study
from simulations.compare.methods import Options
from simulations.compare.results import DEFAULTS
from simulations.progress import Progress
from simulations.tables import show


class Comparison(Benchmark[Options]):
    """The benchmark, which writes a folder."""

    name, options, decided, defaults, folder = "compare", Options, study.DECIDED, DEFAULTS, "comparison"
    about = (
        "Train the same network on the same images by patch-split learning, on whole images in one process, and by "
        "federated averaging of whole images, and compare accuracy and cost."
    )

    def settings_of(self, options: Options) -> Mapping[str, object]:
        """Return the settings that follow from the options."""
        return {"max-train": options.max_train, "max-test": options.max_test}

    def run(self, given: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
        """Compare, and write report, tables, plots and page."""
        config, options = checked(self.read, given, parser)
        _check_installed(options)
        folder = given.out.absolute()
        make_folder(folder, RunError)
        from simulations.compare.files import write_files  # loads matplotlib

        with ended_by_sigterm(), Progress() as progress:
            compared = study.Study(config, options, folder, progress)
            report = compared.run()
            holdings = compared.holdings()
        page = write_files(folder, report, holdings)
        if given.json:
            print(reports.encode(report).decode())
        else:
            show(report)
            print(f"\nReport, tables, plots and page: {page}")


def _check_installed(options: Options) -> None:
    """Refuse what could not be done before hours are spent; RunError says so."""
    averaging = any(name in STRATEGIES for name in options.methods)
    flower = averaging or ("patch-split" in options.methods and options.engine == "flwr")
    needed = ["matplotlib", *["flwr_datasets"] * averaging, *["flwr", "ray"] * flower]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise RunError(
            f"{', '.join(missing)}: not installed; install the extra: pip install 'psl-flower[compare]'. "
            "Without Flower: --methods whole,patch-split --engine one-graph"
        )


BENCHMARK = Comparison()

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
