"""The pictures of a comparison: loss and quality over the cost, gaps, schedules, heat maps of
grids.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import NamedTuple, TypeAlias

from .figures import (
    COLORS,
    FAINT,
    INK,
    NOISY,
    Figure,
    FuncFormatter,
    Line2D,
    LineStyleType,
    MaxNLocator,
    log_axis,
    log_ticks,
    panels,
    readable,
    shortened,
)
from .pairing import NEAR, ComparedRun, Instance, Spread, gap

Color: TypeAlias = str | tuple[float, float, float]

MORE = (*COLORS, "#4cb6d6", "#d45f96", "#8a6244", "#5a6b7b")
COSTS = {"work": "energy evaluations per training image", "seconds": "seconds"}
STEPS = 80
"""Places at which the median of several curves is taken."""


LEAST_CONTRAST = 1.1
"""Losses of a heat map that differ by no more than this factor do not use all of its colours."""


def styles(runs: Sequence[ComparedRun]) -> dict[str, tuple[str, LineStyleType]]:
    """(colour, line style) of every learner; the style changes when the colours are used up."""
    names = list(dict.fromkeys(run.learner for run in runs))
    return {
        name: (MORE[i % len(MORE)], ("-", "--", ":")[i // len(MORE) % 3])
        for i, name in enumerate(names)
    }


def curves(runs: Sequence[ComparedRun], column: str, label: str, *, logarithmic: bool) -> Figure:
    """``column`` of the evaluated steps over work and over seconds: runs thin, the median of each
    learner bold.
    """
    found = {cost: [run.curve(cost, column) for run in runs] for cost in COSTS}
    return _over_costs(runs, found, label, logarithmic)


def above_best(
    runs: Sequence[ComparedRun], best: Mapping[Instance, float], floor: float
) -> Figure | None:
    """The loss of the evaluated steps above the best of the same instance, in per cent; None for
    one instance.

    Args:
        floor: in per cent; smaller ones are drawn there.
    """
    if len([loss for loss in best.values() if loss > 0]) < 2:
        return None
    found = {
        cost: [
            [
                (x, max(100 * (loss / best[run.instance] - 1), floor))
                for x, loss in run.curve(cost, "loss")
            ]
            if best.get(run.instance, 0) > 0
            else []
            for run in runs
        ]
        for cost in COSTS
    }
    return _over_costs(runs, found, "loss above the best of the same\nseed and start (%)", True)


def _over_costs(
    runs: Sequence[ComparedRun],
    found: Mapping[str, Sequence[Sequence[tuple[float, float]]]],
    label: str,
    logarithmic: bool,
) -> Figure:
    """Curves, one per run and cost, in the colours of their learners."""
    figure, axes = panels(1, 2, 3.5, width=8.4)
    told: set[str] = set()
    for axis, (cost, words) in zip(axes, COSTS.items(), strict=True):
        every = [point for curve in found[cost] for point in _positive(curve)]
        for name, (color, style) in styles(runs).items():
            mine = [
                c
                for run, curve in zip(runs, found[cost], strict=True)
                if run.learner == name and (c := _positive(curve))
            ]
            for curve in mine if len(mine) > 1 else []:
                axis.plot(*zip(*curve, strict=True), color=color, linewidth=0.8, alpha=0.38)
            middle = median_curve(mine, logarithmic)
            if middle:
                told.add(name)
                axis.plot(
                    *zip(*middle, strict=True),
                    color=color,
                    linestyle=style,
                    linewidth=2.1,
                    marker="o" if len(mine) == 1 else "",
                    markersize=2.6,
                )
                axis.plot(*middle[-1], color=color, marker="o", markersize=4.2)
        if logarithmic or not every:
            log_axis(axis, [y for _, y in every])
        if every:
            axis.set_xscale("log")
            log_ticks(axis.xaxis, [x for x, _ in every])
        axis.set_xlabel(words)
    axes[0].set_ylabel(label)
    _legend(figure, {name: look for name, look in styles(runs).items() if name in told})
    return figure


def median_curve(
    found: Sequence[Sequence[tuple[float, float]]], logarithmic: bool
) -> list[tuple[float, float]]:
    """The median of curves over a logarithmic axis, where all of them have begun; those that ended
    keep their end.
    """
    if len(found) < 2:
        return list(found[0]) if found else []
    low, high = max(curve[0][0] for curve in found), max(curve[-1][0] for curve in found)
    places = (
        [low * (high / low) ** (k / (STEPS - 1)) for k in range(STEPS)] if high > low else [high]
    )
    return [(x, median(_at(curve, x, logarithmic) for curve in found)) for x in places]


def gaps(
    runs: Sequence[ComparedRun], best: Mapping[Instance, float], floor: float
) -> Figure | None:
    """The gap of every final loss to the best of its instance, a line of dots per learner; None
    without any.

    Args:
        floor: in per cent; smaller gaps are drawn there.
    """
    found = {
        name: [g for run in runs if run.learner == name and (g := gap(run, best)) is not None]
        for name in dict.fromkeys(run.learner for run in runs)
    }
    if not any(found.values()):
        return None
    figure, (axis,) = panels(1, 1, 0.85 + 0.34 * len(found), width=8.4)
    look = styles(runs)
    for row, (name, values) in enumerate(found.items()):
        shown = [max(100 * v, floor) for v in values]
        axis.scatter(
            shown, [row] * len(shown), s=26, color=look[name][0], alpha=0.65, linewidths=0, zorder=3
        )
        if shown:
            axis.plot(
                [median(shown)] * 2,
                [row - 0.3, row + 0.3],
                color=look[name][0],
                linewidth=2.4,
                zorder=4,
            )
    every = [floor, *(max(100 * v, floor) for values in found.values() for v in values)]
    axis.set_xscale("log")
    axis.set_xlim(0.8 * floor, 1.3 * max(*every, 10 * floor))
    log_ticks(axis.xaxis, every)
    axis.axvline(100 * NEAR, color=NOISY, linewidth=1, linestyle="--")
    axis.set_yticks(range(len(found)), [shortened(name, 34) for name in found])
    for text in axis.get_yticklabels():
        text.set_parse_math(False)
    axis.set_ylim(len(found) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("final loss above the best of the same seed and start (%)")
    return figure


def schedules(runs: Sequence[ComparedRun]) -> Figure:
    """eps, delta and step size at each accepted step, for the first seed and start of every
    setting.
    """
    figure, axes = panels(1, 3, 2.9, width=8.4)
    look, shown = styles(runs), {run.name: run for run in reversed(runs) if run.failure is None}
    runs = list(reversed(shown.values()))
    titles = {"eps": "accuracy eps", "delta": "linear residual delta", "step_size": "step size"}
    longest = max((run.steps or 0 for run in runs), default=0)
    told: set[str] = set()
    for axis, (column, title) in zip(axes, titles.items(), strict=True):
        every = []
        for run in runs:
            pairs = [
                (x, y)
                for x, y in zip(
                    run.schedule.get("step", ()), run.schedule.get(column, ()), strict=False
                )
                if y is not None and y > 0
            ]
            every += [y for _, y in pairs]
            if pairs:
                told.add(run.learner)
                color, style = look[run.learner]
                axis.plot(
                    *zip(*pairs, strict=True),
                    color=color,
                    linestyle=style,
                    linewidth=1.3,
                    alpha=0.8,
                    marker="o" if len(pairs) < 3 else "",
                    markersize=2.2,
                )
        log_axis(axis, every)
        axis.set_title(title, fontsize=9, color=INK, loc="left")
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.set_xlabel("accepted step")
        axis.set_xlim(0, max(1, longest))
        if longest > 200:
            axis.set_xscale("symlog", linthresh=10)
            axis.xaxis.set_major_formatter(FuncFormatter(readable))
    _legend(figure, {name: line for name, line in look.items() if name in told})
    return figure


def grid_keys(runs: Sequence[ComparedRun]) -> tuple[str | None, str] | None:
    """(down, across): the keys of a heat map of these runs of one learner; None without a grid.

    Of several keys eps0 and alpha0 come first; a single one runs across.
    """
    values = {key: _sorted(run.grid.get(key) for run in runs) for key in runs[0].grid}
    varied = [key for key, found in values.items() if len(found) > 1]
    first = [key for key in ("eps0", "alpha0") if key in varied]
    keys = [*first, *(key for key in varied if key not in first)]
    return None if not keys else (None, keys[0]) if len(keys) == 1 else (keys[0], keys[1])


def heat_maps(runs: Sequence[ComparedRun]) -> dict[str, Figure]:
    """The final loss over two keys of the grid of each learner that has one; the same colours in
    all maps.
    """
    grids = {}
    for name in dict.fromkeys(run.learner for run in runs):
        mine = [run for run in runs if run.learner == name]
        keys = grid_keys(mine)
        if keys is not None:
            grids[name] = keys, _cells(mine, *keys)
    means = [
        cell.loss.mean
        for _, cells in grids.values()
        for row in cells
        for cell in row
        if cell.loss is not None and cell.loss.mean > 0
    ]
    if not means:
        return {}
    low, high = min(means), max(max(means), LEAST_CONTRAST * min(means))
    return {name: _heat_map(cells, *keys, low, high) for name, (keys, cells) in grids.items()}


class _Cell(NamedTuple):
    """One combination of two settings: its values, and the final losses of its runs."""

    down: object
    across: object
    runs: int
    loss: Spread | None


def _cells(runs: Sequence[ComparedRun], down: str | None, across: str) -> list[list[_Cell]]:
    """Row by row."""
    rows = _sorted(run.grid.get(down) for run in runs) if down else [None]
    columns = _sorted(run.grid.get(across) for run in runs)
    return [
        [
            _cell(
                [
                    run
                    for run in runs
                    if run.grid.get(across) == column and (not down or run.grid.get(down) == row)
                ],
                row,
                column,
            )
            for column in columns
        ]
        for row in rows
    ]


def _cell(runs: Sequence[ComparedRun], down: object, across: object) -> _Cell:
    return _Cell(down, across, len(runs), Spread.of(run.final["loss"] for run in runs if run.final))


def _heat_map(
    cells: list[list[_Cell]], down: str | None, across: str, low: float, high: float
) -> Figure:
    """Mean final losses with their standard deviation; colours are spread over log(low) to
    log(high).
    """
    width = min(8.4, max(3.2, 0.9 + 1.1 * len(cells[0])))
    figure, (axis,) = panels(1, 1, 0.75 + 0.6 * len(cells), width=width)
    axis.set_xlim(0, len(cells[0]))
    axis.set_ylim(len(cells), 0)
    for r, row in enumerate(cells):
        for c, cell in enumerate(row):
            color: Color = FAINT
            ink, words = "#a8331f", "failed" if cell.runs else "none"
            if cell.loss is not None:
                share = math.log(max(cell.loss.mean, low) / low) / math.log(high / low)
                color, ink = _shade(share)
                words = f"{cell.loss.mean:.4g}"
                words += "" if cell.loss.deviation is None else f"\n± {cell.loss.deviation:.2g}"
                words += (
                    ""
                    if cell.loss.count == cell.runs
                    else f"\n{cell.runs - cell.loss.count} failed"
                )
            axis.fill_between([c + 0.02, c + 0.98], r + 0.03, r + 0.97, color=color, linewidth=0)
            axis.text(
                c + 0.5,
                r + 0.5,
                words,
                ha="center",
                va="center",
                fontsize=8,
                color=ink,
                linespacing=1.3,
            )
    axis.grid(visible=False)
    axis.spines[["left", "bottom"]].set_visible(False)
    shown = cells if down else []
    axis.set_yticks([r + 0.5 for r in range(len(shown))], [_value(row[0].down) for row in shown])
    axis.set_xticks(
        [c + 0.5 for c in range(len(cells[0]))], [_value(cell.across) for cell in cells[0]]
    )
    axis.set_ylabel(shortened(down or "", 34))
    axis.set_xlabel(shortened(across, 34))
    for text in (
        *axis.get_xticklabels(),
        *axis.get_yticklabels(),
        axis.xaxis.label,
        axis.yaxis.label,
    ):
        text.set_parse_math(False)
    return figure


# --- small things ---------------------------------------------------------------------------------


def _positive(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in curve if x > 0 and y > 0]


def _at(curve: Sequence[tuple[float, float]], x: float, logarithmic: bool) -> float:
    """The curve at x, linear between its points over log x."""
    for (a, ya), (b, yb) in pairwise(curve):
        if a <= x < b:
            share = math.log(x / a) / math.log(b / a)
            return ya ** (1 - share) * yb**share if logarithmic else ya + share * (yb - ya)
    return curve[-1][1] if x >= curve[-1][0] else curve[0][1]


def _legend(figure: Figure, look: Mapping[str, tuple[str, LineStyleType]]) -> None:
    """The learners that are drawn, above all panels."""
    if not look:
        return
    handles = [
        Line2D([], [], color=color, linestyle=style, linewidth=2.2)
        for color, style in look.values()
    ]
    legend = figure.legend(
        handles,
        [shortened(name, 34) for name in look],
        fontsize=8,
        frameon=False,
        labelcolor=INK,
        loc="outside upper left",
        ncols=len(look) if sum(map(len, look)) < 70 else 4,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _sorted(values: Iterable[object]) -> list[object]:
    """Each value once (some are lists): numbers by size, others as words."""
    found: list[object] = []
    for value in values:
        found += [] if value in found else [value]
    numbers = [value for value in found if isinstance(value, int | float)]
    return [*sorted(numbers)] if len(numbers) == len(found) else sorted(found, key=str)


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else shortened(str(value), 20)


def _shade(share: float) -> tuple[Color, str]:
    """Colour of a cell and of the words in it: deep blue for the lowest loss, pale for the
    highest.
    """
    deep, pale = (0.11, 0.32, 0.53), (0.90, 0.94, 0.97)
    red, green, blue = (a + share * (b - a) for a, b in zip(deep, pale, strict=True))
    return (red, green, blue), "#ffffff" if share < 0.55 else "#1d2733"
