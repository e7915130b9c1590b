"""The page of an audit: the verdict, originals beside what was rebuilt, and the figures; one file, no network needed.

Shape suffixes: N images, C channels, H and W pixels.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from PIL import Image

from psl_flower.errors import RunError
from psl_flower.leakage.complete import Pictures
from psl_flower.leakage.report import Leakage
from psl_flower.runs.html import document, filled
from psl_flower.system.files import write_file

_STYLE = """
.verdict { padding: .75rem 1rem; background: #f6f7f8; border-left: .3rem solid #0072b2; }
figure { margin: 0 0 .75rem; }
figcaption { font-size: .9rem; color: #555; }
table { white-space: nowrap; }
img { display: block; width: 100%; image-rendering: pixelated; }
"""
_BODY = """<h1>What run {{ report.run }} gives away</h1>
<p class="verdict">{{ lines[0] }}{% if report.reduced %} {{ report.reduced }}{% endif %}</p>
<h2>Originals and what was rebuilt</h2>
<p>Images of {{ report.dataset }} that no decoder was trained on. The attacked ones are not shown.</p>
{% for title, source in pictures %}<figure><figcaption>{{ title }}</figcaption>
<img alt="{{ title }}" src="data:image/png;base64,{{ source }}"></figure>
{% endfor %}<h2>Attackers</h2>
<div class="scroll"><table><tr>{% for cell in rows[0] %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in rows[1:] %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
<h2>How to read this</h2>
{% for line in lines[1:] %}<p>{{ line }}</p>
{% endfor %}"""


def write(folder: Path, report: Leakage, pictures: Sequence[Pictures]) -> tuple[dict[str, Any], Path]:
    """Write report.json and page.html to a folder; return the JSON report and the page's path."""
    content = msgspec.to_builtins(report) | {"verdict": report.verdict, "reduced": report.reduced}
    write_file(folder / "report.json", json.dumps(content, indent=1).encode() + b"\n", RunError, parents=True)
    write_file(folder / "page.html", render(report, pictures).encode(), RunError)
    return content, folder / "page.html"


def render(report: Leakage, pictures: Sequence[Pictures], zoom: int = 3) -> str:
    """Return the page; each pixel of an image is `zoom` pixels wide where there is room."""
    shown = [(title, base64.b64encode(row_png(images_NCHW, zoom)).decode()) for title, images_NCHW in pictures]
    N, _, _, W = pictures[0].images_NCHW.shape
    body = filled(_BODY, report=report, lines=report.lines(), rows=report.rows(), pictures=shown)
    return document(f"What run {report.run} gives away", body, f"{_STYLE}img {{ max-width: {N * W * zoom}px; }}\n")


def row_png(images_NCHW: torch.Tensor, zoom: int) -> bytes:
    """Return a PNG of images side by side, pixels in 0..1, each enlarged `zoom` times."""
    N, C, H, W = images_NCHW.shape
    pixels = (images_NCHW.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    joined = pixels.transpose(2, 0, 3, 1).reshape(H, N * W, C)
    picture = Image.fromarray(np.ascontiguousarray(joined[:, :, 0] if C == 1 else joined))
    file = BytesIO()
    picture.resize((N * W * zoom, H * zoom), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()
