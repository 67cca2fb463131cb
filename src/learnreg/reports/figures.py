"""The pictures of a report: functions that return a matplotlib Figure, and encoders to PNG, SVG,
data URI.
"""

from __future__ import annotations

import base64
import io
import math
import re
import warnings
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
from .columns import Column

INK, FAINT, NOISY = "#2b3541", "#d9dee4", "#8591a0"
COLORS = ("#2f7fc1", "#dd7d1c", "#2b9c7a", "#a85fb4", "#c2493d", "#7d7a2c")
PALE = 0.25
"""Opacity of dead filters."""

_SCHEME = (
    f"<style>:root{{--ink:{INK};--faint:{FAINT}}}"
    "@media (prefers-color-scheme:dark){:root{--ink:#c6ced8;--faint:#38414c}}</style>"
)


@dataclass(frozen=True)
class Cell:
    """One picture of a row.

    Attributes:
        name, value: above it.
        whole, detail: (h, w) or (h, w, 3) in [0, 1].
        frame: where the detail is: left, top, width, height in shares of the whole; None where no
            frame is drawn.
        words: the alternative text.
    """

    name: str
    value: str
    whole: np.ndarray
    detail: np.ndarray
    frame: tuple[float, float, float, float] | None
    words: str


def png(figure: Figure) -> bytes:
    """PNG on white, at 2 pixels per layout pixel."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, facecolor="white")
    return buffer.getvalue()


def svg(figure: Figure) -> bytes:
    """SVG without background, in dark ink; equal figures give equal bytes."""
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
    return text.encode()


def themed(plain: bytes) -> bytes:
    """An SVG in the reader's light or dark scheme."""
    text = plain.decode().replace(INK, "var(--ink)").replace(FAINT, "var(--faint)")
    end = text.index(">") + 1
    return (text[:end] + _SCHEME + text[end:]).encode()


def pdf(figure: Figure) -> bytes:
    """PDF on white, with text as text; equal figures give equal bytes."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # why: names of images may have letters that the font lacks; they are boxes then
        warnings.simplefilter("ignore")
        figure.savefig(
            buffer,
            format="pdf",
            facecolor="white",
            metadata={"CreationDate": None, "Creator": None, "Producer": None},
        )
    return buffer.getvalue()


MAKERS: dict[str, Callable[[Figure], bytes]] = {"png": png, "svg": svg, "pdf": pdf}
"""By the end of a file's name."""


def files(name: str, figure: Figure, formats: Iterable[str]) -> dict[str, bytes]:
    """One figure in several formats, by file name."""
    return {f"{name}.{kind}": MAKERS[kind](figure) for kind in formats}


