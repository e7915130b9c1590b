"""Commands for trained models: predict, evaluate, export. A prediction in place is `psl_flower.cli.in_place`."""

from __future__ import annotations

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from psl_flower.cli.evaluated_by_nodes import evaluated_by_the_nodes
from psl_flower.cli.output import Json, RunArgument, RunName, Workspace, find_run, percent, print_table, run_named, say
from psl_flower.cli.progress import Progress
from psl_flower.cli.reading import given_settings
from psl_flower.cli.scores import print_scores, scores_json
from psl_flower.text import OnProgress, counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psl_flower.data.account import LeftOutTally
    from psl_flower.data.pixels import Decoder, Pixels
    from psl_flower.engine.rounds import Predictions
    from psl_flower.errors import PslError
    from psl_flower.inference.evaluation import LabelledImages
    from psl_flower.inference.trained_model import TrainedModel
    from psl_flower.runs.folder import RunFolder

_BATCH = 64


class _Format(StrEnum):
    TORCH = "torch"
    ONNX = "onnx"


def predict(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Images, and folders of images; with --in-place: the run.")
    ] = None,
    run: RunName = "",
    workspace: Workspace = "",
    top: Annotated[int, typer.Option(min=1, help="Classes shown for each image, the most likely first.")] = 3,
    in_place: Annotated[
        bool,
        typer.Option(
            "--in-place",
            help="Instead of files: classify the dataset's images by RUN's model on its nodes, which keep weights and "
            "patches.",
        ),
    ] = False,
    split: Annotated[str, typer.Option(help="With --in-place: the images of the test or of the train split.")] = "test",
    image: Annotated[
        list[str] | None, typer.Option(help="With --in-place: image, as 17 or test:17, or a file of them; repeatable.")
    ] = None,
    without: Annotated[str, typer.Option(help="With --in-place: Uppers to do without, such as 0,3.")] = "",
    light: Annotated[
        bool, typer.Option("--light", help="With --in-place: by the light model that psl lighten has put in place.")
    ] = False,
    nodes: Annotated[int, typer.Option(min=0, help="With --in-place: simulated nodes; 0: what fits.")] = 0,
    as_json: Json = False,
) -> None:
    """Classify images. Unreadable images are errors, reported at the end; the others are classified.

    With --in-place nothing is assembled: a Flower run, in a simulation on this machine, asks the nodes.
    """
    if in_place:
        if len(files or ()) > 1:
            raise typer.BadParameter("--in-place takes a run and predicts images of its dataset; leave files out")
        from psl_flower.cli.in_place import predict_in_place

        asked: dict[str, object] = {
            "predict-split": split,
            "predict-images": ",".join(image or ()),
            "predict-without": without,
            "predict-light": light,
        }
        name = run_named("".join(map(str, files or ())), run)
        predict_in_place(find_run(name, workspace, with_model=False).name, workspace, asked, nodes, as_json)
        return
    if not files:
        raise typer.BadParameter("name images or folders of images, or a run with --in-place")
    if image or without or light or nodes or split != "test":
        raise typer.BadParameter("--split, --image, --without, --light and --nodes go with --in-place")
    from psl_flower.runs.folder import CONFIG_FILE

    folder, trained = _load(run, workspace)
    for given in files:
        if not given.exists() and (folder.path.parent / given / CONFIG_FILE).is_file():
            raise typer.BadParameter(f"{given} is a run, and files are expected here; name it with --run {given}")
    _predict_files(folder.name, trained, files, top, as_json)


def _predict_files(name: str, trained: TrainedModel, files: Sequence[Path], top: int, as_json: bool) -> None:
    from psl_flower.data.account import LeftOutTally
    from psl_flower.errors import PslError

    decoder = trained.decoder()
    answers: list[dict[str, Any]] = []
    paths: list[Path] = []
    left_out = LeftOutTally()
    for given in files:
        try:
            paths += _images_in(given, left_out)
        except PslError as error:
            answers.append(_refusal(given, error))
    with Progress(enabled=len(paths) > _BATCH) as progress:
        for start in range(0, len(paths), _BATCH):
            batch = paths[start : start + _BATCH]
            answers += _predict_batch(trained, decoder, batch, top)
            progress.steps("predict", start + len(batch), len(paths))
    if as_json:
        passed = [msgspec.to_builtins(entry) for entry in left_out.entries()]
        notes = decoder.notes.sentences()
        typer.echo(json.dumps({"run": name, "images": answers, "left_out": passed, "notes": notes}))
    else:
        _print_predictions(answers)
        for line in (*left_out.lines(), *(f"note: {note}" for note in decoder.notes.sentences())):
            say(line, err=True)
    if any("error" in answer for answer in answers):
        raise typer.Exit(1)


