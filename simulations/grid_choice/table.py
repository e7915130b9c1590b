"""The report in words."""

from __future__ import annotations

from psl_flower.config import size_text
from simulations.grid_choice.results import Chosen, Report
from simulations.tables import Cells, Presentation, again, dataset_name, machine


def present(report: Report) -> Presentation:
    """Return the report in words."""
    return Presentation(
        title=f"The patch grid that grid=auto chooses; {machine(report)}",
        tables=(choices(report),),
        notes=notes(report),
        command=again("grid_choice", [word for name in report.datasets for word in ("--dataset", name)], {}),
    )


def choices(report: Report) -> Cells:
    """Return names and cells of the table of choices."""
    head = ("images", "image size", "looked at", "turns of brightness", "patches", "patch size", "stride")
    return head, [
        (
            dataset_name(found.name),
            size_text(found.image_size),
            str(found.num_images),
            f"{found.turns:.1f}",
            f"{found.rows}x{found.cols}",
            size_text(found.patch_size),
            _stride(found),
        )
        for found in report.measurements
    ]


def notes(report: Report) -> str:
    """Return how to read the table, with what a run says of each choice."""
    said = " ".join(f'{dataset_name(found.name)}: "{found.reason}".' for found in report.measurements)
    return (
        "How often brightness turns along a line of an image, on average, decides: from 2, 4 and 8 turns on the "
        "patches overlap or are finer, as far as the images' size allows. The photographs come with scikit-learn. "
        "Busier images get finer patches by the method's rule; that is no claim on accuracy. What a run says: "
        f"{said}"
    )


def _stride(found: Chosen) -> str:
    return "-" if found.stride == found.patch_size else size_text(found.stride)
