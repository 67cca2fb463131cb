"""The page of a report: pictures, figures, sentences and tables put into the template."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..core import Evaluation, RunRecord, summarize
from ..core.words import slug
from . import figures
from .content import Content
from .display import Cut, Window, drawn, flat, how_drawn
from .findings import dead_filters, listed, remarks
from .provenance import made_of, names_of, repeat_words
from .statistics import in_words
from .tables import per_image, references
from .template import render
from .words import evidence, reason, show

FAILURES = 4
"""Images that got worse are shown, so many of a method; the others are named."""

PIXELS = 2_000_000
"""Of further images, so that the page stays light."""


def render_page(report: Content, formats: Sequence[str]) -> tuple[str, dict[str, bytes]]:
    """The page, and the figures by file name."""
    records = {name: run.record for name, run in report.runs.items()}
    first, last = report.first, next(reversed(report.evaluations.values()))
    colors = _colors(report)
    plots = {
        name: plot
        for name, plot in {
            "loss": figures.loss(records),
            "schedules": figures.schedules(records),
            "psnr": figures.psnr(report.columns, first.names, colors),
            "certificate": figures.certificate(report.evaluations),
        }.items()
        if plot is not None
    }
    hard_to_easy = sorted(range(len(first.psnr)), key=lambda i: last.psnr[i])
    shown = sorted({round(q * (len(hard_to_easy) - 1)) for q in (0.0, 0.5, 1.0)})
    chosen = [hard_to_easy[k] for k in shown]
    rest = [i for i in range(len(first.psnr)) if i not in chosen]
    rest = rest[: max(0, min(16, PIXELS // max(1, first.x[0].numel())))]
    window = Window.of(first.x)
    failed = {name: report.worse(name) for name in report.runs}
    to_show = list(dict.fromkeys(i for lost in failed.values() for i in lost[:FAILURES]))
    cells = {i: _cells(report, i, window) for i in dict.fromkeys([*chosen, *rest, *to_show])}

    files: dict[str, bytes] = {}
    vectors = {name: figures.svg(plot) for name, plot in plots.items()}
    for name, plot in plots.items():
        others = [kind for kind in formats if kind != "svg"]
        files |= figures.files(name, plot, others)
        files |= {f"{name}.svg": vectors[name]} if "svg" in formats else {}
    gallery = figures.pictures([cells[i] for i in chosen])
    files |= figures.files("reconstructions", gallery, formats)
    banks: dict[str, list[dict[str, str | float | bool | None]]] = {}
    for number, (name, run) in enumerate(report.runs.items()):
        if run.filters:
            dead = dead_filters(run.filters, _peak(first))
            file = f"filters_{slug(name)}"
            file = file if not any(f.startswith(f"{file}.") for f in files) else f"{file}_{number}"
            files |= figures.files(file, figures.filters(**run.filters, dead=dead), formats)
            banks[name] = figures.filter_cells(**run.filters, dead=dead)

    sources = len(first.setup.get("sources", ()))
    page = render(
        "page.html.j2",
        report=report,
        rows=report.table(),
        first=first,
        hardest_by=next(reversed(report.runs)),
        reason=reason,
        evidence=evidence,
        pedigree=_pedigree(records),
        plots={
            name: figures.data_uri(figures.themed(vector), "image/svg+xml")
            for name, vector in vectors.items()
        },
        alts=_alternatives(report, records),
        window=window.words,
        drawn=how_drawn(first.x),
        gallery=[_uris(cells[i]) for i in chosen],
        rest=[_uris(cells[i]) for i in rest],
        failures={n: _failure(report, n, lost) for n, lost in failed.items() if lost},
        failed=[_uris(cells[i]) for i in to_show],
        missed={n: _missed(e) for n, e in report.evaluations.items()},
        banks=banks,
        kernels={n: _kernel_cells(run.kernels) for n, run in report.runs.items() if run.kernels},
        remarks={
            name: remarks(
                run.filters,
                run.record.setup,
                run.theta,
                run.record.parameter_names,
                _peak(first),
            )
            for name, run in report.runs.items()
        },
        pairs=[in_words(pair, sources) for pair in report.pairs()],
        baselines={n: b.words for n, b in report.baselines.items() if b.words},
        images=per_image(report),
        honesty={name: _honesty(e) for name, e in report.evaluations.items()},
        statuses={name: summarize(e.status) for name, e in report.evaluations.items()},
        made={n: made_of(r, report.evaluations[n]) for n, r in records.items()},
        named={
            "Training images": names_of(next(iter(records.values())).setup.get("data", {})),
            "Held-out images": names_of(first.setup),
        },
        settings={name: _flat(run.record.settings) for name, run in report.runs.items()},
        own_settings=_flat(report.settings),
        repeat=repeat_words(records, {n: r.stop for n, r in report.runs.items()}),
        as_picture=_as_picture(first.y),
        references=references(report),
    )
    return page, files


def _kernel_cells(kernels: Mapping[str, Tensor]) -> list[dict[str, str]]:
    """The kernels of an operator as the page shows them."""
    return [
        {
            "source": figures.data_uri(figures.filter_png(kernel), "image/png"),
            "words": name if len(many) == 1 else f"{name} {number}",
        }
        for name, many in kernels.items()
        for number, kernel in enumerate(many, start=1)
    ]


# --- pictures -------------------------------------------------------------------------------------


def _colors(report: Content) -> list[str]:
    """Grey for the input, greys for the baselines, a colour for every method."""
    greys = [figures.NOISY, "#5b6673", "#b0a58f", "#9aa7a0"] * (1 + len(report.baselines))
    count = 1 + len(report.baselines)
    return [*greys[:count], *figures.cycle()[: len(report.runs)]]


def _cells(report: Content, i: int, window: Window) -> list[figures.Cell]:
    """Image ``i``: the truth, the input and every competitor, with their liveliest detail."""
    first = report.first
    truth = flat(first.x[i])
    cut = Cut.liveliest(truth)
    name = first.names[i] if i < len(first.names) else f"image {i}"
    before = first.psnr_input[i]

    def cell(title: str, value: str, image: Tensor, words: str) -> figures.Cell:
        shown = flat(image)
        fits = shown.shape[1:] == truth.shape[1:]
        part = cut.of(shown) if fits else shown
        height = truth.shape[1] if truth.dim() == 3 else 1
        frame = (
            cut.left / truth.shape[-1],
            cut.top / height,
            cut.width / truth.shape[-1],
            cut.height / height,
        )
        return figures.Cell(
            title, value, drawn(shown, window), drawn(part, window), frame if fits else None, words
        )

    found = [cell("truth", figures.shortened(name, 28), first.x[i], f"image {i}, {name}: truth")]
    for column in report.columns:
        if column.images is None or column.images.shape != first.x.shape:
            continue
        value = f"{column.psnr[i]:.2f} dB" if math.isfinite(column.psnr[i]) else "not known"
        gain = column.psnr[i] - before
        words = f"image {i}, {column.name}: {value}"
        if column.name != first.seen_as and math.isfinite(gain):
            words += f", {abs(gain):.2f} dB {'above' if gain >= 0 else 'below'} {first.seen_as}"
        title = figures.shortened(column.name, 24)
        found.append(cell(title, value, column.images[i], words))
    return found


def _uris(cells: Sequence[figures.Cell]) -> list[dict[str, str]]:
    """A row of pictures as the page shows it."""
    return [
        {
            "name": cell.name,
            "value": cell.value,
            "words": cell.words,
            "box": ""
            if cell.frame is None
            else "left:{:.4g}%;top:{:.4g}%;width:{:.4g}%;height:{:.4g}%".format(
                *(100 * share for share in cell.frame)
            ),
            "whole": figures.data_uri(figures.picture_png(cell.whole), "image/png"),
            "detail": figures.data_uri(figures.picture_png(cell.detail), "image/png"),
        }
        for cell in cells
    ]


def _as_picture(y: object) -> bool:
    """Whether measurements are pictures that image files can hold."""
    return isinstance(y, Tensor) and y.dim() == 4 and not y.is_complex() and y.shape[1] in (1, 3)


# --- words ----------------------------------------------------------------------------------------


def _peak(evaluation: Evaluation) -> float:
    """The least peak of the images, 1 where none is known."""
    known = [p for p in evaluation.peak if math.isfinite(p)]
    return min(known, default=1.0)


def _failure(report: Content, name: str, lost: Sequence[int]) -> str:
    """Which images got worse, and by how much."""
    first, after = report.first, report.evaluations[name].psnr
    words = [
        f"{first.names[i] if i < len(first.names) else f'image {i}'} "
        f"(by {first.psnr_input[i] - after[i]:.2f} dB)"
        for i in lost
    ]
    verb = "is" if len(lost) == 1 else "are"
    return (
        f"{len(lost)} of {len(after)} images {verb} worse after {name} than before "
        f"({first.seen_as}): {listed(words)}."
    )


def _missed(evaluation: Evaluation) -> str:
    """Which images did not reach the accuracy asked for."""
    bad = [i for i, status in enumerate(evaluation.status) if not status.ok]
    names = [evaluation.names[i] if i < len(evaluation.names) else f"image {i}" for i in bad]
    if not bad:
        return ""
    return f"{len(bad)} of {len(evaluation.status)} did not reach it: {listed(names)}."


def _alternatives(report: Content, records: Mapping[str, RunRecord]) -> dict[str, str]:
    """What the figures show, in words that say the result."""
    columns = report.columns
    means = [f"{c.name} {show(sum(c.psnr) / len(c.psnr), 2)} dB" for c in columns]
    worst = [f"{name} worse on {len(report.worse(name))}" for name in report.runs]
    certificates = []
    for name, evaluation in report.evaluations.items():
        told = _honesty(evaluation)
        if told["least"] is not None:
            certificates.append(
                f"{name}: the {evaluation.kind.label} error is {told['least']:.3g} to "
                f"{told['most']:.3g} times the true one, too small in {told['failures']} of "
                f"{told['rows']} checks"
            )
    return {
        "psnr": f"PSNR of each held-out image, on average {', '.join(means)}; against the input "
        f"{listed(worst)} of {len(report.first.psnr)} images",
        "loss": f"Training loss: {_falls(records, 'loss')}",
        "schedules": f"Accuracy eps: {_falls(records, 'eps')}. Hypergradient norm: "
        f"{_falls(records, 'gradient_norm')}",
        "certificate": "; ".join(certificates) or "Accuracy asked for, reported and true error",
    }


def _falls(records: Mapping[str, RunRecord], column: str) -> str:
    """From where to where a column went, for every run."""
    parts = []
    for name, record in records.items():
        known = [v for v in record.column(column) if v is not None]
        ends = f"{show(known[0])} to {show(known[-1])}" if known else "not recorded"
        parts.append(f"{name} {ends}")
    return ", ".join(parts)


def _flat(data: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, printed value)."""
    pairs: list[tuple[str, str]] = []
    for key, value in data.items():
        name = f"{prefix}{key}"
        pairs += _flat(value, f"{name}.") if isinstance(value, Mapping) else [(name, show(value))]
    return pairs


def _pedigree(records: Mapping[str, RunRecord]) -> str:
    """How the brackets of the exact losses are known; nothing where the records do not say."""
    rows = [row for r in records.values() for row in r.rows if row.get("upper") is not None]
    kinds = {row.get("kind") for row in rows}
    if kinds in ({"certified"}, {"estimated"}):
        return str(kinds.pop())
    return "certified at some steps and estimated at others" if "certified" in kinds else ""


def _honesty(evaluation: Evaluation) -> dict[str, Any]:
    """How the reported error compares with the true one: rows, failures, smallest and largest
    ratio.

    The true error is known up to ``reference``; a certificate has failed only where even the
    smallest true error that this leaves is larger.
    """
    known = [
        (r["certified"], r["true"], r.get("reference") or 0.0)
        for r in evaluation.honesty
        if r.get("certified") is not None and r.get("true") is not None
    ]
    ratios = [
        certified / true for certified, true, _ in known if true > 0 and math.isfinite(certified)
    ]
    return {
        "rows": len(known),
        "failures": sum(true - off > certified for certified, true, off in known),
        "least": min(ratios, default=None),
        "most": max(ratios, default=None),
        "reference": max((off for *_, off in known), default=0.0),
    }
