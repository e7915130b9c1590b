"""The command: from its arguments to report, tables, plots and page."""

from __future__ import annotations

import argparse
import importlib.util
import signal
from collections.abc import Callable, Sequence
from typing import TypeVar

from psl_flower.baselines.fedavg import PARTITIONS, STRATEGIES
from psl_flower.config import RunConfig
from psl_flower.errors import ConfigError, PslError, RunError
from psl_flower.system.files import make_folder
from simulations import reports
from simulations.command_line import checked, count, exit_status, new_benchmark_parser
from simulations.compare import study, table
from simulations.compare.methods import CHOICES, Choice, grid_texts, read_grid, read_variant
from simulations.compare.results import ENGINES
from simulations.progress import Progress
from simulations.settings import merge
from simulations.tables import show

Value = TypeVar("Value")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status, see `exit_status`."""
    parser = make_parser()
    return exit_status(lambda: _compare(parser.parse_args(arguments), parser))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = new_benchmark_parser(
        "compare",
        "Train the same network on the same images by patch-split learning, on whole images in one process, and by "
        "federated averaging of whole images, and put side by side what they reach and what they cost.",
        folder="comparison",
    )
    add = parser.add_argument
    add("--methods", type=_list(_of(CHOICES)), default=("whole", "patch-split", "fedavg"), metavar="LIST",
        help=f"of {','.join(CHOICES)} [whole,patch-split,fedavg]")  # fmt: skip
    add("--grids", type=_list(read_grid), default=(), metavar="LIST",
        help="patch/stride in pixels, such as 16x16,16x16/8x8 [2x2 patches; the same overlapping by half]")  # fmt: skip
    add("--alphas", type=_list(_number), default=(0.0, 1.0), metavar="LIST",
        help="weights of the Adaptation Net's loss, 0 without it [0,1]")  # fmt: skip
    add("--variants", type=_list(_variant), default=(), metavar="LIST",
        help="patch-split learning also with these settings, such as flip=true,cutout=8+mixup=0.2 [none]")  # fmt: skip
    add("--partitions", type=_list(_of(PARTITIONS)), default=PARTITIONS, metavar="LIST",
        help="how averaging's clients share the images [iid,dirichlet]")  # fmt: skip
    add("--dirichlet-alpha", type=_number, default=0.5, help="the smaller, the more clients' classes differ [0.5]")
    add("--clients", type=int, default=0, help="of averaging [as many as the first grid has patches]")
    add("--local-epochs", type=count, default=1, help="passes of a client in a round of averaging [1]")
    add("--proximal-mu", type=_number, default=0.01, help="weight of FedProx' proximal term [0.01]")
    add("--server-lr", type=_number, default=0.01, help="FedAdam's learning rate on the server [0.01]")
    add("--seeds", type=_list(_seed), default=(0,), metavar="LIST", help="every method is trained with each [0]")
    add("--epochs", type=count, default=5, help="passes over the training images [5]")
    add("--evaluations", type=count, default=1, help="in an epoch, at most [1]")
    add("--max-train", type=int, default=0, help="training images, drawn by the seed; 0: all [0]")
    add("--max-test", type=int, default=0, help="test images, likewise [0]")
    add("--engine", choices=ENGINES, default="flwr",
        help="patch-split learning: through flwr run, or without Flower: by the same engine in one process, or as one "
        "graph, which is fastest on a GPU [flwr]")  # fmt: skip
    add("--absent", action="store_true", help="with --engine one-graph: also accuracy without some Uppers")
    add("--target", type=_share, help="accuracy, 0 to 1, of which the epochs are counted [nine tenths of what the "
        "whole image augmented by patches comes to, or without it the mean of all that is trained]")  # fmt: skip
    return parser


def read_config(given: argparse.Namespace) -> RunConfig:
    """Return the settings that all methods share; raises ConfigError as `merge`."""
    if given.epochs % given.local_epochs:
        raise ConfigError(
            f"--local-epochs: {given.epochs} epochs are no whole number of rounds of {given.local_epochs}"
        )
    if given.absent and given.engine != "one-graph":
        raise ConfigError("--absent goes with --engine one-graph")
    config = merge({"dataset": given.dataset}, given.settings, study.DECIDED, study.DEFAULTS)
    return config.replace(max_train=given.max_train, max_test=given.max_test)


def read_options(given: argparse.Namespace) -> study.Options:
    """Return the rest."""
    choice = Choice(
        methods=given.methods, grids=given.grids, alphas=given.alphas, variants=given.variants,
        partitions=given.partitions, dirichlet_alpha=given.dirichlet_alpha, clients=given.clients,
        local_epochs=given.local_epochs, proximal_mu=given.proximal_mu, server_lr=given.server_lr,
    )  # fmt: skip
    return study.Options(
        choice=choice, seeds=given.seeds, epochs=given.epochs, evaluations=given.evaluations, engine=given.engine,
        absent=given.absent, target=given.target, told=_told(given),
    )  # fmt: skip


def _compare(given: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    config = checked(read_config, given, parser)
    options, folder = read_options(given), given.out.absolute()
    _check_installed(options)
    make_folder(folder, RunError)
    from simulations.compare.files import write_files  # loads matplotlib

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Progress() as progress:
            compared = study.Study(config, options, folder, progress)
            report = compared.run()
            holdings = compared.holdings()
    finally:
        signal.signal(signal.SIGTERM, before)
    page = write_files(folder, report, holdings)
    if given.json:
        print(reports.encode(report).decode())
    else:
        show(table.present(report))
        print(f"\nReport, tables, plots and page: {page}")


def _check_installed(options: study.Options) -> None:
    """Refuse what could not be done before hours are spent; RunError says so."""
    averaging = any(name in STRATEGIES for name in options.choice.methods)
    flower = averaging or ("patch-split" in options.choice.methods and options.engine == "flwr")
    needed = ["matplotlib", *["flwr_datasets"] * averaging, *["flwr", "ray"] * flower]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise RunError(
            f"{', '.join(missing)}: not installed; install the extra: pip install 'psl-flower[compare]'. "
            "Without Flower: --methods whole,patch-split --engine one-graph"
        )


def _told(given: argparse.Namespace) -> dict[str, str]:
    """Return the options that are not as they are unless asked for, in words; the epochs in any case."""
    usual = _words(make_parser().parse_args([]))
    return {name: word for name, word in _words(given).items() if word != usual[name] or name == "epochs"}


def _words(given: argparse.Namespace) -> dict[str, str]:
    return {
        "methods": ",".join(given.methods),
        "grids": grid_texts(given.grids),
        "alphas": ",".join(f"{alpha:g}" for alpha in given.alphas),
        "variants": ",".join(given.variants),
        "partitions": ",".join(given.partitions),
        "dirichlet-alpha": f"{given.dirichlet_alpha:g}",
        "clients": str(given.clients),
        "local-epochs": str(given.local_epochs),
        "proximal-mu": f"{given.proximal_mu:g}",
        "server-lr": f"{given.server_lr:g}",
        "seeds": ",".join(map(str, given.seeds)),
        "epochs": str(given.epochs),
        "evaluations": str(given.evaluations),
        "max-train": str(given.max_train),
        "max-test": str(given.max_test),
        "engine": given.engine,
        "absent": "" if given.absent else "no",
        "target": "" if given.target is None else f"{given.target:g}",
    }


def _list(read: Callable[[str], Value]) -> Callable[[str], tuple[Value, ...]]:
    """Return a reader of values with commas between, none of them twice."""

    def read_all(text: str) -> tuple[Value, ...]:
        try:
            values = tuple(read(part) for part in text.split(",") if part)
        except PslError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        if not values or len(set(values)) < len(values):
            raise argparse.ArgumentTypeError(f"expected one value or more, none of them twice, got {text!r}")
        return values

    return read_all


def _of(choices: Sequence[str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"expected some of {','.join(choices)}, got {text!r}")
        return text

    return read


def _variant(text: str) -> str:
    read_variant(text)
    return text


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of 0 or more, got {text!r}")
    return number


def _share(text: str) -> float:
    share = _number(text)
    if share > 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, such as 0.94, got {text!r}")
    return share


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"expected a whole number of 0 or more, got {text!r}")
    return int(text)
