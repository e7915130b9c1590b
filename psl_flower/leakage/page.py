"""The page of an audit: the verdict, originals beside what was rebuilt, and the figures; one file, no network needed.

Shape suffixes: N images, C channels, H and W pixels.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO

import jinja2
import numpy as np
import torch
from PIL import Image

from psl_flower.leakage.complete import Pictures
from psl_flower.leakage.report import Leakage

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>What run {{ report.run }} gives away</title>
<style>
:root { color-scheme: light; }
body { margin: 0 auto; padding: 1.25rem 1rem 3rem; max-width: 72rem; color: #222;
  font: 1rem/1.5 system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
.verdict { padding: .75rem 1rem; background: #f6f7f8; border-left: .3rem solid #0072b2; }
.scroll { overflow-x: auto; }
figure { margin: 0 0 .75rem; }
figcaption { font-size: .9rem; color: #555; }
img { display: block; width: 100%; max-width: {{ width }}px; image-rendering: pixelated; }
table { border-collapse: collapse; font-size: .9rem; white-space: nowrap; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: left; }
th { background: #f6f7f8; }
</style>
</head>
<body>
<h1>What run {{ report.run }} gives away</h1>
<p class="verdict">{{ lines[0] }}</p>
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
{% endfor %}</body>
</html>
"""


def render(report: Leakage, pictures: Sequence[Pictures], zoom: int = 3) -> str:
    """Return the page; each pixel of an image is `zoom` pixels wide where there is room."""
    shown = [(title, base64.b64encode(row_png(images_NCHW, zoom)).decode()) for title, images_NCHW in pictures]
    N, _, _, W = pictures[0].images_NCHW.shape
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_PAGE).render(
        report=report, lines=report.lines(), rows=report.rows(), pictures=shown, width=N * W * zoom
    )


def row_png(images_NCHW: torch.Tensor, zoom: int) -> bytes:
    """Return a PNG of images side by side, pixels in 0..1, each enlarged `zoom` times."""
    N, C, H, W = images_NCHW.shape
    pixels = (images_NCHW.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    joined = pixels.transpose(2, 0, 3, 1).reshape(H, N * W, C)
    picture = Image.fromarray(np.ascontiguousarray(joined[:, :, 0] if C == 1 else joined))
    file = BytesIO()
    picture.resize((N * W * zoom, H * zoom), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()
