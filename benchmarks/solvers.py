"""Lower-level solvers to equal certified accuracy: ours, scipy's and deepinv's, on five kinds of
physics.

    OMP_NUM_THREADS=1 python benchmarks/solvers.py --json solvers.json
    python benchmarks/solvers.py --only ct tv auto lbfgs scipy-lbfgs --seeds 0 --json out.json

A cell minimizes h(x) = 1/2 ||A x - y||^2 + R(x) for every image until ||grad h(x)|| / mu <= eps
with the gradient in float64, which proves ||x - x*|| <= eps. R is smoothed TV, Fields of Experts
(48 filters 7x7) or w/2 ||D x||^2 with differences D, plus mu/2 ||x||^2 with mu = 0.001; for
denoising without it, mu = 1. Everybody starts from A^T y.

Ours are the solvers of ``learnreg.solvers.select`` and "auto"; they run on the batch in float32, go
on in float64 where needed, and pay for their certificates. The others:
    nmapg             the field's solver for learned regularizers, written by us, in our loop
    (certificates included); scipy-lbfgs       L-BFGS-B, ten pairs, float64, image by image; scipy
    comes with deepinv; scipy-cg          conjugate gradients, float64, image by image; for
    quadratic energies; deepinv-gd        gradient descent on the batch, step 2 / (L + mu);
    deepinv-fista     FISTA as it comes, on the batch, with the whole energy as smooth term, step 1
    / L; deepinv-nesterov  the same loop fed with the momentum that is best for our mu and L:
    nothing deepinv knows of.
The last five do not know the rule, so it is checked for them with the clock stopped, see
``rivals.py``: at every point scipy-lbfgs tries, for the others at every iterate up to the 50th,
later after every fiftieth part of those so far. Energy values are free for scipy: a fused
implementation gets them nearly for nothing with the gradient. deepinv's run in float32 where that
is enough, otherwise in float64 from the start, and then the float32 attempt is free.

Seconds are CPU time of the process, after a warm-up call; seconds and evaluations (``Cost.work``:
gradients, values, Hessian products, preconditioners made) are per image. Set OMP_NUM_THREADS as
--threads for numpy's own threads. The others are ended at --patience times the seconds of the best
of ours at the smallest eps, all at --cap CPU seconds or --evaluations per image: then the entry is
what had been spent and the eps it came to.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import deepinv as dinv
import torch
from deepinv.physics import MRI, BlurFFT, Denoising, GaussianNoise, Inpainting, Tomography
from rich.console import Console
from rich.table import Table
from rivals import RIVALS, Entries, Entry, Limits
from torch import Tensor

import learnreg as lr
from learnreg.core.bounds import Bound, Curvature
from learnreg.core.curvature import MeanCurvature
from learnreg.core.errors import MissingPropertyError
from learnreg.data.measure import measure
from learnreg.operators.differences import (
    gradient,
    gradient_adjoint,
    norm_squared,
    symbols,
)
from learnreg.regularizers import TV, FoE, LinearizedHessian, Regularizer, Tikhonov
from learnreg.solvers.select import SOLVERS
from learnreg.solvers.solve import solve_potential

FOREIGN = "nmapg"
"""The one of ``SOLVERS`` that is the field's, not ours."""

MU = 1e-3
"""Strong convexity added where the physics has none."""

WEIGHTS = {
    "denoise": (0.08, 0.2, 1.0),
    "blur": (0.005, 0.007, 0.03),
    "inpaint": (0.006, 0.01, 0.05),
    "mri": (0.008, 0.015, 0.02),
    "ct": (0.002, 0.005, 0.03),
}
"""Of TV, of Fields of Experts (sum over filters) and of the quadratic: near the best PSNR, found by
trying.
"""

KINDS = ("tv", "foe", "quadratic")

TUNED = "deepinv-nesterov"
"""Left out of the gain over what others ship."""


# --- the problems ---------------------------------------------------------------------------------


