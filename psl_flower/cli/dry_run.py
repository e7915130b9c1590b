"""`psl train --dry-run`: what would be trained, and what it takes; nothing is written or started."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import typer

from psl_flower.cli.output import tell
from psl_flower.text import counted, dims, duration

if TYPE_CHECKING:
    from psl_flower.data.account import Account
    from psl_flower.engine.build import Blueprint
    from psl_flower.engine.footprint import Footprint
    from psl_flower.kinds import Kind
    from psl_flower.stores.planned import PlannedStores

# Seen of a process that has imported torch and one of our apps.
_PROGRAM_BYTES = 400_000_000
# Round trips to nodes in another town, country or continent.
_DELAYS_MS = (10, 50, 100)
# Images of this height or width (pixels) train slowly with the stem for small images.
_LARGE_FOR_CIFAR = 48


def dry_run(kind: Kind, nodes: int, as_json: bool) -> None:
    """Print what a run would train.

    `nodes` are the simulated nodes asked for, 0 for what fits. Raises PslError as the run would raise it at its start.
    """
    from psl_flower.engine.build import Blueprint
    from psl_flower.kinds import Train
    from psl_flower.launch.sizing import check_simulated
    from psl_flower.runs.tracking import check_tracker
    from psl_flower.stores.planned import plan_stores
    from psl_flower.system.devices import choose_device

    if not isinstance(kind, Train):
        raise typer.BadParameter("--dry-run shows a training; this run does something else")
    work = kind.find()
    config = work.config
    check_tracker(config)
    check_simulated(config)
    device = choose_device(config.machine.device)
    planned = plan_stores(config)
    description = planned.description
    note = kind.check(work, description)
    blueprint = Blueprint(config, description)
    blueprint.augmentation()  # which the images may not fit
    report = {"run": work.folder.name, "folder": str(work.folder.path), "device": str(device)}
    report |= _report(blueprint, planned, nodes)
    notes = (planned.grid_reason, planned.sizes_note, note)
    tell(report, _lines(report, config.network, planned.account, notes), as_json)


def _report(blueprint: Blueprint, planned: PlannedStores, nodes: int) -> dict[str, Any]:
    """Return the numbers of a training."""
    from psl_flower.engine.footprint import footprint
    from psl_flower.launch.sizing import simulation

    config, description = blueprint.config, blueprint.description
    training = config.training  # in numbers, where the images decide them
    train, test = (len(description.samples_of(split)) for split in ("train", "test"))
    takes = footprint(blueprint, min(training.batch_size, train))
    fitting = simulation(description.num_uppers, num_nodes=nodes, adaptation=config.network.adaptation_server)
    number = int(fitting["num-supernodes"])
    grid = description.grid()
    checkpoints = 1 + 2 * (training.rounds > 1 or config.output.checkpoint_every > 0)
    return {
        "dataset": description.dataset,
        "train_images": train,
        "test_images": test,
        "classes": description.num_classes,
        "image_size": list(description.image_size),
        "channels": description.channels,
        "grid": [grid.rows, grid.cols],
        "patch_size": list(grid.patch_size),
        "stride": list(grid.stride),
        "margin": grid.margin,
        "uppers": description.num_uppers,
        "nodes": number,
        "batch_size": min(training.batch_size, train),
        "lr": training.lr,
        "rounds": training.rounds,
        "steps_per_round": blueprint.steps_per_round,
        "steps": blueprint.schedule().total_steps,
        **_costs(takes, description.num_uppers, number),
        "disk_stores": 0 if planned.exist else planned.num_bytes,
        "disk_run": checkpoints * takes.checkpoint + takes.model * config.output.collect_model + takes.looks,
        "stores": str(planned.folder),
        "stores_exist": planned.exist,
    }


def _costs(takes: Footprint, num_uppers: int, num_nodes: int) -> dict[str, Any]:
    """Return the numbers of a training's weights, of its bytes on the wire and in memory."""
    return {
        "parameters": num_uppers * takes.upper_parameters + takes.lower_parameters,
        "upper_parameters": takes.upper_parameters,
        "lower_parameters": takes.lower_parameters,
        "adaptation_parameters": takes.adaptation_parameters,
        "bytes_up_per_image": takes.up_per_image,
        "bytes_down_per_image": takes.down_per_image,
        "bytes_up_in_all": takes.up_in_all,
        "bytes_down_in_all": takes.down_in_all,
        "round_trips": takes.round_trips,
        "memory_of_a_node": max(takes.upper_memory) * -(-num_uppers // num_nodes),
        "memory_of_the_server": takes.lower_memory,
        "memory": sum(takes.upper_memory) + takes.lower_memory + (num_nodes + 1) * _PROGRAM_BYTES,
    }


def _lines(report: Mapping[str, Any], network: Any, account: Account | None, notes: tuple[str, ...]) -> Iterator[str]:
    from rich.filesize import decimal

    yield from account.lines() if account is not None else ()
    yield from filter(None, notes)
    yield (
        f"images      {report['train_images']} to train, {report['test_images']} to test, "
        f"{dims(report['image_size'])}, {counted(report['channels'], 'channel')}, "
        f"{counted(report['classes'], 'class')}"
    )
    overlap = f", stride {dims(report['stride'])}" if report["stride"] != report["patch_size"] else ""
    overlap += f", margin {counted(report['margin'], 'pixel')}" if report["margin"] else ""
    yield (
        f"grid        {dims(report['grid'])} patches of {dims(report['patch_size'])}{overlap}, for "
        f"{counted(report['uppers'], 'Upper')} on {counted(report['nodes'], 'simulated node')}"
    )
    beside = f", with {counted(network.context, 'pixel')} beside each patch" if network.context else ""
    stem = network.stem_for(report["image_size"])
    # At full resolution feature maps of larger images are many times as large: in bytes, and in computing.
    slow = stem == "cifar" and max(report["image_size"]) >= _LARGE_FOR_CIFAR and network.cut != "pool"
    hint = "; stem=imagenet is faster: its feature maps are a sixteenth of the size" if slow else ""
    yield (
        f"network     {network.name}, {stem} stem, cut after {network.cut}{beside}: "
        f"{report['parameters']:,} parameters ({report['uppers']} x {report['upper_parameters']:,} Upper, "
        f"{report['lower_parameters']:,} Lower); Adaptation Net {report['adaptation_parameters']:,}{hint}"
    )
    yield (
        f"training    {counted(report['rounds'], 'round')} of {counted(report['steps_per_round'], 'step')}, "
        f"{report['steps']} in all, {counted(report['batch_size'], 'image')} each, lr {report['lr']:g}, on "
        f"{report['device']}"
    )
    yield (
        f"wire        {decimal(round(report['bytes_up_per_image']))} up and "
        f"{decimal(round(report['bytes_down_per_image']))} down per image and step, all Uppers together"
    )
    yield from _cost_lines(report)
    stores = "there already" if report["stores_exist"] else decimal(report["disk_stores"])
    yield f"disk        patch stores {stores} ({report['stores']}); run {decimal(report['disk_run'])} at most"
    yield f"run         {report['folder']} (not made: this was a dry run)"


def _cost_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a training costs in bytes, round trips and memory."""
    from rich.filesize import decimal

    up, down = round(report["bytes_up_in_all"]), round(report["bytes_down_in_all"])
    each = decimal(round((up + down) / report["train_images"]))
    yield f"in all      {decimal(up)} up and {decimal(down)} down, {each} for each training image"
    trips = report["round_trips"]
    waits = ", ".join(f"{duration(trips * delay_ms / 1000)} at {delay_ms} ms" for delay_ms in _DELAYS_MS)
    yield f"delays      {counted(trips, 'round trip')} to the nodes: {waits} each, besides computing and sending"
    yield (
        f"memory      about {decimal(report['memory'])} in all: {decimal(report['memory_of_the_server'])} for the "
        f"server's tensors, {decimal(report['memory_of_a_node'])} for a node's, {decimal(_PROGRAM_BYTES)} for each of "
        f"{report['nodes'] + 1} programs"
    )
