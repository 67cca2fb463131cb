"""The pictures of a report: functions that return a matplotlib Figure, and encoders to PNG, SVG,
data URI.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure as Figure
from matplotlib.image import imsave
from matplotlib.lines import Line2D as Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter as FuncFormatter
from matplotlib.ticker import LogLocator, NullLocator
from matplotlib.ticker import MaxNLocator as MaxNLocator
from matplotlib.typing import LineStyleType as LineStyleType
from torch import Tensor

from ..core import Evaluation, RunRecord

INK, FAINT, NOISY = "#2b3541", "#d9dee4", "#8591a0"
COLORS = ("#2f7fc1", "#dd7d1c", "#2b9c7a", "#a85fb4", "#c2493d", "#7d7a2c")
_SCHEME = (
    f"<style>:root{{--ink:{INK};--faint:{FAINT}}}"
    "@media (prefers-color-scheme:dark){:root{--ink:#c6ced8;--faint:#38414c}}</style>"
)


def png(figure: Figure) -> bytes:
    """PNG on white, at 2 pixels per layout pixel."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, facecolor="white")
    return buffer.getvalue()


def svg(figure: Figure) -> bytes:
    """SVG without background, in the reader's light or dark scheme; equal figures give equal
    bytes.
    """
    buffer = io.BytesIO()
    figure.savefig(
        buffer,
        format="svg",
        transparent=True,
        metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
    )
    text = buffer.getvalue().decode()
    text = text[text.index("<svg") :]
    for number, name in enumerate(dict.fromkeys(re.findall(r'id="([a-z][0-9a-f]{10})"', text))):
        text = text.replace(name, f"n{number}")
    text = text.replace(INK, "var(--ink)").replace(FAINT, "var(--faint)")
    end = text.index(">") + 1
    return (text[:end] + _SCHEME + text[end:]).encode()


