"""Bounds of pixels: certificates and sets at random points, certified hypergradients, what bounds
cost a solver, and what they gain a learned regularizer.

    OMP_NUM_THREADS=1 python benchmarks/operators_constraints.py

- ``certificates``: 10,000 feasible points of random bounded least-squares problems (20 unknowns, 14
  measurements, bounds per pixel, on one side, on both, some pixels fixed), in float64 and float32,
  at distances from 1e-4 to 10. ``violations`` of ||x - x*|| <= ||projected gradient|| / mu with x*
  from a solve to 1e-10; ``ratio`` is certified over true distance. ``wrong_sets`` counts pixels
  that were called certainly free or certainly at a bound and are not; ``undecided`` is the share of
  pixels that remain open.
- ``hypergradients``: total variation within bounds on 1x6x6 pixels; violations of the certified
  error, and how often one was given, by accuracy.
- ``solvers``: evaluations per image to a certified distance of 1e-3, with x >= 0 and without; of
  exact total variation (a saddle point, ridge 1e-2) to 1e-2.
- ``learning``: total variation learned for images that are zero in most places, with x >= 0 and
  without; test PSNR.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import deepinv as dinv
import torch
from torch import Tensor, nn

import learnreg as lr
from learnreg.core.bounds import constants_of
from learnreg.core.constraints import bounds_of
from learnreg.problems import BilevelProblem
from learnreg.regularizers import TV, FoE, Tikhonov
from learnreg.solvers.iterate import rounding_of

POINTS, IMAGES = 10, 10
SOLVERS = ("agd", "lbfgs", "newton")
SHAPE = (1, 4, 5)
PARTS = ("certificates", "hypergradients", "solvers", "learning")


class Matrix(dinv.physics.LinearPhysics):
    """A x = M x with M >= 0, whose norm is a proven one."""

    nonnegative = True

    def __init__(self, M: Tensor) -> None:
        super().__init__()
        self.register_buffer("M", M)

    def A(self, x: Tensor, **_: object) -> Tensor:
        return x.flatten(1) @ self.M.T.to(x)

    def A_adjoint(self, y: Tensor, **_: object) -> Tensor:
        return (y @ self.M.to(y)).reshape(-1, *SHAPE)


def random_constraint(g: torch.Generator) -> lr.Between:
    """On one side, on both, per pixel, with fixed pixels."""
    low = torch.rand(1, *SHAPE, generator=g, dtype=torch.float64) - 0.7
    kind = int(torch.randint(4, (1,), generator=g))
    if kind == 0:
        return lr.NonNegative()
    if kind == 1:
        return lr.Between(-0.2, 0.6)
    width = torch.rand(low.shape, generator=g, dtype=torch.float64)
    if kind == 2:
        return lr.Between(low, torch.where(width < 0.4, torch.inf, low + width))
    return lr.Between(low, low + torch.where(width < 0.3, 0.0, width))


def certificates(seed: int, problems: int) -> dict[str, Any]:
    """Distances and sets at random points."""
    g = torch.Generator().manual_seed(seed)
    ratios, wrong, open_pixels, pixels = [], 0, 0, 0
    for k in range(problems):
        M = torch.rand(14, 20, generator=g, dtype=torch.float64)
        M = M * (torch.rand(14, 20, generator=g) < 0.5)
        truth = 2 * torch.rand(IMAGES, *SHAPE, generator=g, dtype=torch.float64) - 0.8
        ridge = float(10.0 ** -(2 * torch.rand(1, generator=g)))
        constraint = random_constraint(g)
        physics, part = Matrix(M), Tikhonov(ridge, learned=False).double()
        energy = lr.Energy(physics, part, constraint=constraint)
        y = physics.A(truth)
        exact = lr.solve(energy, y, 1e-10, solver="newton").value
        f = energy.at(y)
        domain = bounds_of(f)
        assert domain is not None
        at_bound = ~domain.inside(exact)
        for j in range(POINTS):
            size = 10.0 ** (1 - 5 * (j + float(torch.rand(1, generator=g))) / POINTS)
            noise = torch.randn(exact.shape, generator=g, dtype=torch.float64)
            x = domain.project(exact + size * noise)
            if k % 2:
                x = domain.project(x.float().double())  # what float32 can hold
            gradient = f.grad(x)
            slope = domain.slope(x, gradient).flatten(1).norm(dim=1)
            constants = constants_of(f)
            bound = (slope + rounding_of(f, x)) / constants.mu
            true = (x - exact).flatten(1).norm(dim=1)
            ratios.append(((bound + 1e-10) / true)[true > 0])
            active, undecided = domain.undecided(x, gradient, bound, constants.L * bound)
            free = ~(active | undecided)
            wrong += int((active & ~at_bound).sum()) + int((free & at_bound).sum())
            open_pixels, pixels = open_pixels + int(undecided.sum()), pixels + x.numel()
    ratio = torch.cat(ratios)
    return {
        "part": "certificates",
        "cases": ratio.numel(),
        "violations": int((ratio < 1).sum()),
        "ratio_least": float(ratio.min()),
        "ratio_median": float(ratio.median()),
        "wrong_sets": wrong,
        "undecided": open_pixels / pixels,
    }


def hypergradients(seed: int, problems: int) -> list[dict[str, Any]]:
    """Certified errors against a derivative at 1e-9, by accuracy."""
    g = torch.Generator().manual_seed(seed)
    grid = (1e-2, 1e-3, 1e-4, 1e-5)
    rows = [
        {"part": "hypergradients", "eps": eps, "cases": 0, "certified": 0, "violations": 0}
        for eps in grid
    ]
    ratios: dict[float, list[float]] = {eps: [] for eps in grid}
    physics = dinv.physics.Denoising()
    for _ in range(problems):
        truth = torch.rand(1, 1, 6, 6, generator=g, dtype=torch.float64) * 0.3
        y = truth + 0.3 * (torch.rand(truth.shape, generator=g, dtype=torch.float64) - 0.6)
        energy = lr.Energy(physics, TV(0.05, 0.05).double(), constraint=(0.0, 0.25))
        p = BilevelProblem(energy, lr.data.Pairs(truth, y, physics, ("random",)))
        exact = lr.hypergradient(p, 1e-9, 1e-9, strategy=lr.Implicit())
        if exact.certified is None:
            continue
        for row in rows:
            eps = float(row["eps"])
            found = lr.hypergradient(p, eps, eps, strategy=lr.Implicit())
            row["cases"] += 1
            if found.certified is not None:
                error = float((found.value - exact.value).norm())
                row["certified"] += 1
                row["violations"] += int(error > found.certified + exact.certified)
                ratios[eps].append((found.certified + exact.certified) / max(error, 1e-15))
    for row in rows:
        own = sorted(ratios[float(row["eps"])])
        row["ratio_least"] = own[0] if own else float("nan")
        row["ratio_median"] = own[len(own) // 2] if own else float("nan")
    return rows


def sparse(n: int, size: int, seed: int) -> Tensor:
    """Images that are zero but for some discs."""
    g = torch.Generator().manual_seed(seed)
    grid = torch.linspace(-1, 1, size)
    x = torch.zeros(n, 1, size, size)
    for i in range(n):
        for _ in range(4):
            a, b, r, v = torch.rand(4, generator=g).tolist()
            inside = (grid[:, None] - 1.6 * a + 0.8) ** 2 + (grid - 1.6 * b + 0.8) ** 2
            x[i, 0][inside < (0.08 + 0.2 * r) ** 2] += 0.3 + 0.7 * v
    return x.clamp_max(1)


def operators(size: int) -> dict[str, tuple[nn.Module, float]]:
    """A physics by name, and the weight of a ridge that makes its energy strongly convex."""
    kernel = torch.ones(1, 1, 5, 5) / 25
    # why 0.03: noise of a few per cent of projections of length one
    return {
        "denoising": (dinv.physics.Denoising(dinv.physics.GaussianNoise(0.2)), 0.0),
        "blur": (
            dinv.physics.Blur(
                filter=kernel, padding="circular", noise_model=dinv.physics.GaussianNoise(0.05)
            ),
            1e-3,
        ),
        "tomography": (
            dinv.physics.Tomography(
                angles=12,
                img_width=size,
                circle=False,
                normalize=True,
                noise_model=dinv.physics.GaussianNoise(0.03),
            ),
            1e-3,
        ),
    }


def measured(physics: nn.Module, x: Tensor, seed: int) -> lr.data.Pairs:
    torch.manual_seed(seed)
    return lr.data.Pairs(x, physics(x), physics, tuple(map(str, range(len(x)))))


def solvers(seed: int, size: int) -> list[dict[str, Any]]:
    """Evaluations per image to 1e-3, float64."""
    rows = []
    for name, (physics, ridge) in operators(size).items():
        pairs = measured(physics, sparse(3, size, seed), seed).to(dtype=torch.float64)
        for part in (TV(0.02, 0.01), FoE(6, 3, weight=0.02)):
            whole = (part + Tikhonov(max(ridge, 1e-9), learned=False)).double()
            for bound in (False, True):
                energy = lr.Energy(pairs.physics, whole, constraint=(0.0, None) if bound else None)
                row: dict[str, Any] = {"part": "solvers", "physics": name, "bounds": bound}
                row["regularizer"] = type(part).__name__
                for solver in (*SOLVERS, "auto"):
                    found = lr.solve(energy, pairs.y, 1e-3, solver=solver, throw=False)
                    done = found.cost.work / len(pairs)
                    row[solver] = round(done) if found.ok else None
                    if solver == "auto":
                        row["chosen"] = found.solver.split(" ")[0]
                rows.append(row)
        for bound in (False, True):
            exact = lr.regularizers.ExactTV(0.02).double()
            constraint = (0.0, None) if bound else None
            saddle = lr.SaddleEnergy(pairs.physics, exact, None, 10 * ridge, constraint)
            found = lr.solve(saddle, pairs.y, 1e-2, throw=False, budget=1000)
            row = {"part": "solvers", "physics": name, "bounds": bound, "regularizer": "ExactTV"}
            rows.append(row | {"pdhg": round(found.cost.work / len(pairs)) if found.ok else None})
    return rows


def learning(seed: int, size: int, images: int, steps: int) -> list[dict[str, Any]]:
    """Test PSNR of total variation learned by MAID, and by L-BFGS-B, with bounds and without."""
    rows = []
    for name, (physics, ridge) in operators(size).items():
        train = measured(physics, sparse(images, size, 100 + seed), seed)
        test = measured(physics, sparse(images, size, 200 + seed), 50 + seed)
        for bound in (False, True):
            part = TV(0.02, 0.02)
            whole = part + Tikhonov(ridge, learned=False) if ridge else part
            energy = lr.Energy(physics, whole, constraint=lr.NonNegative() if bound else None)
            for learner in (lr.MAID(), lr.LBFGSB(eps=1e-2, delta=1e-2)):
                out = lr.learn(
                    BilevelProblem(energy, train), learner, budget=lr.Budget(steps=steps)
                )
                score = out.evaluate(test, eps=1e-2)
                last = out.record.rows[-1]
                rows.append(
                    {
                        "part": "learning",
                        "physics": name,
                        "bounds": bound,
                        "learner": type(learner).__name__,
                        "loss": last["loss"],
                        "psnr": score.mean("psnr"),
                        "least": float(score.reconstruction.min()),
                        "work": last["work"] / images,
                    }
                )
    return rows


def run(
    seeds: Sequence[int] = (0,), quick: bool = False, parts: Sequence[str] = PARTS
) -> list[dict[str, Any]]:
    """All rows, a block per seed."""
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        made = {
            "certificates": lambda seed=seed: [certificates(seed, 2 if quick else 100)],
            "hypergradients": lambda seed=seed: hypergradients(seed, 2 if quick else 50),
            "solvers": lambda seed=seed: solvers(seed, 12 if quick else 32),
            "learning": lambda seed=seed: learning(seed, *((12, 1, 1) if quick else (24, 3, 12))),
        }
        for part in parts:
            rows += [{"seed": seed, **row} for row in made[part]()]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = run(args.seeds, args.quick, args.parts)
    for row in rows:
        print(
            "  ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
            )
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
