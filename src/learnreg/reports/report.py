"""Report: one self-contained page, figures and data about finished runs; reads records, never
solves.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import Tensor

from ..core import Evaluation, InputError, RunRecord, StopReason
from ..core.asking import offers
from ..core.files import write_atomically
from ..core.objective import Row
from ..core.ranges import check_choice
from .beside import Kept, keep_models
from .columns import BaselineLike, Column, Measured, spread
from .findings import title
from .folder import made
from .statistics import Paired, paired
from .stored import FORMAT, VERSION, SavedRun, read
from .words import reason, sentence, show


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


class _WithKernels(Protocol):
    """A run that knows the kernels of the operator it has learned."""

    @property
    def kernels(self) -> Mapping[str, Tensor] | None: ...


class Report:
    """What was learned, how well it works on held-out images, and at what cost.

    ``print(report)`` shows the table; ``save`` writes the page; ``load`` reads an old report back.

    Args:
        run: anything with ``name``, ``record``, ``stop``, ``theta`` and optionally ``filters``. A
            ``Run`` also brings the model that is saved beside the page.
        evaluation: its reconstructions of held-out images.
        config: the complete configuration (TOML) that repeats the run, or one per method; the page
            prints it for copying.
        command: what was typed, for example ``learnreg learn config.toml``.
        baselines: {name: pictures of the same held-out images}, as a tensor, an Evaluation, or a
            ``Baseline`` of ``learnreg.runs.baselines``; each is a row of the table and a column of
            the pictures.
        settings: whatever else somebody would need to repeat this, {name: value}.

    Raises:
        InputError: an evaluation without images, or (``compare``) of other images than the first
            one; a baseline of another shape, or of a name that a method has.
    """

    def __init__(
        self,
        run: LearnedRun,
        evaluation: Evaluation,
        *,
        config: str | Mapping[str, str] | None = None,
        command: str | None = None,
        baselines: Mapping[str, BaselineLike] | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        self._set({str(run.name): (run, evaluation)}, config, command, baselines, settings)

    @classmethod
    def compare(
        cls,
        methods: Mapping[str, tuple[LearnedRun, Evaluation]],
        *,
        config: str | Mapping[str, str] | None = None,
        command: str | None = None,
        baselines: Mapping[str, BaselineLike] | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> Report:
        """One report for several methods, {display name: (run, evaluation)}, on the same held-out
        images; the rest as for ``Report``.
        """
        report = cls.__new__(cls)
        report._set(methods, config, command, baselines, settings)
        return report

    def _set(
        self,
        methods: Mapping[str, tuple[LearnedRun, Evaluation]],
        config: str | Mapping[str, str] | None,
        command: str | None,
        baselines: Mapping[str, BaselineLike] | None,
        settings: Mapping[str, object] | None,
    ) -> None:
        if not methods:
            raise InputError(
                "methods", given="none", expected="at least one {name: (run, evaluation)}"
            )
        first = next(iter(methods.values()))[1]
        for name, (_, evaluation) in methods.items():
            _check_evaluation(name, evaluation, first)
        self.runs = {
            name: SavedRun(name, run.record, run.stop, run.theta, _filters(run), _kernels(run))
            for name, (run, _) in methods.items()
        }
        self.evaluations = {name: evaluation for name, (_, evaluation) in methods.items()}
        self.baselines = {
            name: _baseline(name, given, first, methods)
            for name, given in (baselines or {}).items()
        }
        given = {"": config} if isinstance(config, str) else dict(config or {})
        self.config: dict[str, str] = given
        self.command = command or ""
        self.settings: dict[str, object] = dict(settings or {})
        self.models: dict[str, Kept] = {}
        self._sources: dict[str, object] = {name: run for name, (run, _) in methods.items()}
        self._origin: Path | None = None

    @property
    def first(self) -> Evaluation:
        """The evaluation of the first method; all share its images."""
        return next(iter(self.evaluations.values()))

    @property
    def columns(self) -> list[Column]:
        """What is compared: the input, the baselines, the methods."""
        first = self.first
        same = first.y.shape == first.x.shape if isinstance(first.y, Tensor) else False
        seen = first.seen if first.seen is not None else (first.y if same else None)
        return [
            Column(first.seen_as, seen, first.psnr_input, first.ssim_input, False),
            *(Column(n, b.images, b.psnr, b.ssim, False) for n, b in self.baselines.items()),
            *(
                Column(n, e.reconstruction, e.psnr, e.ssim, True)
                for n, e in self.evaluations.items()
            ),
        ]

    @property
    def title(self) -> str:
        """What was learned for what, for example "Total variation + Tikhonov for tomography"."""
        return title({name: run.record.setup for name, run in self.runs.items()})

    def pairs(self) -> list[Paired]:
        """Every method against the input, the baselines and the methods before it, by PSNR."""
        columns = self.columns
        found = []
        for i, column in enumerate(columns):
            for other in columns[:i] if column.learned else ():
                found.append(paired(column.name, column.psnr, other.name, other.psnr))
        return [pair for pair in found if pair is not None]

    def worse(self, name: str) -> list[int]:
        """Held-out images on which a method has a lower PSNR than the input, worst first."""
        before, after = self.first.psnr_input, self.evaluations[name].psnr
        lost = [(a - b, i) for i, (a, b) in enumerate(zip(after, before, strict=True)) if a < b]
        return [i for _, i in sorted(lost)]

    def table(self) -> list[Row]:
        """One row for the input, the baselines and every method; what does not apply or is not
        known is None.
        """
        rows: list[Row] = []
        for column in self.columns:
            row: Row = {"name": column.name, "learned": column.learned}
            for metric, values in (("psnr", column.psnr), ("ssim", column.ssim)):
                row[metric] = sum(values) / len(values)
                row[f"{metric}_spread"] = spread(values)
            row |= {"parameters": None, "work": None, "seconds": None}
            if column.learned:
                run = self.runs[column.name]
                last = run.record.rows[-1] if run.record.rows else {}
                known = last.get("work") is not None
                row |= {
                    "parameters": run.theta.numel(),
                    "work": last["work"] / run.record.images if known else None,
                    "seconds": last.get("seconds"),
                }
            rows.append(row)
        return rows

    def summary(self) -> str:
        """One paragraph: who won by how much, what was learned from what, why the learning
        ended.
        """
        return " ".join([self.headline(), *(self.story(name) for name in self.runs)])

    def headline(self) -> str:
        """Who won by how much on the held-out images."""
        noisy, *others = self.table()
        rows = [row for row in others if row["learned"]]
        images = len(self.first.psnr)
        ranked = sorted(rows, key=lambda r: -r["psnr"] if math.isfinite(r["psnr"]) else math.inf)
        best = ranked[0]
        on = "one held-out image" if images == 1 else f"{images} held-out images"
        if not math.isfinite(best["psnr"]):
            return f"The PSNR on {on} is not known."
        average = " on average" if images > 1 else ""
        if math.isfinite(noisy["psnr"]):
            verb = "does not lift" if best["psnr"] <= noisy["psnr"] else "lifts"
            text = (
                f"On {on}, {best['name']} {verb} the PSNR from {show(noisy['psnr'], 2)} dB "
                f"({noisy['name']}) to {show(best['psnr'], 2)} dB{average}"
            )
        else:
            text = f"On {on}, {best['name']} has a PSNR of {show(best['psnr'], 2)} dB{average}"
        for row in others[: len(self.baselines)]:
            gap = best["psnr"] - row["psnr"]
            side = "above" if gap >= 0 else "below"
            text += f", {show(abs(gap), 2)} dB {side} {row['name']}"
        if len(ranked) > 1:
            second = ranked[1]
            ours, theirs = (self.evaluations[r["name"]].psnr for r in (best, second))
            ahead = sum(a > b for a, b in zip(ours, theirs, strict=True))
            text += f", {show(best['psnr'] - second['psnr'], 2)} dB above {second['name']}"
            text += "" if images == 1 else f", and is ahead of it on {ahead} of {images} images"
        return f"{text}."

    def story(self, name: str) -> str:
        """What was learned from what, at what cost, and why the learning ended."""
        run, row = (
            self.runs[name],
            next(r for r in self.table() if r["learned"] and r["name"] == name),
        )
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
        single = len(self.first.psnr) == 1
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
                    "model": self.models.get(name, Kept()).to_dict(),
                }
                for name, run in self.runs.items()
            ],
            "baselines": [
                {"name": name, "psnr": _plain(b.psnr), "ssim": _plain(b.ssim), "words": b.words}
                for name, b in self.baselines.items()
            ],
            "repeat": {"command": self.command, "config": self.config},
            "settings": dict(self.settings),
        }

    def save(
        self, folder: str | os.PathLike[str], formats: Sequence[str] = ("png", "svg", "pdf")
    ) -> Path:
        """Write the page, the models, figures, tables and data; returns the path of the page.

        The folder then holds ``index.html``; the model of every run (``model.safetensors``, of
        several runs ``<name>/model.safetensors``; another run's model is never replaced);
        ``figures/`` as PNG, SVG and PDF; ``tables/`` as CSV and LaTeX, with ``references.bib``;
        ``run.json`` and ``run.safetensors``. Each file is replaced as a whole, so an interrupted
        call leaves no half-written file.

        Args:
            folder: made where it is not there.
            formats: of the figures beside the page; some of "png", "svg" and "pdf".

        Raises:
            InputError: ``folder`` is a file or cannot be created; an unknown format.
        """
        from .figures import MAKERS
        from .page import render_page  # slow imports, needed here only
        from .tables import tables

        for kind in formats:
            check_choice("formats", kind, [*MAKERS])
        folder = made(folder)
        self.models = keep_models(folder, self._sources, self.models, self._origin)
        self._origin = folder
        page, pictures = render_page(self, formats)
        tensors = safetensors.torch.save(self._tensors(), {"format": f"{FORMAT} {VERSION}"})
        document = {**self.to_dict(), "tensors": {"sha256": hashlib.sha256(tensors).hexdigest()}}
        write_atomically(folder / "run.safetensors", tensors)
        write_atomically(
            folder / "run.json",
            json.dumps(document, indent=1, allow_nan=False, default=str).encode(),
        )
        for name, data in pictures.items():
            write_atomically(folder / "figures" / name, data)
        for name, text in tables(self).items():
            write_atomically(folder / "tables" / name, text.encode(errors="replace"))
        write_atomically(folder / "index.html", page.encode(errors="replace"))
        return folder / "index.html"

    def _tensors(self) -> dict[str, Tensor]:
        first = self.first
        found = {"x": first.x, "y": first.y}
        if first.seen is not None and not _same(first.seen, first.y):
            found["seen"] = first.seen
        for number, (name, run) in enumerate(self.runs.items()):
            found[f"{number}.reconstruction"] = self.evaluations[name].reconstruction
            found[f"{number}.theta"] = run.theta
            found.update({f"{number}.filters.{k}": v for k, v in (run.filters or {}).items()})
            found.update({f"{number}.kernels.{k}": v for k, v in (run.kernels or {}).items()})
        for number, baseline in enumerate(self.baselines.values()):
            found[f"baseline.{number}"] = baseline.images
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
        stored = read(Path(folder))
        report = cls.compare(
            stored.methods,
            baselines=stored.baselines,
            config=stored.config,
            command=stored.command,
            settings=stored.settings,
        )
        report.models, report._origin = dict(stored.models), Path(folder)
        return report


def _filters(run: LearnedRun) -> Mapping[str, Tensor] | None:
    """What a run says of its filters."""
    return run.filters if offers(run, _Filtered) else None


def _kernels(run: LearnedRun) -> Mapping[str, Tensor] | None:
    """What a run says of the kernels of its operator."""
    return run.kernels if offers(run, _WithKernels) else None


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu())


def _plain(values: Sequence[float]) -> list[float | None]:
    return [v if math.isfinite(v) else None for v in values]


def _check_evaluation(name: str, evaluation: Evaluation, first: Evaluation) -> None:
    """Refuse an evaluation without images, or of others than the first one."""
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


def _baseline(
    name: str, given: BaselineLike, first: Evaluation, methods: Mapping[str, object]
) -> Measured:
    """A baseline, measured.

    Raises:
        InputError: of a name that is taken, or of other images.
    """
    if name in methods or name == first.seen_as:
        raise InputError(
            "baselines",
            given=f"the name {name!r}, which another row has",
            expected="a name of its own",
            remedy="Choose another name.",
        )
    return Measured.of(name, given, first.x)
