"""Primal-dual solvers to an equal gap: ours against deepinv's PDCP and pyproximal's PrimalDual.

    OMP_NUM_THREADS=1 python benchmarks/saddle.py --threads 1 --json saddle.json
    python benchmarks/saddle.py --cases denoise --seeds 0 --levels 1e-2 1e-3

Needs ``pip install learnreg[benchmarks]``. Cases:
    denoise  TV denoising of 8 photographs 256 x 256, noise 0.1
    ct       TV reconstruction from 60 angles of 4 photographs 64 x 64, noise 0.02, tikhonov 1e-3
A method has reached a level when (P(x) - D(p)) / P(x) is below it for every image of the batch; P
and D are evaluated in float64, by our gap function for all methods alike, outside of their clocks,
and for rivals at iterates at most 5 % apart (ours every ``interval`` iterations). Seconds are CPU
seconds of the process, all threads together, from the first iteration on. Constants that all need
(||A||) are not charged; what only ours want to know (the frequencies of A) is.

All start at x = A^T y, p = 0. Rivals get tau sigma ||K||^2 = 1 and, for every level, the best of a
grid of step ratios (with A in K: and of weights of D), found with deepinv's PDCP by iterations;
pyproximal makes the same iteration, so it gets the same. The search is charged to nobody. Timed
runs of ours and of the rivals take turns, ``--repeats`` times, and the least seconds count: on a
busy machine the ratio is what to look at, not the seconds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import deepinv as dinv
import torch
from deepinv.physics import Denoising, GaussianNoise
from rich.console import Console
from rich.table import Table
from saddle_rivals import RIVALS, Enough, Iterate, Settings

import learnreg as lr
from learnreg.cli.memory import keep_large_blocks
from learnreg.data.measure import measure
from learnreg.operators.fields import gradient_norm
from learnreg.operators.physics import LinearMap
from learnreg.problems.saddle import SaddleEnergy
from learnreg.regularizers import ExactTV
from learnreg.solvers.pdhg import PDHG

OURS = {
    f"learnreg {rule}": PDHG(rule=rule, interval=5) for rule in ("auto", "accelerated", "basic")
}
"""The first is what ``solve`` takes, but for the interval, there 10; the others show what it
adds.
"""

RATIOS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Step ratios sqrt(tau / sigma) that rivals may choose from, denoising."""

RATIOS_A, ROWS_A = (0.3, 1.0, 3.0, 10.0), (1.0, 0.1)
"""With A in K: ratios, and weights of D in K."""

COARSE = 1.05
"""Gaps of a rival are evaluated at iterations that grow by this factor."""


@dataclass(frozen=True)
class Case:
    """What is reconstructed; sides in pixels."""

    images: int
    side: int
    noise: float
    weight: float
    tikhonov: float
    scale: float


CASES = {"denoise": Case(8, 256, 0.1, 0.08, 0.0, 1.0), "ct": Case(4, 64, 0.02, 0.002, 1e-3, 0.5)}


class Problem:
    """One case tied to its data; ``data`` says whether A stands in K."""

    def __init__(self, name: str, seed: int) -> None:
        case = CASES[name]
        self.name, self.seed, self.data = name, seed, name == "ct"
        self.weight, self.tikhonov, noise = case.weight, case.tikhonov, GaussianNoise(case.noise)
        self.A = (
            dinv.physics.Tomography(
                angles=60,
                img_width=case.side,
                circle=False,
                adjoint_via_backprop=True,
                normalize=True,
                noise_model=noise,
            )
            if self.data
            else Denoising(noise)
        )
        truth, _ = lr.data.pairs(
            "natural",
            Denoising(),
            size=case.side,
            split=(case.images, 0),
            seed=seed,
            scale=case.scale,
        )
        self.x, self.y = truth.x, measure(truth.x, self.A, truth.names, seed)
        self.energy = SaddleEnergy(self.A, ExactTV(self.weight), tikhonov=self.tikhonov)
        self.x0 = self.energy.start(self.y)
        with torch.no_grad():
            self.f = self.energy.at(self.y)
            self.exact = self.f.double()
            self.norm_A = (
                self.energy.operator.spectrum(self.x0).L.value ** 0.5 if self.data else 0.0
            )
        self.norm_D = gradient_norm(case.side, case.side)

    @torch.no_grad()
    def gap(self, x: Any, p: Any) -> float:
        """The largest relative gap of the images, in float64."""
        x, p = (tuple(t.double() for t in blocks) for blocks in (x, p))
        kx, ktp = self.exact.apply(x), self.exact.adjoint(p)
        value = self.exact.primal[0].value(x[0]) + sum(
            f.value(a) for f, a in zip(self.exact.dual, kx, strict=True)
        )
        return float((self.exact.gap(x, p, kx, ktp) / value).max())

    @torch.no_grad()
    def setup(self) -> float:
        """CPU seconds of what only ours want to know of A."""
        if not self.data:
            return 0.0
        operator = LinearMap(self.A)
        operator.spectrum(self.x0)
        since = time.process_time()
        operator.majorant(self.x0)
        return time.process_time() - since