class Quadratic(Regularizer):
    """R(x) = w/2 ||D x||^2 with forward differences D; nothing to learn."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def value(self, x: Tensor) -> Tensor:
        return 0.5 * self.weight * gradient(x).square().flatten(1).sum(dim=1)

    def grad(self, x: Tensor) -> Tensor:
        return gradient_adjoint(gradient(x)).mul_(self.weight)

    def linearize(self, x: Tensor) -> LinearizedHessian:
        return LinearizedHessian(self.grad)

    def directional(self, x: Tensor, v: Tensor) -> Tensor:
        return self.weight * (gradient(x) * gradient(v)).flatten(1).sum(dim=1)

    def bounds(self) -> Curvature:
        return Curvature(Bound.exact(0.0), Bound.proven(self.weight * norm_squared(2)))

    def hessian_lipschitz(self) -> Bound:
        return Bound.exact(0.0)

    def mean_curvature(self, x: Tensor) -> MeanCurvature:
        rows, columns = symbols(x)
        symbol = (self.weight * (rows + columns)).expand(*x.shape[:2], -1, -1)
        return MeanCurvature(self.weight * self._touched(x), symbol)

    @staticmethod
    def _touched(x: Tensor) -> Tensor:
        """How many differences every pixel is part of: two per axis, one at the border."""
        count = torch.zeros_like(x)
        for axis in (2, 3):
            count.narrow(axis, 1, x.shape[axis] - 1).add_(1)
            count.narrow(axis, 0, x.shape[axis] - 1).add_(1)
        return count


def regularizer(name: str, kind: str, channels: int) -> Regularizer:
    """R with the weight for this physics, strongly convex where A is not injective."""
    tv, foe, quadratic = WEIGHTS[name]
    if kind == "tv":
        R: Regularizer = TV(tv, 0.01)
    elif kind == "foe":
        R = FoE(48, 7, channels=channels, weight=foe / 48)
    else:
        R = Quadratic(quadratic)
    return R if name == "denoise" else R + Tikhonov(MU, learned=False)


def sampled_columns(n: int, generator: torch.Generator) -> Tensor:
    """A mask (1, 2, n, n) of k-space: the middle 8 columns and a quarter of the others."""
    mask = torch.zeros(n, n)
    mask[:, torch.rand(n, generator=generator) < 0.25] = 1
    mask[:, n // 2 - 4 : n // 2 + 4] = 1
    return mask.expand(1, 2, n, n).clone()


def physics(name: str, n: int, seed: int) -> dinv.physics.Physics:
    """A with its noise, for images of n x n pixels; masks depend on the seed."""
    generator, noise = torch.Generator().manual_seed(seed), GaussianNoise(0.02)
    if name == "denoise":
        return Denoising(GaussianNoise(0.1))
    if name == "blur":
        line = dinv.physics.functional.gaussian_blur(
            sigma=1.5
        )  # (1, 1, 13): one of the two directions
        return BlurFFT(
            img_size=(1, n, n), filter=line[..., None] * line[..., None, :], noise_model=noise
        )
    if name == "inpaint":
        return Inpainting((1, n, n), mask=0.5, noise_model=noise, rng=generator)
    if name == "mri":
        return MRI(mask=sampled_columns(n, generator), img_size=(2, n, n), noise_model=noise)
    return Tomography(
        angles=60,
        img_width=n,
        circle=False,
        adjoint_via_backprop=True,
        normalize=True,
        noise_model=noise,
    )


class Problem:
    """One energy tied to its data: the potentials ``f``, the same in float64 ``exact``, their
    constants, the start.
    """

    def __init__(self, name: str, kind: str, seed: int, images: int, size: int) -> None:
        A = physics(name, size, seed)
        truth, _ = lr.data.pairs("natural", Denoising(), size=size, split=(images, 1), seed=seed)
        self.x = torch.cat([truth.x, 0 * truth.x], dim=1) if name == "mri" else truth.x
        self.y = measure(self.x, A, truth.names, seed)
        energy = lr.Energy(A, regularizer(name, kind, self.x.shape[1]))
        self.x0 = energy.start(self.y)
        self.f = energy.at(self.y, self.x0)
        self.exact = self.f.double()
        self.exact.mean_curvature(
            self.x0.double()
        )  # part of the warm-up: the operator keeps what it learns of A
        self.mu, self.L = self.f.bounds().mu.value, self.f.bounds().L.value
        self.kind, self.images = kind, images
        self.label = {"physics": name, "regularizer": kind, "seed": seed}

    def psnr(self, x: Tensor) -> float:
        """Mean over the images, of the real part."""
        return float(lr.metrics.psnr(x[:, :1], self.x[:, :1]).mean())


# --- the methods ----------------------------------------------------------------------------------


def of_the_house(name: str, problem: Problem, levels: list[float], limits: Limits) -> Entries:
    """A solver of ours, by name, once for every eps; none where the energy lacks what it needs."""
    entries: Entries = {}
    for eps in levels:
        since = time.process_time()
        try:
            s = solve_potential(
                problem.f,
                eps,
                problem.x0,
                name,
                max_steps=limits.evaluations // problem.images,
                should_stop=lambda since=since: time.process_time() - since > limits.seconds,
            )
        except MissingPropertyError:
            return {}
        seconds = time.process_time() - since
        entries[eps] = Entry(
            seconds / problem.images, s.cost.work / problem.images, float(s.error.max()), s.ok
        )
        if not s.ok:  # a smaller eps is not reached either
            return entries | {e: entries[eps] for e in levels if e not in entries}
    return entries


def methods() -> dict[str, Callable[[Problem, list[float], Limits], Entries]]:
    """All of them by name, ours first."""
    ours = {
        name: partial(of_the_house, name)
        for name in ("auto", *(n for n in SOLVERS if n != FOREIGN))
    }
    return ours | {FOREIGN: partial(of_the_house, FOREIGN)} | RIVALS


def is_ours(name: str) -> bool:
    """True for "auto" and for what it may choose from."""
    return name == "auto" or (name in SOLVERS and name != FOREIGN)


# --- the table ------------------------------------------------------------------------------------


def chosen(only: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Physics, regularizers and methods named in ``only``; all of a kind of which none is named.

    Raises:
        SystemExit: an unknown word.
    """
    groups = (list(WEIGHTS), list(KINDS), list(methods()))
    unknown = set(only) - set(itertools.chain(*groups))
    if unknown:
        sys.exit(
            f"--only: unknown {', '.join(sorted(unknown))}; there are "
            f"{', '.join(itertools.chain(*groups))}"
        )
    A, R, M = ([word for word in group if word in only] or group for group in groups)
    return A, R, M


