"""Comparison: one page about several learners on one problem, over starts and seeds; reads results,
never solves.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import InputError, ModelFileError
from ..core.files import write_atomically
from ..core.ranges import check_choice
from ..core.words import slug
from .folder import made
from .pairing import NEAR, ComparedRun, Lead, Spread, Summary, best_losses, lead, summaries
from .provenance import compact
from .words import show

if TYPE_CHECKING:
    from .figures import Figure

FORMAT, VERSION, FILE = "learnreg-comparison", 1, "comparison.json"
UNITS = {
    "work": "evaluations per image",
    "steps": "accepted steps",
    "patience": "evaluations per image without progress",
}
_FIELDS = {f.name for f in fields(ComparedRun)}
_AGAIN = "Run the comparison again with --resume: finished runs are read from their folders."


class Comparison:
    """Who learned best, at what cost, and whether that is more than chance.

    ``print(comparison)`` shows the table; ``save`` writes the page; ``load`` reads an old
    comparison back.

    Args:
        runs: all of them, failed ones included.
        settings: how they were done: ``budget`` (a table), ``relative``, ``points``, ``eps_test``,
            ``solver``, ``processes``, ``threads``, ``cores`` and whatever else is worth keeping;
            each may be missing.
        config: the complete configuration (TOML) that repeats it; the page prints it for copying.
        command: what was typed, for example ``learnreg compare config.toml``.

    Raises:
        InputError: no runs, or two of the same name, start and seed.
    """

    def __init__(
        self,
        runs: Sequence[ComparedRun],
        settings: Mapping[str, object] | None = None,
        *,
        config: str = "",
        command: str = "",
    ) -> None:
        if not runs:
            raise InputError("runs", given="none", expected="at least one")
        keys = [(run.name, *run.instance) for run in runs]
        if len(set(keys)) < len(keys):
            twice = next(key for i, key in enumerate(keys) if key in keys[:i])
            raise InputError(
                "runs",
                given=f"{twice} for a second time",
                expected="one run per learner, start and seed",
            )
        self.runs = tuple(runs)
        self.settings: dict[str, Any] = dict(settings or {})
        self.best = best_losses(self.runs)
        self.config, self.command = config, command

    @classmethod
    def of(
        cls,
        outcomes: Sequence[Mapping[str, Any]],
        settings: Mapping[str, object] | None = None,
        *,
        config: str = "",
        command: str = "",
    ) -> Comparison:
        """From tables with the fields of ``ComparedRun``; other keys are passed over."""
        runs = []
        for outcome in outcomes:
            found = {k: v for k, v in outcome.items() if k in _FIELDS}
            if outcome.get("fixed"):  # what earlier versions called it
                found.setdefault("adaptive", False)
            runs.append(ComparedRun(**found))
        return cls(runs, settings, config=config, command=command)

    # --- what the numbers say ---------------------------------------------------------------------

    @property
    def learners(self) -> list[str]:
        return list(dict.fromkeys(run.learner for run in self.runs))

    @property
    def seeds(self) -> list[int]:
        return list(dict.fromkeys(run.seed for run in self.runs))

    @property
    def starts(self) -> list[str]:
        return list(dict.fromkeys(run.start for run in self.runs))

    @property
    def extent(self) -> str:
        """``3 seeds × 2 starts``."""
        starts = f" × {_count(len(self.starts), 'start')}" if len(self.starts) > 1 else ""
        return f"{_count(len(self.seeds), 'seed')}{starts}"

    @property
    def floor(self) -> float:
        """The accuracy of the losses in per cent: smaller differences mean nothing."""
        return 100 * (self.settings.get("relative") or 1e-4)

    def table(self) -> list[Summary]:
        """One row per learner; the points of a grid are pooled."""
        return summaries(self.runs, self.best, lambda run: run.learner)

    def settings_table(self) -> list[Summary]:
        """One row per point of a grid."""
        return summaries([run for run in self.runs if run.grid], self.best, lambda run: run.name)

    def lead(self) -> Lead | None:
        """The two best, if they can be compared."""
        return lead(self.runs, self.best)

    def headline(self) -> str:
        """Who ends lowest, by how much, and whether that is more than the spread over seeds."""
        ended = [run for run in self.runs if run.final is not None]
        if not ended:
            return "No run of this comparison has a final loss: every one failed."
        if len({run.seed for run in ended}) < 2:
            return (
                "One seed: no spread known, so no learner is called better here. What each of "
                "them reached with "
                "this seed is in the table."
            )
        found = self.lead()
        if found is None:
            names = list(dict.fromkeys(run.name for run in ended))
            return (
                f"Only {names[0]} was run, so there is nothing to compare."
                if len({r.name for r in self.runs}) == 1
                else "No two learners have a final loss for every seed and start, so none is "
                "called better."
            )
        numbers, several = found.spread, len(self.starts) > 1
        settings = {
            run.name: row.settings
            for row in self.table()
            for run in self.runs
            if run.learner == row.name
        }
        first, second = (
            name if settings[name] == 1 else f"{name}, the best of {settings[name]} settings,"
            for name in (found.first, found.second)
        )
        extremes = f"{_percent(numbers.least)} to {_percent(numbers.most)}"
        size = f"{_percent(numbers.middle)} in the median, {extremes}"
        if found.consistent:
            return (
                f"{first} reaches the lowest exact training loss at the end of the budget with "
                "every seed"
                f"{' and from every start' if several else ''} ({self.extent}). Next is "
                f"{second.rstrip(',')}, "
                f"which ends above it by {size}."
            )
        why = (
            f"On {found.undecided} the {self._word()}brackets overlap, so that the losses cannot "
            "be told apart."
            if found.undecided
            else f"The order changes with the {'seed or start' if several else 'seed'}."
        )
        return (
            f"No learner is ahead by more than the spread over seeds. {first} has the lowest loss "
            "in the "
            f"median; {second} ends above it on {found.wins} of {len(found.differences)} problem "
            "instances "
            f"({self.extent}), by {size}. {why}"
        )

    def speed(self) -> str:
        """How soon each learner came near the best loss."""
        parts = []
        for row in self.table():
            words = (
                f"{row.name} needed {show(row.work.middle, 0)} evaluations per image and "
                f"{show(row.seconds.middle, 1)} seconds"
                if row.work and row.seconds
                else f"{row.name} did not come so near"
            )
            runs = f" (in {row.arrived} of {row.runs} runs)" if 0 < row.arrived < row.runs else ""
            parts.append(f"{words}{runs}")
        return (
            f"To come within {100 * NEAR:g} % of the best loss found, "
            f"in the median over runs: {'; '.join(parts)}."
        )

    def notes(self) -> list[str]:
        """What makes the comparison fair, and where it is not."""
        s = self.settings
        solvers = list(dict.fromkeys(run.solver for run in self.runs if run.solver))
        budget = " or ".join(f"{show(v)} {UNITS.get(k, k)}" for k, v in s.get("budget", {}).items())
        same = (
            f"the same lower-level solver ({solvers[0]})"
            if len(solvers) == 1
            else "a lower-level solver"
        )
        notes = [
            "Every run of one seed and start has the same crops and noise, the same first "
            f"parameters, {same}, "
            f"the same budget{f' ({budget} per run)' if budget else ''} and the same counter: "
            "work is the number "
            "of evaluations of the lower-level energy per training image, trials of line searches "
            "and products "
            "with Hessians included."
        ]
        if len(solvers) > 1:
            notes.append(
                f"The lower-level solvers differ ({', '.join(solvers)}), so the work is not that "
                "of the "
                "learner alone."
            )
        notes.append(
            f"The losses are not those that the learners saw. At up to {show(s.get('points'))} "
            "steps of each run the "
            "loss was evaluated again, until its bracket was no wider than "
            f"{show(s.get('relative'))} of it"
            f"{self._pedigree()}; reconstructions of held-out images are within "
            f"{show(s.get('eps_test'))} of the exact "
            "ones. Nothing of this counts as work or time of a learner."
        )
        if any(row.settings > 1 for row in self.table()):
            notes.append(
                "A learner with a grid of settings is named above with the best of them, chosen "
                "afterwards by "
                "the same numbers, which favours it; its row in the table pools them all."
            )
        stepped = [
            name
            for name in self.learners
            if any(not run.adaptive for run in self.runs if run.learner == name)
        ]
        if stepped:
            notes.append(
                f"{_listed(stepped)} learned for a reconstruction of a fixed number of steps. The "
                "exact loss "
                "here is that of the exact minimizer at the same parameters, which is another "
                "function"
                + (
                    "; the PSNR of its own reconstruction stands beside the exact one in the table."
                    if any(
                        p.get("psnr_test_own") is not None for run in self.runs for p in run.points
                    )
                    else "."
                )
            )
        if (seeds := len(self.seeds)) > 1:
            images = (
                "All seeds have the same images; a seed decides what a learner draws at random."
                if s.get("same_images")
                else "Each seed is another problem with other images, so losses are compared "
                "within a seed and start."
            )
            notes.append(
                f"{images} Two equally good learners would come in the same order with all {seeds} "
                "seeds by "
                f"chance once in {2 ** (seeds - 1)} times."
            )
        runs, threads, cores = s.get("processes") or 1, s.get("threads") or 1, s.get("cores")
        notes.append(
            f"{_count(runs, 'run')} at a time, {_count(threads, 'thread')} each"
            + (f", on {_count(cores, 'core')}." if cores else ".")
            + (
                " The runs shared cores, so their seconds are too many."
                if runs * threads > (cores or math.inf)
                else ""
            )
        )
        return notes

    def facts(self) -> list[tuple[str, str]]:
        """What it was made of, as far as the settings say it: (what, how)."""
        s, found = self.settings, []
        data, physics = s.get("data"), s.get("physics")
        if isinstance(physics, Mapping):
            found.append(("physics and noise", compact({"type": "", **physics}).strip()))
        if isinstance(data, Mapping):
            found.append(("data", compact({"type": "", **data}).strip().strip("()")))
        counts = [(run.images, run.held_out) for run in self.runs if run.images]
        if counts:
            found.append(("images", f"{counts[0][0]} to learn from, {counts[0][1]} held out"))
        for name, key in (("precision", "dtype"), ("machine", "platform")):
            if s.get(key):
                found.append((name, show(s[key])))
        versions = {"learnreg": s.get("version"), "torch": s.get("torch")}
        versions |= {"deepinv": s.get("deepinv"), "python": s.get("python")}
        known = [f"{name} {value}" for name, value in versions.items() if value]
        return [*found, *([("versions", ", ".join(known))] if known else [])]

    def _word(self) -> str:
        """An adjective for the brackets, if they are all known in the same way."""
        kinds = {p.get("kind") for r in self.runs for p in r.points if p["loss"] is not None}
        return f"{kinds.pop()} " if kinds in ({"certified"}, {"estimated"}) else ""

    def _pedigree(self) -> str:
        """Whether the brackets are proven, and how many are wider than asked for."""
        points = [p for run in self.runs for p in run.points if p["loss"] is not None]
        limit = self.settings.get("relative") or math.inf
        wide = sum(
            p["upper"] is None or p["upper"] - p["lower"] > limit * p["loss"] for p in points
        )
        kinds = {p.get("kind") for p in points}
        words = (
            " (certified)"
            if kinds == {"certified"}
            else " (not certified everywhere)"
            if points
            else ""
        )
        return (
            f"{words}, but for {wide} of {len(points)} where that could not be had"
            if wide
            else words
        )

    # --- printing ---------------------------------------------------------------------------------

    def __str__(self) -> str:
        cells = [
            [
                "learner",
                "runs",
                "final loss",
                "gap to best",
                "held-out PSNR",
                "work to 1 %",
                "seconds to 1 %",
            ]
        ]
        for r in self.table():
            cells.append(
                [
                    r.name,
                    f"{r.ended}/{r.runs}",
                    spread(r.loss, 4, significant=True),
                    gap_words(r.gap),
                    spread(r.psnr, 2),
                    _median(r.work, 0, r),
                    _median(r.seconds, 1, r),
                ]
            )
        widths = [max(len(row[c]) for row in cells) for c in range(len(cells[0]))]
        lines = [
            "  ".join([r[0].ljust(widths[0]), *map(str.rjust, r[1:], widths[1:])]) for r in cells
        ]
        return "\n".join([self.headline(), "", lines[0], "-" * len(lines[0]), *lines[1:]])

    __repr__ = __str__

    # --- files ------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The content of ``comparison.json``."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "settings": self.settings,
            "repeat": {"command": self.command, "config": self.config},
            "runs": [asdict(run) for run in self.runs],
        }

    def save(
        self, folder: str | os.PathLike[str], formats: Sequence[str] = ("png", "svg", "pdf")
    ) -> Path:
        """Write ``index.html``, ``figures/``, ``tables/`` and ``comparison.json``; returns the path
        of the page.

        Args:
            folder: made where it is not there.
            formats: of the figures beside the page; some of "png", "svg" and "pdf".

        Raises:
            InputError: ``folder`` is a file or cannot be created; an unknown format.
        """
        from .figures import MAKERS, files
        from .tables import comparison_tables

        for kind in formats:
            check_choice("formats", kind, [*MAKERS])
        folder = made(folder)
        page, drawn = self._render()
        for name, text in comparison_tables(self).items():
            write_atomically(folder / "tables" / name, text.encode(errors="replace"))
        write_atomically(
            folder / FILE, json.dumps(self.to_dict(), indent=1, allow_nan=False).encode()
        )
        for name, figure in drawn.items():
            for file, data in files(name, figure, formats).items():
                write_atomically(folder / "figures" / file, data)
        write_atomically(folder / "index.html", page.encode(errors="replace"))
        return folder / "index.html"

    def _render(self) -> tuple[str, dict[str, Figure]]:
        """The page, and its figures by name."""
        from . import comparison_figures as draw  # slow imports, needed here only
        from . import figures
        from .template import render

        drawn = {
            "loss": draw.curves(
                self.runs, "loss", "exact training loss per image", logarithmic=True
            ),
            "psnr": draw.curves(self.runs, "psnr_test", "held-out PSNR (dB)", logarithmic=False),
            "above": draw.above_best(self.runs, self.best, self.floor),
            "gaps": draw.gaps(self.runs, self.best, self.floor),
            "schedules": draw.schedules(self.runs),
        }
        grids = draw.heat_maps(self.runs)
        found = {name: figure for name, figure in drawn.items() if figure is not None}
        for number, (name, figure) in enumerate(grids.items()):
            found[f"grid_{number}_{slug(name)[:40]}"] = figure
        uris, maps = (
            {
                name: figures.data_uri(figures.themed(figures.svg(figure)), "image/svg+xml")
                for name, figure in some.items()
                if figure is not None
            }
            for some in ({**drawn}, {**grids})
        )
        page = render(
            "comparison.html.j2",
            comparison=self,
            rows=self.table(),
            settings_rows=self.settings_table(),
            plots=uris,
            grids=maps,
            colors={n: c for n, (c, _) in draw.styles(self.runs).items()},
            spread=spread,
            gap_words=gap_words,
            near=100 * NEAR,
            listed=_listed,
            count=_count,
            proven=self._word().strip(),
            facts=self.facts(),
            problems=list(dict.fromkeys(run.problem for run in self.runs if run.problem)),
        )
        return page, found

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Comparison:
        """Read ``comparison.json`` of an earlier ``save``; nothing is computed again but
        statistics.

        Raises:
            InputError: the file is missing.
            ModelFileError: it is corrupted, foreign or of another version.
        """
        path = Path(folder) / FILE
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(
                str(path),
                given=error.strerror,
                expected="a file written by Comparison.save",
                remedy="Name the folder of a saved comparison.",
            ) from error
        except ValueError as error:
            raise ModelFileError(
                str(path),
                given=f"no valid JSON ({error})",
                expected=f"a {FORMAT} file",
                remedy=_AGAIN,
            ) from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ModelFileError(
                str(path),
                given="a file of another kind",
                expected=f'JSON with "format": "{FORMAT}"',
                remedy="Point to the folder of a comparison.",
            )
        if data.get("version") != VERSION:
            raise ModelFileError(
                str(path),
                given=f"version {data.get('version')}",
                expected=f"version {VERSION}",
                remedy="Read it with the release of learnreg that wrote it.",
            )
        try:
            repeat = data.get("repeat", {})
            return cls.of(
                data["runs"],
                data["settings"],
                config=str(repeat.get("config", "")),
                command=str(repeat.get("command", "")),
            )
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelFileError(
                str(path),
                given=f"incomplete content ({type(error).__name__}: {error})",
                expected="settings and runs",
                remedy=_AGAIN,
            ) from error


def spread(numbers: Spread | None, digits: int, significant: bool = False) -> str:
    """Mean ± standard deviation, without the latter for one run; to so many decimals, or
    significant digits.

    >>> one = Spread.of([123.456])
    >>> spread(Spread.of([1.0, 2.0]), 2), spread(one, 4, significant=True), spread(None, 1)
    ('1.50 ± 0.71', '123.5', 'not known')
    """
    if numbers is None:
        return "not known"
    if significant:
        top = math.floor(math.log10(abs(numbers.mean))) if numbers.mean else 0
        digits = max(0, digits - 1 - top) if -4 < top < 6 else digits
        if not -4 < top < 6:
            tail = "" if numbers.deviation is None else f" ± {numbers.deviation:.1e}"
            return f"{numbers.mean:.{digits - 1}e}{tail}"
    return show(numbers.mean, digits) + (
        "" if numbers.deviation is None else f" ± {show(numbers.deviation, digits)}"
    )


def gap_words(numbers: Spread | None) -> str:
    """Median and range of gaps, in per cent."""
    if numbers is None:
        return "not known"
    around = (
        "" if numbers.count == 1 else f" ({_percent(numbers.least)} to {_percent(numbers.most)})"
    )
    return f"{_percent(numbers.middle)}{around}"


def _median(numbers: Spread | None, digits: int, row: Summary) -> str:
    """The median of those that arrived, with how many that were if not all."""
    if numbers is None:
        return "not reached"
    return show(numbers.middle, digits) + (
        f" ({row.arrived}/{row.runs})" if row.arrived < row.runs else ""
    )


def _percent(value: float) -> str:
    """A fraction as a percentage with two digits that count, tiny ones as zero."""
    percent = float(f"{100 * value:.1e}")
    if abs(percent) < 5e-4:
        return "0 %"
    if abs(percent) >= 1000:
        return f"{percent:.1e} %".replace("-", "−")
    digits = max(0, 1 - math.floor(math.log10(abs(percent))))
    return f"{percent:.{min(digits, 3)}f} %".replace("-", "−")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