def _check_size(asked: tuple[int, int], trained: TrainedModel) -> None:
    """Raise ConfigError if images are to have another size than the model's, to which they are always brought."""
    from psl_flower.config import size_text
    from psl_flower.errors import ConfigError

    if asked not in ((0, 0), trained.description.image_size):
        size = size_text(trained.description.image_size)
        raise ConfigError(f"image-size: {size_text(asked)} is given, but the model takes {size}; leave it out")


def evaluate(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="The run [the newest that has a model]; with --dataset also how to read it, such as read-as=tables.",
            metavar="[RUN] [KEY=VALUE]...",
        ),
    ] = None,
    run: RunName = "",
    workspace: Workspace = "",
    dataset: Annotated[str, typer.Option(help="Another dataset, with classes that the run knows.")] = "",
    max_test: Annotated[int, typer.Option(min=0, help="Largest number of test images; 0: all.")] = 0,
    image_column: Annotated[str, typer.Option(help="With --dataset: its column of images [the run's].")] = "",
    label_column: Annotated[str, typer.Option(help="With --dataset: its column of classes [the run's].")] = "",
    absent_curve: Annotated[
        bool, typer.Option("--absent-curve", help="Instead: accuracy without one Upper, without two, and so on.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="With --absent-curve: folder of absent.csv and .png [the run's].")
    ] = None,
    table: Annotated[
        Path | None, typer.Option("--csv", help="Also write scores by class and the confusion matrix to this file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a trained model on the test split of its dataset, or of another.

    On the server of a federation, which has no patches, shows the last results of nodes and server: those from the end
    of the run, or of a later prediction in place.
    """
    if table and absent_curve:
        raise typer.BadParameter("--csv does not go with --absent-curve, which writes its own absent.csv")
    if out and not absent_curve:
        raise typer.BadParameter("--out goes with --absent-curve")
    names, settings = ([word for word in words or () if ("=" in word) == is_setting] for is_setting in (False, True))
    if len(names) > 1:
        raise typer.BadParameter(f"expected one run and KEY=VALUE, got {' '.join(names)}")
    if (image_column or label_column or settings) and not dataset:
        raise typer.BadParameter("--image-column, --label-column and KEY=VALUE go with --dataset")
    name = run_named("".join(names), run)
    if not dataset and not absent_curve and evaluated_by_the_nodes(name, workspace, as_json, table):
        return
    from psl_flower.inference import evaluation

    folder, trained = _load(name, workspace)
    with Progress() as progress:
        if dataset:
            options = {"image_column": image_column, "label_column": label_column, "max_test": max_test or None}
            given = given_settings(settings, options, ("image_size",))
            _check_size(given.pop("image_size", (0, 0)), trained)
            images = evaluation.other_test_images(trained, dataset, given.pop("max_test", 0), **given)
        else:
            images = evaluation.own_test_images(folder, trained, max_test, progress.steps)
        if absent_curve:
            _evaluate_absence(folder, trained, images, out or folder.path, progress.steps, as_json)
            return
        answers = evaluation.evaluate(trained, images, progress.steps)
    _tell_evaluation(folder, trained, images, answers, table, as_json)


def _tell_evaluation(
    folder: RunFolder,
    trained: TrainedModel,
    images: LabelledImages,
    answers: Predictions,
    table: Path | None,
    as_json: bool,
) -> None:
    from psl_flower.engine.classification_scores import scores
    from psl_flower.inference.class_table import write_class_table
    from psl_flower.runs.history import last_accuracy

    found, class_names = scores(answers), trained.description.class_names
    if table:
        write_class_table(found, class_names, table)
    report = {
        "run": folder.name,
        "dataset": images.dataset,
        "images": images.num_images,
        "accuracy": answers.accuracy,
        "loss": answers.loss,
        "run_accuracy": last_accuracy(folder),
        **scores_json(found, class_names),
    }
    if images.account is not None:
        report["account"] = msgspec.to_builtins(images.account)
    if as_json:
        typer.echo(json.dumps(report))
    else:
        for line in images.account.lines() if images.account is not None else ():
            say(line)
        say(f"{folder.name}: {counted(images.num_images, 'test image')} of {images.dataset}")
        before = percent(report["run_accuracy"])
        say(f"accuracy {percent(answers.accuracy)} (at the end of the run: {before}), loss {answers.loss:.4f}")
        print_scores(found, class_names)
        if table:
            say(str(table))


def export(
    to: Annotated[_Format, typer.Option("--format", help="For torch.export.load, or for ONNX.")],
    name: RunArgument = "",
    run: RunName = "",
    workspace: Workspace = "",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write [RUN.pt2 or RUN.onnx].")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Export a trained model as one file, and check that its outputs agree with the model's."""
    from rich.filesize import decimal

    from psl_flower.errors import ConfigError
    from psl_flower.inference.export import EXPORTERS

    folder, trained = _load(run_named(name, run), workspace)
    ending, write = EXPORTERS[to]
    target = out or Path(f"{folder.name}{ending}")
    if target.is_file() and not force:
        raise ConfigError(f"{target} exists already; name a new file with --out, or replace it with --force")
    with Progress() as progress:
        progress.begin(f"exporting for {to}")
        exported = write(trained, target)
    if as_json:
        report = {"run": folder.name, "format": to, "file": str(exported.path), "bytes": exported.num_bytes}
        differences = {"difference": exported.difference, "relative_difference": exported.relative_difference}
        typer.echo(json.dumps(report | differences))
        return
    say(
        f"{exported.path}: {decimal(exported.num_bytes)}; its logits differ by {exported.difference:.1e} at most "
        f"from the trained network's ({exported.relative_difference:.1e} of the largest)"
    )


def _load(run: str, workspace: str) -> tuple[RunFolder, TrainedModel]:
    from psl_flower.inference.trained_model import load_trained_model
    from psl_flower.system.devices import choose_device

    folder = find_run(run, workspace)
    return folder, load_trained_model(folder, choose_device("auto"))


def _images_in(given: Path, left_out: LeftOutTally) -> list[Path]:
    """Return the file itself, or the images in a folder and all folders in it; the other files go to the tally.

    Raises
    ------
    DataError
        If the folder cannot be listed or holds no image.
    """
    from psl_flower.data.image_folder import find_images
    from psl_flower.errors import DataError

    if not os.path.isdir(given):
        return [given]
    found, folder = find_images(given)
    for entry in folder.entries():
        left_out.add(entry.reason, given / entry.example, entry.count, ending=entry.ending)
    if not found:
        raise DataError(f"{given}: no images in this folder")
    return found


def _predict_batch(trained: TrainedModel, decoder: Decoder, paths: Sequence[Path], top: int) -> list[dict[str, Any]]:
    """Return, for each file, its likeliest classes or its error."""
    from psl_flower.data.files import read_image_file
    from psl_flower.errors import PslError
    from psl_flower.text import printable

    answers: dict[Path, dict[str, Any]] = {}
    decoded: dict[Path, Pixels] = {}
    for path in paths:
        try:
            where = printable(path)
            decoded[path] = decoder.file(read_image_file(path, where), where)
        except PslError as error:
            answers[path] = _refusal(path, error)
    if decoded:
        for path, prediction in zip(decoded, trained.predict(decoded.values()), strict=True):
            likeliest = [{"class": name, "probability": probability} for name, probability in prediction.top(top)]
            answers[path] = {"file": str(path), "classes": likeliest}
    return [answers[path] for path in paths]


def _refusal(path: Path, error: PslError) -> dict[str, Any]:
    return {"file": str(path), "error": str(error)}


def _print_predictions(answers: Sequence[dict[str, Any]]) -> None:
    for answer in answers:
        if "error" in answer:
            say(f"error: {answer['error']}", err=True)
        else:
            likeliest = ", ".join(f"{entry['class']} {entry['probability']:.1%}" for entry in answer["classes"])
            say(f"{answer['file']}: {likeliest}")


def _evaluate_absence(
    folder: RunFolder,
    trained: TrainedModel,
    images: LabelledImages,
    out: Path,
    progress: OnProgress,
    as_json: bool,
) -> None:
    from dataclasses import asdict

    from psl_flower.inference.absence import absence_curve, write_csv, write_png

    points = absence_curve(trained, images, progress)
    files = [out / "absent.csv", out / "absent.png"]
    write_csv(points, files[0])
    write_png(points, files[1], f"{folder.name}, {counted(images.num_images, 'image')} of {images.dataset}")
    if as_json:
        report = {"run": folder.name, "dataset": images.dataset, "images": images.num_images}
        typer.echo(json.dumps(report | {"absent": [asdict(p) for p in points], "files": list(map(str, files))}))
        return
    say(f"{folder.name}: {counted(images.num_images, 'test image')} of {images.dataset}")
    rows = [
        (str(p.absent), percent(p.accuracy), percent(p.lowest), percent(p.highest), f"{p.tried} of {p.possible}")
        for p in points
    ]
    print_table([("absent Uppers", "accuracy", "lowest", "highest", "choices of them"), *rows])
    for file in files:
        say(str(file))