@dataclass
class Clock:
    """CPU seconds while it runs; ``reached`` holds seconds and iterations at the first gap below
    each level.
    """

    problem: Problem
    levels: list[float]
    budget: float
    most: int
    spent: float = 0.0
    iterations: int = 0
    reached: dict[float, tuple[float, int]] = field(default_factory=dict)
    least: float = float("inf")
    due: int = 1
    since: float = 0.0

    def start(self) -> None:
        self.since = time.process_time()

    def stop(self) -> None:
        self.spent += time.process_time() - self.since

    def look(self, iterate: Iterate) -> None:
        """Called once per iteration of a rival."""
        self.stop()
        self.iterations += 1
        if self.iterations >= self.due:
            self.note(*iterate.blocks())
            self.due = max(self.iterations + 1, int(COARSE * self.iterations))
        if self.over:
            raise Enough
        self.start()

    def note(self, x: Any, p: Any) -> None:
        """Evaluate the gap, the clock standing still."""
        gap = self.problem.gap(x, p)
        self.least = min(self.least, gap)
        for level in self.levels:
            if level not in self.reached and gap <= level:
                self.reached[level] = (self.spent, self.iterations)

    @property
    def over(self) -> bool:
        return (
            len(self.reached) == len(self.levels)
            or self.spent > self.budget
            or self.iterations >= self.most
        )


def run_ours(solver: PDHG, clock: Clock) -> Clock:
    """One run of ours, with the evidence that it looks at in ``solve``."""
    f, problem = clock.problem.f, clock.problem
    with torch.no_grad():
        clock.spent = problem.setup() if solver.rule == "auto" else 0.0
        clock.start()
        state = solver.init(f, f.pack(*f.start(problem.x0)))
        while not clock.over:
            state = solver.step(f, state)
            clock.iterations += solver.interval
            clock.stop()
            clock.note(state.x, state.p)
            clock.start()
    return clock


def run_rival(run: Callable[..., None], settings: Settings, clock: Clock) -> Clock:
    """One run of a rival."""
    clock.start()
    with suppress(Enough):
        run(clock.problem, settings, clock.look)
    return clock


def tuned(problem: Problem, args: argparse.Namespace) -> dict[float, Settings]:
    """The settings that need the fewest iterations, for every level; where none gets there, those
    that get closest.
    """
    grid = (
        [Settings(r, row) for r, row in itertools.product(RATIOS_A, ROWS_A)]
        if problem.data
        else [Settings(r) for r in RATIOS]
    )
    runs = {
        s: run_rival(RIVALS["deepinv PDCP"], s, Clock(problem, args.levels, args.budget, args.most))
        for s in grid
    }

    def rank(s: Settings, level: float) -> tuple[float, float]:
        entry = runs[s].reached.get(level)
        return (float("inf"), runs[s].least) if entry is None else (entry[1], 0.0)

    return {level: min(grid, key=lambda s, level=level: rank(s, level)) for level in args.levels}


@dataclass(frozen=True)
class Row:
    """What a method needed for a level; of a method that was ended, what it had spent by then."""

    case: str
    seed: int
    method: str
    level: float
    ok: bool
    seconds: float
    iterations: int
    applications: int
    settings: str
    least_gap: float


