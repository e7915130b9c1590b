"""The page of a run: one HTML file with its curves, confusion matrix and settings, readable without a network."""

from __future__ import annotations

import warnings
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.filesize import decimal

from psl_flower.runs.html import document, filled
from psl_flower.runs.summary import Summary
from psl_flower.system.machine import require_packages
from psl_flower.text import counted, duration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# With more classes the cells of a confusion matrix could not be read.
_MOST_CLASSES = 30
_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#dddddd"

_STYLE = """
body { max-width: 62rem; }
td.number { text-align: right; }
svg { display: block; max-width: 100%; height: auto; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
"""
_BODY = """<h1>Run {{ run.name }}</h1>
<p>{{ about }}</p>
<div class="scroll"><table>
{% for name, value in figures %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</table></div>
<h2>Loss and accuracy</h2>
{{ curves | safe }}
{% if confusion %}<h2>Test images by class and prediction</h2>
{{ confusion | safe }}
{% elif run.confusion_KK is not none %}<p>With {{ run.description.num_classes }} classes the confusion matrix is left \
out; psl evaluate --csv writes it.</p>
{% endif %}
{% if worst %}<h2>Surest mistakes</h2>
<p>Pictures are on the nodes and with the owner alone. Restorers can look at these: psl restore --wrong-only \
{{ run.name }}.</p>
<div class="scroll"><table><tr><th>image</th><th>labelled</th><th>predicted</th><th>probability</th></tr>
{% for row in worst %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% endif %}
<h2>Time by part</h2>
<div class="scroll"><table><tr><th>part</th><th>of a step, ms</th></tr>
{% for name, value in parts %}<tr><td>{{ name }}</td><td class="number">{{ value }}</td></tr>
{% endfor %}</table></div>
<h2>Who saw what</h2>
<div class="scroll"><table><tr><th>party</th><th>sees</th></tr>
{% for party, view in views %}<tr><td>{{ party }}</td><td>{{ view }}</td></tr>
{% endfor %}</table></div>
<h2>Settings that differ from the defaults</h2>
<div class="scroll"><table>
{% for key, value in run.changed.items() %}<tr><td><code>{{ key }}</code></td><td>{{ value }}</td></tr>
{% endfor %}</table></div>
<h2>Again</h2>
<pre>{{ run.command }}</pre>
"""


def render(run: Summary) -> str:
    """Return the page; raises ConfigError if matplotlib is not installed."""
    require_packages("a page", "plots", "matplotlib")
    classes = run.description.class_names
    confusion = run.confusion_KK is not None and len(classes) <= _MOST_CLASSES
    body = filled(
        _BODY,
        run=run,
        about=_about(run),
        figures=_figures(run),
        curves=_svg(_curves(run)),
        confusion=_svg(_confusion(run)) if confusion else "",
        worst=[
            (run.description.name_of(m.image), classes[m.label], classes[m.predicted], f"{m.confidence:.1%}")
            for m in run.worst
        ],
        parts=[(name, _milliseconds(run, key)) for name, key in _PARTS],
        views=_views(run),
    )
    return document(f"Run {run.name}", body, _STYLE)


_PARTS = (
    ("whole step", "step_s"),
    ("slowest node", "upper_s"),
    ("server", "lower_s"),
    ("moving bytes and waiting", "wire_s"),
)


def _about(run: Summary) -> str:
    description = run.description
    train, test = (len(description.samples_of(split)) for split in ("train", "test"))
    (height, width), grid = description.image_size, description.grid()
    return (
        f"{description.dataset}: {train} training and {test} test images of {height}x{width}, "
        f"{description.num_classes} classes; {grid.rows}x{grid.cols} patches on {description.num_uppers} nodes. "
        f"State: {run.state}{f': {run.reason}' if run.reason else ''}."
    )


def _figures(run: Summary) -> list[tuple[str, str]]:
    def shown(key: str, form: str) -> str:
        value = run.last(key)
        return "-" if value is None else format(value, form)

    return [
        ("test accuracy", shown("accuracy", ".2%")),
        ("balanced accuracy", shown("balanced_accuracy", ".2%")),
        ("macro F1", shown("macro_f1", ".4f")),
        ("test loss", shown("test_loss", ".4f")),
        ("rounds, steps", f"{shown('round', '.0f')}, {shown('step', '.0f')}"),
        ("time", duration(run.total("seconds"))),
        ("rate", f"{shown('images_per_s', '.0f')} images/s"),
        ("up from all nodes", decimal(int(run.total("bytes_up")))),
        ("down to all nodes", decimal(int(run.total("bytes_down")))),
    ]


def _views(run: Summary) -> list[tuple[str, str]]:
    count, settings = run.description.num_uppers, run.settings
    protection = settings["protection"]
    hidden = (
        "which can be inverted at the usual cut"
        if protection == "none"
        else f"protected by {protection}; psl leak measures what they give away"
    )
    margin = run.description.margin
    beside = f", with {counted(margin, 'pixel')} around each" if margin else ""
    views = [
        (
            f"each of {count} nodes",
            f"its own patch positions of every image{beside}; no labels, no other node's patches; gradients of its "
            "features",
        ),
        ("the server", f"labels; features of all patches, {hidden}; no pixels"),
    ]
    if settings["looks"]:
        views.append(("the server, in frozen rounds", f"{settings['looks']} views of each image, which it keeps"))
    if settings["average-every"]:
        views.append(("the server, too", "every node's weights, since nodes are averaged"))
    if settings["adaptation-server"]:
        views.append(("the node of the Adaptation Net", "labels, and features of all patches"))
    views.append(("this machine, in a simulation", "everything: the keys of all parties lie in the workspace"))
    return views


def _milliseconds(run: Summary, key: str) -> str:
    values = [row[key] for row in run.rounds if row.get(key) is not None]
    return f"{1000 * float(np.mean(values)):.1f}" if values else "-"


def _curves(run: Summary) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8.4, 3.1), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, label, lines in (
        (left, "loss", (("loss", "training", _BLUE), ("test_loss", "test", _ORANGE))),
        (right, "accuracy, %", (("train_accuracy", "training", _BLUE), ("accuracy", "test", _ORANGE))),
    ):
        for key, name, colour in lines:
            points = [(row["round"], row[key]) for row in run.rounds if row.get(key) is not None]
            scale = 100 if axes is right else 1
            rounds, values = [r for r, _ in points], [scale * value for _, value in points]
            axes.plot(rounds, values, label=name, color=colour, marker="o", markersize=3)
        axes.set(xlabel="round", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color=_GREY)
        axes.legend()
    return figure


def _confusion(run: Summary) -> Figure:
    from matplotlib.figure import Figure

    assert run.confusion_KK is not None
    names, counts_KK = run.description.class_names, run.confusion_KK
    size = 2.2 + 0.42 * len(names)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.add_subplot()
    shares_KK = counts_KK / np.maximum(1, counts_KK.sum(1, keepdims=True))
    axes.imshow(shares_KK, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts_KK):
        if count:
            colour = "white" if shares_KK[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=colour)
    axes.set(xlabel="predicted", ylabel="labelled")
    axes.set_xticks(range(len(names)), [_literal(name) for name in names], rotation=90)
    axes.set_yticks(range(len(names)), [_literal(name) for name in names])
    return figure


def _literal(name: str) -> str:
    """Escape what matplotlib would take for mathematics."""
    return name.replace("$", r"\$")


def _svg(figure: Any) -> str:
    import matplotlib

    text = StringIO()
    # Text stays text, and the file does not depend on when it was made.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "psl"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # the reader's fonts count, not those of this machine
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
