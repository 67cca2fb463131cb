"""Certified distances where mu is tiny: how loose three theorems are, and what each costs.

    OMP_NUM_THREADS=1 python benchmarks/operators_certificates.py --seeds 0 1 2 --json out.json

A photograph is reconstructed to a certified distance eps with mu from a tikhonov of 1e-3, and
compared with a solve in float64 whose certified distance is at most a tenth of the true one:
    gradient  ||grad h|| / mu over the true distance: what solvers certify, for nothing.
    metric    the same for ``distance_in_metric``. M is the Hessian of the data term and what is
              left of that of R in the ball that is already certified, with the products (data term
              and R) that it took to come within a tenth of the best v.
    certify   the same for ``lr.certify``, which solves on, with its evaluations.
    on        evaluations, beyond those of the solve, after which the solver certifies by its
              gradient the distance that ``metric`` does.

What is left of the Hessian of R in a ball of radius rho: <grad R(x) - grad R(x'), x - x'> is a sum
over the potentials phi_i(t) of t = (K x)_i, and phi' is concave for t >= 0, so that with
|(K (x - x'))_i| <= row_i rho =: s every one gives at least
    [ phi'(|t| + s) - phi'(|t|) ] / s  times  (K (x - x'))_i^2,
the secant away from zero; for vectors the same with lengths, since their Hessian is smallest along
the vector itself.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from deepinv.physics import Denoising, GaussianNoise, Tomography
from rich.console import Console
from rich.table import Table
from torch import Tensor

import learnreg as lr
from learnreg.core.batch import dot, norm
from learnreg.core.certificates import distance_in_metric
from learnreg.data.measure import measure
from learnreg.operators.convolutions import COPIES, correlate
from learnreg.operators.differences import gradient, gradient_adjoint
from learnreg.problems.energy import EnergyAt
from learnreg.regularizers import TV, FoE, Tikhonov, profiles
from learnreg.solvers.certify import certify_potential
from learnreg.solvers.lbfgs import averaged
from learnreg.solvers.solve import solve_potential
from solvers import MU, WEIGHTS, physics

CASES = ("ct 30", "ct 60", "mri", "blur", "inpaint")
ROUNDS = 4
"""Balls, each certified with what is left in the one before."""
PRODUCTS = 200
"""Conjugate gradient steps in a ball at most."""

Product = Callable[[Tensor], Tensor]


def posed(case: str, kind: str, seed: int, size: int) -> tuple[EnergyAt, TV | FoE, Tensor]:
    """The potential of one photograph, its regularizer, the start; tomography as it comes, with the
    norm of its rays.
    """
    name, *angles = case.split()
    if name == "ct":
        A = Tomography(
            angles=int(angles[0]),
            img_width=size,
            circle=False,
            adjoint_via_backprop=True,
            normalize=False,
            noise_model=GaussianNoise(0.01 * size),
        )
        weights = (1.0, 2.0)
    else:
        A, weights = physics(name, size, seed), WEIGHTS[name][:2]
    truth, _ = lr.data.pairs("natural", Denoising(), size=size, split=(1, 1), seed=seed)
    x = torch.cat([truth.x, 0 * truth.x], dim=1) if name == "mri" else truth.x
    R = (
        TV(weights[0], 0.01)
        if kind == "tv"
        else FoE(24, 7, channels=x.shape[1], weight=weights[1] / 24)
    )
    energy = lr.Energy(A, R + Tikhonov(MU, learned=False))
    y = measure(x.double(), A.double(), truth.names, seed)
    start = energy.start(y)
    f = energy.widened().at(y, start)
    return f, f.energy.regularizer.terms[0], start


def secant(size: Tensor, reach: Tensor) -> Tensor:
    """[s'(u + r) - s'(u)] / r of the normalized potential, at lengths u >= 0."""
    reach = reach.clamp_min(1e-9)
    return (profiles.slope(size + reach) - profiles.slope(size)) / reach


def left_of(R: TV | FoE, x: Tensor, rho: Tensor) -> Product:
    """A lower bound of the averaged Hessian of R between x and any point of the ball (1,)."""
    if isinstance(R, TV):
        w, nu = (float(t.detach().exp()) for t in (R.log_weight, R.log_smoothing))
        size = (gradient(x) / nu).norm(dim=1, keepdim=True)  # axes come before the channels
        c = secant(size, math.sqrt(3) * rho / nu)
        return lambda v: gradient_adjoint(gradient(v) * c) * (w / nu)

    kernels, w, nu = R.effective()
    rows = math.sqrt(COPIES[R.padding]) * kernels.flatten(1).norm(dim=1) / nu
    u = correlate(x, kernels / nu.view(-1, 1, 1, 1), R.padding)
    c = secant(u.abs(), rows.view(1, -1, 1, 1) * rho)
    return lambda v: R._product(v, c)


@torch.no_grad()
def in_metric(f: EnergyAt, R: TV | FoE, x: Tensor) -> tuple[Tensor, int]:
    """The distance (1,) by ``distance_in_metric``, and the products with M that it took."""
    g, rho, spent = f.grad(x), norm(f.grad(x)) / MU, 0
    P, _ = averaged(f, x)
    for _ in range(ROUNDS):
        of_ball = left_of(R, x, rho)

        def M(v: Tensor, of_ball: Product = of_ball) -> Tensor:
            return f.operator.normal(v) + MU * v + of_ball(v)

        history = _bounds(M, g, P)
        best = min(history)
        spent += next(k for k, b in enumerate(history) if b <= 1.1 * best)
        if best > 0.9 * float(rho):
            break
        rho = torch.full_like(rho, best)
    return torch.minimum(rho, torch.full_like(rho, best)), spent


def _bounds(M: Product, g: Tensor, P: Product | None) -> list[float]:
    """The bound after every step of preconditioned conjugate gradients."""
    v, r, Mv = torch.zeros_like(g), g.clone(), torch.zeros_like(g)
    z = r if P is None else P(r)
    p, rz = z.clone(), dot(r, z)
    found = [float(distance_in_metric(g, v, Mv, MU))]
    for _ in range(PRODUCTS):
        h = M(p)
        a = (rz / dot(p, h)).view(-1, 1, 1, 1)
        v, r, Mv = v + a * p, r - a * h, Mv + a * h
        found.append(float(distance_in_metric(g, v, Mv, MU)))
        z = r if P is None else P(r)
        new = dot(r, z)
        p, rz = z + (new / rz).view(-1, 1, 1, 1) * p, new
    return found


def measured(case: str, kind: str, seed: int, eps: float, size: int) -> dict[str, Any]:
    """One row.

    Raises:
        SystemExit: a certificate that is smaller than the true distance.
    """
    f, R, start = posed(case, kind, seed, size)
    solution = solve_potential(f, eps, start)
    x = solution.value
    by_metric, products = in_metric(f, R, x)
    found = certify_potential(f, x)
    further = solve_potential(f, by_metric, x)
    reference = solve_potential(f, 0.1 * found.at_least, found.nearer, max_steps=100_000)
    true = norm(x - reference.value)
    for name, value in (("gradient", solution.error), ("metric", by_metric)):
        if float(value) < float(true - reference.error):
            raise SystemExit(f"a certificate is wrong: {name}, {case}, {kind}, {seed}, {eps}")
    return {
        "physics": case,
        "regularizer": kind,
        "seed": seed,
        "eps": eps,
        "solve": solution.cost.work,
        "true": float(true),
        "gradient": float(solution.error / true),
        "metric": float(by_metric / true),
        "products": products,
        "on": further.cost.work,
        "certify": float(found.certified / true),
        "certify_work": found.cost.work,
    }


def run(
    seeds: tuple[int, ...] = (0, 1, 2), quick: bool = False, size: int = 48
) -> list[dict[str, Any]]:
    """A row per physics, regularizer, accuracy and seed."""
    cases, levels = (("ct 30", "inpaint"), (1.0,)) if quick else (CASES, (1.0, 0.1))
    size = min(size, 24) if quick else size
    return [
        measured(case, kind, seed, eps, size)
        for case in cases
        for kind in (("tv",) if quick else ("tv", "foe"))
        for eps in levels
        for seed in seeds
    ]


def summary(rows: list[dict[str, Any]]) -> Table:
    """Medians over seeds."""
    names = (
        "solve",
        "true",
        "gradient",
        "metric",
        "products",
        "on",
        "certify",
        "certify_work",
    )
    table = Table("physics", "R", "eps", *names)
    for key in dict.fromkeys((r["physics"], r["regularizer"], r["eps"]) for r in rows):
        group = [r for r in rows if (r["physics"], r["regularizer"], r["eps"]) == key]
        table.add_row(
            key[0],
            key[1],
            f"{key[2]:g}",
            *(f"{statistics.median(r[n] for r in group):.3g}" for n in names),
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = run(tuple(args.seeds), args.quick, args.size)
    Console(width=120).print(summary(rows))
    if args.json:
        args.json.write_text(json.dumps({"version": lr.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