def measured(problem: Problem, args: argparse.Namespace) -> list[Row]:
    """All methods on one problem, taking turns; the least seconds of the repeats."""
    settings = tuned(problem, args)
    runs: dict[str, list[Callable[[], tuple[Clock, list[float], str]]]] = {}
    for name, solver in OURS.items():
        if (
            name.endswith("accelerated")
            and not min(problem.f.moduli()[: len(problem.f.primal)]) > 0
        ):
            continue
        runs[name] = [lambda s=solver: (run_ours(s, clock_for(problem, args)), args.levels, s.rule)]
    for name, rival in RIVALS.items():
        runs[name] = [
            lambda r=rival, s=s: (
                run_rival(r, s, clock_for(problem, args)),
                [level for level in args.levels if settings[level] == s],
                str(s),
            )
            for s in dict.fromkeys(settings.values())
        ]
    best: dict[tuple[str, float], Row] = {}
    for _ in range(args.repeats):
        for name, parts in runs.items():
            for part in parts:
                clock, levels, words = part()
                for level in levels:
                    row = row_of(problem, name, level, clock, words)
                    known = best.get((name, level))
                    best[name, level] = (
                        row if known is None or row.seconds < known.seconds else known
                    )
    return list(best.values())


def clock_for(problem: Problem, args: argparse.Namespace) -> Clock:
    return Clock(problem, args.levels, args.budget, args.most)


def row_of(problem: Problem, name: str, level: float, clock: Clock, words: str) -> Row:
    seconds, iterations = clock.reached.get(level, (clock.spent, clock.iterations))
    return Row(
        problem.name,
        problem.seed,
        name,
        level,
        level in clock.reached,
        seconds,
        iterations,
        2 * iterations * problem.x.shape[0],
        words,
        clock.least,
    )


def show(console: Console, rows: list[Row], args: argparse.Namespace) -> None:
    """Medians over the seeds."""
    table = Table(
        "case",
        "gap",
        "method",
        "iterations",
        "K and K^T, one image",
        "CPU s",
        "ratio to ours",
        "settings",
        title=f"least CPU seconds of {args.repeats} runs, seeds {args.seeds}, {args.threads} "
        "thread(s)",
        caption="> where a method was ended before it had reached the gap",
    )
    first = next(iter(OURS))
    for case, level, method in itertools.product(args.cases, args.levels, [*OURS, *RIVALS]):
        found = [r for r in rows if (r.case, r.level, r.method) == (case, level, method)]
        own = {r.seed: r for r in rows if (r.case, r.level, r.method) == (case, level, first)}
        if not found:
            continue
        more = "" if all(r.ok for r in found) else "> "
        ratios = [r.seconds / own[r.seed].seconds for r in found]
        table.add_row(
            case,
            f"{level:g}",
            method,
            f"{more}{statistics.median(r.iterations for r in found):.0f}",
            f"{statistics.median(r.applications for r in found):.0f}",
            f"{more}{statistics.median(r.seconds for r in found):.3g}",
            f"{more}{statistics.median(ratios):.2g} ({min(ratios):.2g}-{max(ratios):.2g})",
            found[0].settings,
        )
    console.print(table)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument(
        "--levels", nargs="+", type=float, default=[1e-2, 1e-3, 1e-4], help="relative gaps"
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], help="of photographs and noise"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2, help="timed runs of every method")
    parser.add_argument("--budget", type=float, default=15.0, help="CPU seconds of one run")
    parser.add_argument("--most", type=int, default=3000, help="iterations of one run")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.levels.sort(reverse=True)
    return args


def main() -> None:
    args = arguments()
    keep_large_blocks()  # for all alike
    torch.set_num_threads(args.threads)
    console = Console(width=None if sys.stdout.isatty() else 200)
    rows: list[Row] = []
    for name, seed in itertools.product(args.cases, args.seeds):
        rows += measured(Problem(name, seed), args)
        console.print(f"{name}, seed {seed}: done after {time.process_time():.0f} CPU s in all")
        if args.json:  # after every problem, so that an interrupted run leaves what it has
            args.json.parent.mkdir(parents=True, exist_ok=True)
            settings = {k: v for k, v in vars(args).items() if k != "json"} | {
                "torch": torch.__version__
            }
            args.json.write_text(
                json.dumps({"settings": settings, "rows": [asdict(r) for r in rows]}, indent=1)
            )
    show(console, rows, args)


if __name__ == "__main__":
    main()