def patience(found: dict[str, Entries], problem: Problem, args: argparse.Namespace) -> Limits:
    """How far others may go, once ours have shown what it takes; at least half a second."""
    best = [
        min(
            (e[eps].seconds for name, e in found.items() if is_ours(name) and e and e[eps].ok),
            default=args.cap,
        )
        for eps in args.eps
    ]
    seconds = max(0.5, args.patience * problem.images * max(best))
    return Limits(min(args.cap, seconds), args.evaluations * problem.images)


def measured(problem: Problem, names: list[str], args: argparse.Namespace) -> dict[str, Entries]:
    """Every method on one problem, after a warm-up of one step."""
    found: dict[str, Entries] = {}
    for name in names:
        if name == "scipy-cg" and problem.kind != "quadratic":
            continue
        run = methods()[name]
        limits = (
            Limits(args.cap, args.evaluations * problem.images)
            if is_ours(name)
            else patience(found, problem, args)
        )
        run(problem, args.eps, Limits(limits.seconds, problem.images))
        found[name] = run(problem, args.eps, limits)
    return found


def about(problem: Problem, found: dict[str, Entries]) -> dict[str, Any]:
    """What is worth knowing of a problem: condition, quality, and the eps at which deepinv's own
    rule stops.
    """
    x = solve_potential(problem.f, 0.1, problem.x0).value
    own = {name: e[None].eps for name, e in found.items() if None in e}
    return problem.label | {
        "mu": problem.mu,
        "L": problem.L,
        "psnr_start": problem.psnr(problem.x0),
        "psnr": problem.psnr(x),
        "eps_of_own_rule": own,
    }


def gain(entries: dict[str, Entry], tuned: bool) -> tuple[float, bool] | None:
    """Seconds of the best of the others over the best of ours; False where none of the others got
    there.
    """
    ours = [e.seconds for name, e in entries.items() if is_ours(name) and e.ok]
    others = [e for name, e in entries.items() if not is_ours(name) and (tuned or name != TUNED)]
    if not (ours and others):
        return None
    there = any(e.ok for e in others)
    return min(e.seconds for e in others if e.ok or not there) / min(ours), there


def spread_of(values: list[float]) -> str:
    """Median, and the range where there is one, to two digits."""
    some = [statistics.median(values), min(values), max(values)]
    middle, least, most = (f"{float(f'{v:.2g}'):g}" for v in some)
    return middle if len(values) == 1 else f"{middle} ({least}-{most})"


def cell(entries: list[Entry]) -> str:
    """One method at one eps, over the seeds."""
    if not entries:
        return "-"
    lines = [
        f"{statistics.median(e.evaluations for e in entries):.0f}",
        spread_of([1e3 * e.seconds for e in entries]),
    ]
    missed = [e.eps for e in entries if not e.ok]
    return "\n".join([*lines, f"[red]{max(missed):.0e}[/red]"] if missed else lines)