def data_uri(data: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def picture_png(pixels: np.ndarray) -> bytes:
    """Pixels (h, w) or (h, w, 3) in [0, 1] as PNG, one pixel per pixel."""
    buffer = io.BytesIO()
    imsave(buffer, pixels, cmap="gray", vmin=0.0, vmax=1.0, format="png")
    return buffer.getvalue()


def filter_png(kernel: Tensor) -> bytes:
    """One filter (c, s, s) as PNG, channels side by side, colour scale symmetric about zero."""
    buffer = io.BytesIO()
    tile, top = _tile(kernel)
    imsave(buffer, tile, cmap="RdBu_r", vmin=-top, vmax=top, format="png")
    return buffer.getvalue()


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
    draw_legend(axes[0], records, shown=_with(records, ["loss"]))
    return figure


def schedules(records: Mapping[str, RunRecord]) -> Figure:
    """What the learner chose at each accepted step: eps, delta, step size; gradient norm and error
    omega.
    """
    figure, axes = panels(2, 2, 4.9)
    errors: dict[str, LineStyleType] = {
        "gradient_norm": "-",
        "omega_certified": "--",
        "omega_estimated": ":",
    }
    columns_of: dict[str, dict[str, LineStyleType]] = {
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
    names = [_with(records, columns) for columns in columns_of.values()]
    # every name once, in the first panel that draws it: a name without a line says nothing
    told: set[str] = set()
    for axis, shown in zip(axes[:3], names, strict=False):
        if fresh := shown - told:
            draw_legend(axis, records, shown=fresh)
        told |= fresh
    words = {"gradient_norm": "norm", "omega_certified": "omega, certified"}
    words["omega_estimated"] = "omega, estimated"
    styles: dict[str, tuple[str, LineStyleType]] = {
        words[c]: (INK, style) for c, style in errors.items() if _with(records, [c])
    }
    if styles:
        draw_key(axes[3], styles)
    return figure


def psnr(columns: Sequence[Column], names: Sequence[str], colors: Sequence[str]) -> Figure:
    """PSNR of every held-out image: one line of dots per image, one colour per competitor."""
    count = len(columns[0].psnr)
    figure, (axis,) = panels(1, 1, min(9.0, 1.0 + 0.25 * count))
    rows, drawn = list(range(count)), []
    for column, color in zip(columns, colors, strict=True):
        known = [v if math.isfinite(v) else math.nan for v in column.psnr]
        if all(map(math.isnan, known)):
            continue
        drawn.append((column.name, color))
        axis.scatter(known, rows, s=26, color=color, zorder=3, label=column.name)
        axis.axvline(sum(column.psnr) / count, color=color, linewidth=1, alpha=0.6)
    shown = rows if count <= 40 else []
    axis.set_yticks(shown, [shortened(names[i], 28) if i < len(names) else str(i) for i in shown])
    for text in axis.get_yticklabels():
        text.set_parse_math(False)
    axis.set_ylim(count - 0.5, -0.5)
    axis.set_xlabel("PSNR (dB); thin lines: means")
    if drawn:
        draw_legend(axis, [n for n, _ in drawn], [c for _, c in drawn], outside=True)
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


def pictures(rows: Sequence[Sequence[Cell]]) -> Figure:
    """Rows of pictures with their details below, one pixel per pixel or enlarged."""
    h, w = rows[0][0].whole.shape[:2]
    scale = max(1, round(360 / max(h, w)))
    wide, high, gap, head = w * scale, h * scale, 14, 46
    columns = max(len(row) for row in rows)
    width = columns * (wide + gap) + gap
    height = len(rows) * (2 * (high + gap) + head) + gap
    figure = Figure((width / 200, height / 200))
    for r, row in enumerate(rows):
        top = r * (2 * (high + gap) + head) + head
        for c, cell in enumerate(row):
            for part, y in ((cell.whole, top), (cell.detail, top + high + gap)):
                left, bottom = (gap + c * (wide + gap)) / width, 1 - (y + high) / height
                axis = figure.add_axes((left, bottom, wide / width, high / height))
                axis.set_axis_off()
                axis.imshow(
                    part, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto"
                )
                if part is cell.whole:
                    title = f"{cell.name}  {cell.value}"
                    axis.set_title(title, fontsize=7.5, color=INK, pad=3, parse_math=False)
                if part is cell.whole and c == 0 and cell.frame is not None:
                    axis.add_patch(_frame(cell.frame, w, h))
    return figure


def _frame(frame: tuple[float, float, float, float], w: int, h: int) -> Rectangle:
    """Left, top, width and height in shares of a picture of w x h pixels, as a rectangle."""
    x, y, dx, dy = frame
    return Rectangle(
        (x * w - 0.5, y * h - 0.5),
        dx * w,
        dy * h,
        fill=False,
        edgecolor="#ffb020",
        linewidth=1.1,
    )


def filters(
    kernels: Tensor,
    weights: Tensor,
    smoothings: Tensor | None = None,
    dead: Sequence[int] = (),
) -> Figure:
    """Filters (K, c, s, s) from the heaviest to the lightest, each on its own scale symmetric about
    zero; ``dead`` ones last and pale.
    """
    order = filter_order(weights, dead)
    columns = min(8, len(order))
    figure = Figure((0.95 * columns, 1.13 * math.ceil(len(order) / columns)), layout="constrained")
    for n, k in enumerate(order):
        axis = figure.add_subplot(math.ceil(len(order) / columns), columns, n + 1)
        tile, top = _tile(kernels[k])
        pale = PALE if k in dead else 1.0
        axis.imshow(tile, cmap="RdBu_r", vmin=-top, vmax=top, interpolation="nearest", alpha=pale)
        axis.set_axis_off()
        smoothing = "" if smoothings is None else f"\nsmoothing {float(smoothings[k]):.2g}"
        axis.set_title(f"weight {float(weights[k]):.2g}{smoothing}", fontsize=5.5, color=INK, pad=2)
    return figure


def filter_order(weights: Tensor, dead: Sequence[int] = ()) -> list[int]:
    """Filter numbers from the heaviest to the lightest, dead ones last."""
    ranked = torch.argsort(weights.detach().flatten(), descending=True, stable=True)
    return sorted((int(k) for k in ranked), key=lambda k: k in dead)


def filter_cells(
    kernels: Tensor,
    weights: Tensor,
    smoothings: Tensor | None = None,
    dead: Sequence[int] = (),
) -> list[dict[str, str | float | bool | None]]:
    """Filters as the page shows them, from the heaviest to the lightest, dead ones last."""
    return [
        {
            "source": data_uri(filter_png(kernels[k]), "image/png"),
            "weight": float(weights[k]),
            "smoothing": None if smoothings is None else float(smoothings[k]),
            "number": k + 1,
            "dead": k in dead,
        }
        for k in filter_order(weights, dead)
    ]


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
    axis: Axes, xs: Sequence[float], ys: Sequence[float], color: str, style: LineStyleType = "-"
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


def _with(records: Mapping[str, RunRecord], columns: Iterable[str]) -> set[str]:
    """The runs that have something to draw in one of these columns."""
    columns = list(columns)
    return {
        name
        for name, record in records.items()
        if any(v > 0 for column in columns for v in _numbers(record, column))
    }


def draw_legend(
    axis: Axes,
    names: Iterable[str],
    colors: Sequence[str] = (),
    outside: bool = False,
    shown: Container[str] | None = None,
) -> None:
    """The names with their colours; only those in ``shown``, if that is given."""
    every = list(names)
    chosen = [
        (shortened(n, 28), c)
        for n, c in zip(every, colors or cycle(), strict=False)
        if shown is None or n in shown
    ]
    if not chosen:
        return
    names = [n for n, _ in chosen]
    handles = [Line2D([], [], color=c, linewidth=2.2) for _, c in chosen]
    place: dict[str, Any] = (
        {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 6} if outside else {}
    )
    legend = axis.legend(handles, names, fontsize=8, frameon=False, labelcolor=INK, **place)
    for text in legend.get_texts():
        text.set_parse_math(False)