def data_uri(data: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def picture_png(image: Tensor) -> bytes:
    """One image (c, h, w) as PNG, one pixel per pixel, grey or colour scale [0, 1]."""
    buffer = io.BytesIO()
    imsave(buffer, displayable(image), cmap="gray", vmin=0.0, vmax=1.0, format="png")
    return buffer.getvalue()


def filter_png(kernel: Tensor) -> bytes:
    """One filter (c, s, s) as PNG, channels side by side, colour scale symmetric about zero."""
    buffer = io.BytesIO()
    tile, top = _tile(kernel)
    imsave(buffer, tile, cmap="RdBu_r", vmin=-top, vmax=top, format="png")
    return buffer.getvalue()


def displayable(image: Tensor) -> np.ndarray:
    """(c, h, w) as it is drawn: in colour for c = 3, the modulus for c = 2 (complex), else channel
    0.
    """
    image = image.detach().cpu().float()
    if image.shape[0] == 3:
        return image.clamp(0, 1).permute(1, 2, 0).numpy()
    return (torch.linalg.vector_norm(image, dim=0) if image.shape[0] == 2 else image[0]).numpy()


def detail(image: Tensor) -> tuple[int, int, int, int]:
    """The liveliest ninth of an image (c, h, w), by variance: top, left, height, width."""
    grey = image.detach().cpu().float().mean(0)[None, None]
    h, w = max(1, grey.shape[-2] // 3), max(1, grey.shape[-1] // 3)
    stride = (max(1, h // 4), max(1, w // 4))
    mean, square = (torch.nn.functional.avg_pool2d(g, (h, w), stride) for g in (grey, grey**2))
    best = int((square - mean**2).flatten().argmax())
    return best // mean.shape[-1] * stride[0], best % mean.shape[-1] * stride[1], h, w


def loss(records: Mapping[str, RunRecord]) -> Figure:
    """Training loss against work per image and against seconds; the bracket of the exact loss as a
    band.
    """
    figure, axes = panels(1, 2, 3.1)
    every = [v for r in records.values() for v in (*_numbers(r, "loss"), *_numbers(r, "upper"))]
    for axis, label in zip(axes, ("energy evaluations per training image", "seconds"), strict=True):
        for (_, record), color in zip(records.items(), cycle(), strict=False):
            xs = (
                _numbers(record, "seconds")
                if label == "seconds"
                else [w / record.images for w in _numbers(record, "work")]
            )
            known = [
                row
                for row in zip(
                    xs, *(_numbers(record, c) for c in ("loss", "lower", "upper")), strict=True
                )
                if not math.isnan(row[1])
            ]  # some learners need the loss only now and then, or never
            at, middle, low, high = (
                (list(column) for column in zip(*known, strict=True)) if known else ([],) * 4
            )
            axis.fill_between(
                at, [max(v, 1e-12) for v in low], high, color=color, alpha=0.2, linewidth=0
            )
            draw_line(axis, at, middle, color)
        log_axis(axis, every)
        lowest = min((v for v in every if v > 0), default=0.1)
        axis.set_ylim(bottom=0.8 * lowest)
        axis.set_xlabel(label)
        axis.set_xlim(left=0)
    axes[0].set_ylabel("training loss per image")
    draw_legend(axes[0], records)
    return figure


def schedules(records: Mapping[str, RunRecord]) -> Figure:
    """What the learner chose at each accepted step: eps, delta, step size; gradient norm and error
    omega.
    """
    figure, axes = panels(2, 2, 4.9)
    errors = {"gradient_norm": "-", "omega_certified": "--", "omega_estimated": ":"}
    columns_of = {
        "accuracy eps of the lower level": {"eps": "-"},
        "linear residual delta": {"delta": "-"},
        "step size": {"step_size": "-"},
        "hypergradient and its error": errors,
    }
    for axis, (title, columns) in zip(axes, columns_of.items(), strict=True):
        for (_, record), color in zip(records.items(), cycle(), strict=False):
            for column, style in columns.items():
                draw_line(axis, _numbers(record, "step"), _numbers(record, column), color, style)
        log_axis(axis, [v for r in records.values() for c in columns for v in _numbers(r, c)])
        axis.set_title(title, fontsize=9, color=INK, loc="left")
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.set_xlabel("accepted step")
        axis.set_xlim(left=0)
    draw_legend(axes[0], records)
    draw_key(
        axes[3],
        {"norm": (INK, "-"), "omega, certified": (INK, "--"), "omega, estimated": (INK, ":")},
    )
    return figure


def psnr(evaluations: Mapping[str, Evaluation]) -> Figure:
    """PSNR of every held-out image: one line of dots per image, the noisy input in grey."""
    first = next(iter(evaluations.values()))
    count = len(first.psnr)
    figure, (axis,) = panels(1, 1, min(9.0, 1.0 + 0.25 * count))
    rows = list(range(count))
    series = [
        ("noisy", first.psnr_input, NOISY),
        *((n, e.psnr, c) for (n, e), c in zip(evaluations.items(), cycle(), strict=False)),
    ]
    for name, values, color in series:
        axis.scatter(
            [v if math.isfinite(v) else math.nan for v in values],
            rows,
            s=26,
            color=color,
            zorder=3,
            label=name,
        )
        axis.axvline(sum(values) / count, color=color, linewidth=1, alpha=0.6)
    shown = rows if count <= 40 else []
    axis.set_yticks(
        shown, [shortened(first.names[i], 28) if i < len(first.names) else str(i) for i in shown]
    )
    for text in axis.get_yticklabels():
        text.set_parse_math(False)
    axis.set_ylim(count - 0.5, -0.5)
    axis.set_xlabel("PSNR (dB); thin lines: means")
    draw_legend(
        axis, [name for name, _, _ in series], [color for _, _, color in series], outside=True
    )
    return figure


def certificate(evaluations: Mapping[str, Evaluation]) -> Figure | None:
    """Accuracy asked, error reported and true error on one image, log-log; None without honesty
    rows.
    """
    shown = {n: e for n, e in evaluations.items() if e.honesty}
    if not shown:
        return None
    figure, axes = panels(1, len(shown), 3.1, width=7.6 if len(shown) > 1 else 4.6)
    for axis, (name, evaluation) in zip(axes, shown.items(), strict=True):
        rows = sorted(evaluation.honesty, key=lambda r: r["eps"])
        eps, known, true = ([_finite(r.get(k)) for r in rows] for k in ("eps", "certified", "true"))
        color = COLORS[list(evaluations).index(name) % len(COLORS)]
        draw_line(axis, eps, eps, NOISY, "--")
        draw_line(axis, eps, known, color)
        draw_line(axis, eps, true, INK, ":")
        log_axis(axis, [*eps, *known, *true])
        axis.set_xscale("log")
        log_ticks(axis.xaxis, eps)
        axis.set_title(shortened(name, 40), fontsize=9, color=INK, loc="left", parse_math=False)
        axis.set_xlabel("accuracy eps asked for")
        draw_key(
            axis,
            {
                "asked for": (NOISY, "--"),
                f"{evaluation.kind.label} error": (color, "-"),
                "true error": (INK, ":"),
            },
        )
    axes[0].set_ylabel("distance to the exact minimiser")
    return figure


def pictures(
    evaluations: Mapping[str, Evaluation], rows: Sequence[int], zoom: bool = True
) -> Figure:
    """Truth, noisy input and each method side by side, one grey scale [0, 1]; ``rows`` are image
    numbers.

    With ``zoom`` a row of details follows each image. An input that is no image like the truth is
    left out.
    """
    first = next(iter(evaluations.values()))
    h, w = first.x.shape[-2:]
    scale = max(1, round(360 / max(h, w)))
    wide, high, gap, head = w * scale, h * scale, 14, 46
    columns = 1 + comparable(first) + len(evaluations)
    width = columns * (wide + gap) + gap
    height = len(rows) * ((1 + zoom) * (high + gap) + head) + gap
    figure = Figure((width / 200, height / 200))
    for r, i in enumerate(rows):
        y0, x0, dy, dx = detail(first.x[i])
        top = r * ((1 + zoom) * (high + gap) + head) + head
        for c, (name, value, image) in enumerate(_columns(evaluations, i)):
            title = f"truth: {value}" if c == 0 else f"{name}  {value}"
            parts = [(image, top), (image[..., y0 : y0 + dy, x0 : x0 + dx], top + high + gap)]
            for k, (part, y) in enumerate(parts[: 1 + zoom]):
                axis = figure.add_axes(
                    (
                        (gap + c * (wide + gap)) / width,
                        1 - (y + high) / height,
                        wide / width,
                        high / height,
                    )
                )
                axis.set_axis_off()
                axis.imshow(
                    displayable(part),
                    cmap="gray",
                    vmin=0,
                    vmax=1,
                    interpolation="nearest",
                    aspect="auto",
                )
                if k == 0:
                    axis.set_title(title, fontsize=7.5, color=INK, pad=3, parse_math=False)
                if k == 0 and zoom and c == 0:
                    axis.add_patch(
                        Rectangle(
                            (x0 - 0.5, y0 - 0.5),
                            dx,
                            dy,
                            fill=False,
                            edgecolor="#ffb020",
                            linewidth=1.1,
                        )
                    )
    return figure


def filters(kernels: Tensor, weights: Tensor, smoothings: Tensor | None = None) -> Figure:
    """Filters (K, c, s, s) from the heaviest to the lightest, each on its own scale symmetric about
    zero.
    """
    order = filter_order(weights)
    columns = min(8, len(order))
    figure = Figure((0.95 * columns, 1.13 * math.ceil(len(order) / columns)), layout="constrained")
    for n, k in enumerate(order):
        axis = figure.add_subplot(math.ceil(len(order) / columns), columns, n + 1)
        tile, top = _tile(kernels[k])
        axis.imshow(tile, cmap="RdBu_r", vmin=-top, vmax=top, interpolation="nearest")
        axis.set_axis_off()
        smoothing = "" if smoothings is None else f"\nsmoothing {float(smoothings[k]):.2g}"
        axis.set_title(f"weight {float(weights[k]):.2g}{smoothing}", fontsize=5.5, color=INK, pad=2)
    return figure


def filter_order(weights: Tensor) -> list[int]:
    """Filter numbers from the heaviest to the lightest."""
    return [int(k) for k in torch.argsort(weights.detach().flatten(), descending=True, stable=True)]


def comparable(evaluation: Evaluation) -> bool:
    """True when the measurement can be shown as an image beside the truth."""
    return evaluation.y.shape == evaluation.x.shape


def cells(evaluations: Mapping[str, Evaluation], i: int) -> list[dict[str, str]]:
    """Image ``i`` as the page shows it: name, value, and the whole picture and its detail as data
    URIs.
    """
    y, x, h, w = detail(next(iter(evaluations.values())).x[i])
    height, width = next(iter(evaluations.values())).x.shape[-2:]
    box = (
        f"left:{100 * x / width:.4g}%;top:{100 * y / height:.4g}%;"
        f"width:{100 * w / width:.4g}%;height:{100 * h / height:.4g}%"
    )
    return [
        {
            "name": name,
            "value": value,
            "box": box,
            "whole": data_uri(picture_png(image), "image/png"),
            "detail": data_uri(picture_png(image[..., y : y + h, x : x + w]), "image/png"),
        }
        for name, value, image in _columns(evaluations, i)
    ]


def filter_cells(
    kernels: Tensor, weights: Tensor, smoothings: Tensor | None = None
) -> list[dict[str, str | float | None]]:
    """Filters as the page shows them, from the heaviest to the lightest."""
    return [
        {
            "source": data_uri(filter_png(kernels[k]), "image/png"),
            "weight": float(weights[k]),
            "smoothing": None if smoothings is None else float(smoothings[k]),
        }
        for k in filter_order(weights)
    ]


def _columns(evaluations: Mapping[str, Evaluation], i: int) -> Iterable[tuple[str, str, Tensor]]:
    """(name, what is known about it, image) of the truth, the noisy input and every method."""
    first = next(iter(evaluations.values()))
    yield (
        "truth",
        shortened(first.names[i] if i < len(first.names) else f"image {i}", 28),
        first.x[i],
    )
    if comparable(first):
        yield "noisy", f"{first.psnr_input[i]:.2f} dB", first.y[i]
    for name, evaluation in evaluations.items():
        yield shortened(name, 24), f"{evaluation.psnr[i]:.2f} dB", evaluation.reconstruction[i]


def _tile(kernel: Tensor) -> tuple[np.ndarray, float]:
    tile = torch.cat(list(kernel.detach().cpu().float()), dim=-1)
    return tile.numpy(), float(tile.abs().max()) or 1.0


def _finite(value: float | None) -> float:
    return float(value) if value is not None and math.isfinite(value) else math.nan


def _numbers(record: RunRecord, column: str) -> list[float]:
    return [_finite(v) for v in record.column(column)]


def cycle() -> list[str]:
    return list(COLORS) * 8


def shortened(text: str, longest: int) -> str:
    """A name as a figure can show it: printable, short, without the leading mark that hides
    legends.
    """
    text = "".join(ch if ch.isprintable() else " " for ch in str(text))
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return f" {text}" if text.startswith("_") else text


def panels(rows: int, columns: int, height: float, width: float = 7.6) -> tuple[Figure, list[Axes]]:
    figure = Figure((width, height), layout="constrained")
    axes = [figure.add_subplot(rows, columns, n + 1) for n in range(rows * columns)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(FAINT)
        axis.tick_params(which="both", colors=INK, labelsize=8, length=0)
        axis.grid(color=FAINT, linewidth=0.7)
        axis.set_axisbelow(True)
        for label in (axis.xaxis.label, axis.yaxis.label):
            label.set(fontsize=8.5, color=INK)
    return figure, axes


def draw_line(
    axis: Axes, xs: Sequence[float], ys: Sequence[float], color: str, style: str = "-"
) -> None:
    """A line; solid ones, and those with gaps, carry small dots so that a lonely value is still
    seen.
    """
    ys = [y if y > 0 else math.nan for y in ys]
    dots = "o" if style == "-" or any(map(math.isnan, ys)) else ""
    axis.plot(xs, ys, color=color, linestyle=style, linewidth=1.4, marker=dots, markersize=2.2)


def log_axis(axis: Axes, values: Sequence[float]) -> None:
    """Logarithmic y axis with readable numbers, or the words "not recorded"."""
    if not any(v > 0 for v in values):
        axis.text(
            0.5,
            0.5,
            "not recorded",
            transform=axis.transAxes,
            ha="center",
            color=NOISY,
            fontsize=8.5,
        )
        axis.yaxis.set_major_locator(NullLocator())
        return
    axis.set_yscale("log")
    log_ticks(axis.yaxis, values)


def log_ticks(axis: Axis, values: Sequence[float]) -> None:
    positive = [v for v in values if v > 0]
    decades = math.log10(max(positive) / min(positive)) if positive else 1.0
    subs = (1, 1.5, 2, 3, 5, 7) if decades < 1.2 else (1, 2, 5) if decades < 2.5 else (1,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=7))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(readable))


def readable(value: float, _position: int | None = None) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:g}"
    power = math.floor(math.log10(abs(value)) + 1e-9)
    head = value / 10.0**power
    return f"$10^{{{power}}}$" if abs(head - 1) < 1e-6 else f"${head:.3g}\\cdot10^{{{power}}}$"


def draw_key(axis: Axes, lines: Mapping[str, tuple[str, LineStyleType]]) -> None:
    handles = [
        Line2D([], [], color=color, linestyle=style, linewidth=1.4)
        for color, style in lines.values()
    ]
    axis.legend(handles, list(lines), fontsize=7.5, frameon=False, labelcolor=INK)


def draw_legend(
    axis: Axes, names: Iterable[str], colors: Sequence[str] = (), outside: bool = False
) -> None:
    names = [shortened(n, 28) for n in names]
    handles = [Line2D([], [], color=c, linewidth=2.2) for c in (colors or cycle())[: len(names)]]
    place: dict[str, Any] = (
        {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 6} if outside else {}
    )
    legend = axis.legend(handles, names, fontsize=8, frameon=False, labelcolor=INK, **place)
    for text in legend.get_texts():
        text.set_parse_math(False)