def gain_cell(gains: list[tuple[float, bool] | None]) -> str:
    """Over the seeds; ">" where others were ended."""
    known = [g for g in gains if g]
    if not known:
        return "-"
    return ("" if all(there for _, there in known) else "> ") + spread_of([g for g, _ in known])


def show(
    console: Console, rows: list[dict[str, Any]], names: list[str], args: argparse.Namespace
) -> None:
    """The table of all cells."""
    table = Table(
        "problem",
        *(n.replace("-", "-\n").replace("_", "_\n", 1) for n in names),
        "gain",
        "gain over\nwhat ships",
        show_lines=True,
        caption="red: ended at the eps given",
        title="evaluations, CPU ms per image; gain = best of the others / best of ours (goal >= 3)",
    )
    cells: dict[tuple, dict[int, dict[str, Entry]]] = {}
    for row in rows:
        entry = Entry(row["seconds"], row["evaluations"], row["eps_reached"], row["ok"])
        key = (row["physics"], row["regularizer"], row["eps"])
        cells.setdefault(key, {}).setdefault(row["seed"], {})[row["method"]] = entry
    for (name, kind, eps), seeds in cells.items():
        table.add_row(
            f"{name}\n{kind}\n{eps:g}",
            *(cell([s[m] for s in seeds.values() if m in s]) for m in names),
            *(gain_cell([gain(s, tuned) for s in seeds.values()]) for tuned in (True, False)),
        )
    console.print(table)


def show_problems(console: Console, problems: list[dict[str, Any]]) -> None:
    """One line per problem: what it is worth, and where deepinv's own rule would have stopped."""
    table = Table(
        "problem",
        "seed",
        "L / mu",
        "PSNR of A^T y",
        "PSNR of x*",
        "eps where deepinv's rule (1e-5) stops",
    )
    for p in problems:
        own = ", ".join(
            f"{name.removeprefix('deepinv-')} {eps:.1e}"
            for name, eps in p["eps_of_own_rule"].items()
        )
        table.add_row(
            f"{p['physics']} {p['regularizer']}",
            str(p["seed"]),
            f"{p['L'] / p['mu']:.0f}",
            f"{p['psnr_start']:.2f}",
            f"{p['psnr']:.2f}",
            own,
        )
    console.print(table)


def rows_of(problem: Problem, found: dict[str, Entries]) -> list[dict[str, Any]]:
    """JSON rows; ``eps_reached`` is what was certified."""
    return [
        problem.label
        | {
            "eps": eps,
            "method": name,
            "ours": is_ours(name),
            "seconds": e.seconds,
            "evaluations": e.evaluations,
            "eps_reached": e.eps,
            "ok": e.ok,
        }
        for name, entries in found.items()
        for eps, e in entries.items()
        if eps is not None
    ]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", default=[], help="names of physics, regularizers, methods"
    )
    parser.add_argument("--eps", nargs="+", type=float, default=[1e-1, 1e-2, 1e-3])
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], help="of images, masks and noise"
    )
    parser.add_argument("--images", type=int, default=2, help="per cell")
    parser.add_argument("--size", type=int, default=96, help="pixels of a side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cap", type=float, default=60.0, help="CPU seconds of one run")
    parser.add_argument("--evaluations", type=int, default=20000, help="of one run, per image")
    parser.add_argument(
        "--patience", type=float, default=4.0, help="CPU seconds of others, in those of ours"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.eps.sort(reverse=True)
    return args


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    console = Console(width=None if sys.stdout.isatty() else 200)
    A, R, M = chosen(args.only)
    problems, rows = [], []
    for name, kind, seed in itertools.product(A, R, args.seeds):
        problem = Problem(name, kind, seed, args.images, args.size)
        found = measured(problem, M, args)
        problems.append(about(problem, found))
        rows += rows_of(problem, found)
        console.print(
            f"{name} {kind}, seed {seed}: done after {time.process_time():.0f} CPU s in all"
        )
        if args.json:  # after every problem, so that an interrupted run leaves what it has
            args.json.parent.mkdir(parents=True, exist_ok=True)
            settings = {k: v for k, v in vars(args).items() if k != "json"} | {
                "torch": torch.__version__
            }
            args.json.write_text(
                json.dumps({"settings": settings, "problems": problems, "rows": rows}, indent=1)
            )
    show_problems(console, problems)
    show(console, rows, [m for m in M if any(row["method"] == m for row in rows)], args)


if __name__ == "__main__":
    main()
