"""Report: one self-contained page, figures and data about finished runs; reads records, never
solves.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import Tensor

from ..core import (
    Cost,
    Evaluation,
    InputError,
    Kind,
    ModelFileError,
    RunRecord,
    Status,
    StopReason,
    summarize,
)
from ..core.asking import offers
from ..core.files import write_atomically
from ..core.objective import Row
from ..core.words import slug
from .folder import made
from .words import evidence, reason, sentence, show

FORMAT, VERSION = "learnreg-run", 1
_AGAIN = "Save the report again from its run, or restore run.json and run.safetensors together."


class LearnedRun(Protocol):
    """What a report needs from a run; ``filters`` may be missing or None."""

    @property
    def name(self) -> str: ...
    @property
    def record(self) -> RunRecord: ...
    @property
    def stop(self) -> StopReason: ...
    @property
    def theta(self) -> Tensor: ...


class _Filtered(Protocol):
    """A run that knows the filters it has learned."""

    @property
    def filters(self) -> Mapping[str, Tensor] | None: ...


@dataclass(frozen=True)
class SavedRun:
    """A run as a report keeps it.

    Attributes:
        name: display name, for example "TV" or "FoE".
        record, stop: the history, and why it ended.
        theta: (d,), learned parameters.
        filters: None, or ``kernels`` (K, c, s, s), ``weights`` (K,) and optionally ``smoothings``
            (K,).
    """

    name: str
    record: RunRecord
    stop: StopReason
    theta: Tensor
    filters: Mapping[str, Tensor] | None = None


class Report:
    """What was learned, how well it works on held-out images, and at what cost.

    ``print(report)`` shows the table; ``save`` writes the page; ``load`` reads an old report back.

    Args:
        run: anything with ``name``, ``record``, ``stop``, ``theta`` and optionally ``filters``.
        evaluation: its certified reconstructions of held-out images.

    Raises:
        InputError: an evaluation without images, or (``compare``) of other images than the first
            one.
    """

    def __init__(self, run: LearnedRun, evaluation: Evaluation) -> None:
        self._set({str(run.name): (run, evaluation)})

    @classmethod
    def compare(cls, methods: Mapping[str, tuple[LearnedRun, Evaluation]]) -> Report:
        """One report for several methods, {display name: (run, evaluation)}, on the same held-out
        images.
        """
        report = cls.__new__(cls)
        report._set(methods)
        return report

    def _set(self, methods: Mapping[str, tuple[LearnedRun, Evaluation]]) -> None:
        if not methods:
            raise InputError(
                "methods", given="none", expected="at least one {name: (run, evaluation)}"
            )
        first = next(iter(methods.values()))[1]
        for name, (_, evaluation) in methods.items():
            if not evaluation.psnr:
                raise InputError(
                    f"evaluation of {name!r}",
                    given="no images",
                    expected="at least one image",
                    remedy="Evaluate the run on a non-empty set of pairs.",
                )
            if not all(
                a.shape == b.shape and torch.equal(a.cpu(), b.cpu())
                for a, b in ((first.x, evaluation.x), (first.y, evaluation.y))
            ):
                raise InputError(
                    f"evaluation of {name!r}",
                    given="other images or measurements",
                    expected="the same held-out pairs for every method",
                    remedy="Evaluate all runs on the same pairs.",
                )
        self.runs = {
            name: SavedRun(name, run.record, run.stop, run.theta, _filters(run))
            for name, (run, _) in methods.items()
        }
        self.evaluations = {name: evaluation for name, (_, evaluation) in methods.items()}

    @property
    def _first(self) -> Evaluation:
        return next(iter(self.evaluations.values()))

    def table(self) -> list[Row]:
        """One row for the noisy input and one per method; what does not apply or is not known is
        None.
        """

        def row(name: str, evaluation: Evaluation, suffix: str = "", **learned: object) -> Row:
            values = {}
            for metric in ("psnr", "ssim"):
                values[metric] = evaluation.mean(f"{metric}{suffix}")
                values[f"{metric}_spread"] = evaluation.spread(f"{metric}{suffix}")
            return {
                "name": name,
                **values,
                "parameters": None,
                "work": None,
                "seconds": None,
                **learned,
            }

        rows = [row("noisy", self._first, "_input", learned=False)]
        for name, run in self.runs.items():
            last = run.record.rows[-1] if run.record.rows else {}
            work = None if last.get("work") is None else last["work"] / run.record.images
            rows.append(
                row(
                    name,
                    self.evaluations[name],
                    parameters=run.theta.numel(),
                    work=work,
                    seconds=last.get("seconds"),
                    learned=True,
                )
            )
        return rows

    def summary(self) -> str:
        """One paragraph: who won by how much, what was learned from what, why the learning
        ended.
        """
        return " ".join([self.headline(), *(self.story(name) for name in self.runs)])

    def headline(self) -> str:
        """Who won by how much on the held-out images."""
        noisy, *rows = self.table()
        images = len(self._first.psnr)
        ranked = sorted(rows, key=lambda r: -r["psnr"] if math.isfinite(r["psnr"]) else math.inf)
        best = ranked[0]
        on = "one held-out image" if images == 1 else f"{images} held-out images"
        if not math.isfinite(best["psnr"]):
            return f"The PSNR on {on} is not known."
        verb = "does not lift" if best["psnr"] <= noisy["psnr"] else "lifts"
        text = (
            f"On {on}, {best['name']} {verb} the PSNR from {show(noisy['psnr'], 2)} dB to "
            f"{show(best['psnr'], 2)} dB{' on average' if images > 1 else ''}"
        )
        if len(ranked) > 1:
            second = ranked[1]
            ours, theirs = (self.evaluations[r["name"]].psnr for r in (best, second))
            ahead = sum(a > b for a, b in zip(ours, theirs, strict=True))
            text += f", {show(best['psnr'] - second['psnr'], 2)} dB above {second['name']}"
            text += "" if images == 1 else f", and is ahead of it on {ahead} of {images} images"
        return f"{text}."

    def story(self, name: str) -> str:
        """What was learned from what, at what cost, and why the learning ended."""
        run, row = self.runs[name], next(r for r in self.table()[1:] if r["name"] == name)
        steps = run.record.rows[-1].get("step") if run.record.rows else None
        return (
            f"{name}: {sentence(run.record.problem)} The learning took {show(steps)} accepted "
            f"step{'' if steps == 1 else 's'}, {show(row['work'], 0)} energy evaluations per "
            "training "
            f"image and {show(row['seconds'], 1)} seconds. {reason(run.stop)}"
        )

    def __str__(self) -> str:
        cells = [["method", "PSNR (dB)", "SSIM", "parameters", "work per image", "seconds"]]
        for r in self.table():
            after = [
                show(r[key], digits) if r["learned"] else "-"
                for key, digits in (("parameters", 0), ("work", 0), ("seconds", 1))
            ]
            cells.append([r["name"], self.pm(r, "psnr", 2), self.pm(r, "ssim", 3), *after])
        widths = [max(len(row[c]) for row in cells) for c in range(len(cells[0]))]
        lines = [
            "  ".join([r[0].ljust(widths[0]), *map(str.rjust, r[1:], widths[1:])]) for r in cells
        ]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])

    __repr__ = __str__

    def pm(self, row: Row, key: str, digits: int) -> str:
        """Mean ± spread over the held-out images; one image has no spread."""
        single = len(self._first.psnr) == 1
        return show(row[key], digits) + (
            "" if single else f" ± {show(row[f'{key}_spread'], digits)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The content of ``run.json`` (without the tensors, which go to ``run.safetensors``)."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "methods": [
                {
                    "name": name,
                    "record": run.record.to_dict(),
                    "stop": {"code": run.stop.code, "sentence": run.stop.sentence},
                    "evaluation": self.evaluations[name].to_dict(),
                }
                for name, run in self.runs.items()
            ],
        }

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the page, its figures and the data; returns the path of the page.

        The folder then holds ``index.html``, ``figures/*.png``, ``run.json`` and
        ``run.safetensors``. Each file is replaced as a whole, so an interrupted call leaves no
        half-written file.

        Raises:
            InputError: ``folder`` is a file or cannot be created.
        """
        folder = made(folder)
        page, pictures = self._render()
        tensors = safetensors.torch.save(self._tensors(), {"format": f"{FORMAT} {VERSION}"})
        document = {**self.to_dict(), "tensors": {"sha256": hashlib.sha256(tensors).hexdigest()}}
        write_atomically(folder / "run.safetensors", tensors)
        write_atomically(
            folder / "run.json",
            json.dumps(document, indent=1, allow_nan=False, default=str).encode(),
        )
        for name, data in pictures.items():
            write_atomically(folder / "figures" / name, data)
        write_atomically(folder / "index.html", page.encode(errors="replace"))
        return folder / "index.html"

    def _render(self) -> tuple[str, dict[str, bytes]]:
        """The page, and the figures by file name."""
        from . import figures  # slow imports, needed here only
        from .template import render

        records = {name: run.record for name, run in self.runs.items()}
        first, last = self._first, next(reversed(self.evaluations.values()))
        drawn = {
            "loss": figures.loss(records),
            "schedules": figures.schedules(records),
            "psnr": figures.psnr(self.evaluations),
            "certificate": figures.certificate(self.evaluations),
        }
        plots = {name: plot for name, plot in drawn.items() if plot is not None}
        hard_to_easy = sorted(range(len(first.psnr)), key=lambda i: last.psnr[i])
        shown = sorted({round(q * (len(hard_to_easy) - 1)) for q in (0.0, 0.5, 1.0)})
        chosen = [hard_to_easy[k] for k in shown]
        rest = [i for i in range(len(first.psnr)) if i not in chosen]
        rest = rest[
            : max(0, min(16, 2_000_000 // max(1, first.x[0].numel())))
        ]  # keeps the page light
        files_ = {f"{name}.png": figures.png(plot) for name, plot in plots.items()}
        files_["reconstructions.png"] = figures.png(figures.pictures(self.evaluations, chosen))
        banks: dict[str, list[dict[str, str | float | None]]] = {}
        for number, (name, run) in enumerate(self.runs.items()):
            if run.filters:
                file = f"filters_{slug(name)}.png"
                file = file if file not in files_ else f"filters_{slug(name)}_{number}.png"
                files_[file] = figures.png(figures.filters(**run.filters))
                banks[name] = figures.filter_cells(**run.filters)
        page = render(
            "page.html.j2",
            report=self,
            rows=self.table(),
            first=first,
            hardest_by=next(reversed(self.runs)),
            reason=reason,
            evidence=evidence,
            pedigree=_pedigree(records),
            plots={
                k: figures.data_uri(figures.svg(plot), "image/svg+xml") for k, plot in plots.items()
            },
            gallery=[(i, figures.cells(self.evaluations, i)) for i in chosen],
            rest=[(i, figures.cells(self.evaluations, i)) for i in rest],
            banks=banks,
            honesty={name: _honesty(e) for name, e in self.evaluations.items()},
            statuses={name: summarize(e.status) for name, e in self.evaluations.items()},
            settings={name: _flat(run.record.settings) for name, run in self.runs.items()},
        )
        return page, files_

    def _tensors(self) -> dict[str, Tensor]:
        found = {"x": self._first.x, "y": self._first.y}
        for number, (name, run) in enumerate(self.runs.items()):
            found[f"{number}.reconstruction"] = self.evaluations[name].reconstruction
            found[f"{number}.theta"] = run.theta
            found.update({f"{number}.filters.{k}": v for k, v in (run.filters or {}).items()})
        return {key: value.detach().cpu().contiguous().clone() for key, value in found.items()}

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Report:
        """Read ``run.json`` and ``run.safetensors`` of an earlier ``save``; nothing is solved
        again.

        Raises:
            InputError: a file is missing.
            ModelFileError: a file is corrupted, foreign, of another version, or the two do not
                match.
        """
        text, tensors = (_read(Path(folder) / name) for name in ("run.json", "run.safetensors"))
        where = str(Path(folder) / "run.json")
        try:
            data = json.loads(text)
        except ValueError as error:
            raise ModelFileError(
                where, given=f"no valid JSON ({error})", expected=f"a {FORMAT} file", remedy=_AGAIN
            ) from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ModelFileError(
                where,
                given="a file of another kind",
                expected=f'JSON with "format": "{FORMAT}"',
                remedy="Point to the folder that Report.save wrote.",
            )
        if data.get("version") != VERSION:
            raise ModelFileError(
                where,
                given=f"version {data.get('version')}",
                expected=f"version {VERSION}",
                remedy="Read it with the release of learnreg that wrote it.",
            )
        try:
            found, expected = hashlib.sha256(tensors).hexdigest(), data["tensors"]["sha256"]
            if found != expected:
                raise ModelFileError(
                    str(Path(folder) / "run.safetensors"),
                    given=f"sha256 {found[:12]}...",
                    expected=f"{expected[:12]}..., named in run.json",
                    remedy=_AGAIN,
                )
            stored = safetensors.torch.load(tensors)
            return cls.compare(
                {m["name"]: _restore(m, n, stored) for n, m in enumerate(data["methods"])}
            )
        except InputError:
            raise
        except (
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            safetensors.SafetensorError,
        ) as error:
            raise ModelFileError(
                where,
                given=f"incomplete content ({type(error).__name__}: {error})",
                expected="record, stop and evaluation of each method",
                remedy=_AGAIN,
            ) from error


def _filters(run: LearnedRun) -> Mapping[str, Tensor] | None:
    """What a run says of its filters."""
    return run.filters if offers(run, _Filtered) else None


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


def _restore(
    data: dict[str, Any], number: int, stored: Mapping[str, Tensor]
) -> tuple[SavedRun, Evaluation]:
    e, prefix = data["evaluation"], f"{number}.filters."
    filters = {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
    columns = {
        c: tuple(math.nan if v is None else v for v in e[c])
        for c in ("psnr", "ssim", "psnr_input", "ssim_input", "error")
    }
    error = torch.tensor(columns.pop("error"), dtype=torch.float64)
    kind = {k.label: k for k in (Kind.UNKNOWN, Kind.ESTIMATE, Kind.BOUND)}[e["kind"]]
    evaluation = Evaluation(
        stored[f"{number}.reconstruction"],
        stored["x"],
        stored["y"],
        **columns,
        error=error,
        kind=kind,
        status=tuple(Status[s.upper()] for s in e["status"]),
        eps=e["eps"],
        names=tuple(e["names"]),
        cost=Cost(**e["cost"]),
        honesty=tuple(e["honesty"]),
        theorem=tuple(e.get("theorem", ())),
        peak=tuple(math.nan if v is None else v for v in e.get("peak", ())),
    )
    stop = StopReason(data["stop"]["code"], data["stop"]["sentence"])
    run = SavedRun(
        data["name"],
        RunRecord.from_dict(data["record"]),
        stop,
        stored[f"{number}.theta"],
        filters or None,
    )
    if not all(isinstance(row, dict) for row in (*run.record.rows, *evaluation.honesty)):
        raise TypeError("a row is no table of named numbers")
    if any(
        len(v) != len(evaluation.x) for v in (*columns.values(), error, evaluation.reconstruction)
    ):
        raise ValueError("the number of images differs between columns")
    return run, evaluation


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            str(path),
            given=error.strerror,
            expected="a file written by Report.save",
            remedy="Name the folder of a saved report.",
        ) from error
