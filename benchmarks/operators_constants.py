"""Constants of certificates with theta in the operator, in the weights and in curved data terms,
against matrices.

    OMP_NUM_THREADS=1 python benchmarks/operators_constants.py --json constants.json

- ``constants``: random kernels (5x5, signed and not, five paddings), data terms, images x, points
  x' at distance eps, adjoints q. The library bounds ||(H(x') - H(x)) q||, ||(J(x') - J(x))^T q||
  and ||J(x')||; the truth is made of the dense matrices of all shifts. A bound below the truth ends
  the program.
- ``norms``: the proven ||A||^2 over the largest squared singular value of the matrix.
- ``bilevel``: the certified error of a hypergradient over the true one, for problems that learn
  their kernel or their weights.
- ``trials``: products with A that a trial point of a learner costs before its solve.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepinv as dinv
import torch
from torch import Tensor

import learnreg as lr
from learnreg.operators.physics import LinearMap

PADDINGS = ("circular", "valid", "constant", "reflect", "replicate")

TERMS = ("L2", "weights", "learned weights", "Huber", "KL")

S = 5
"""Taps per axis."""

BATCH = 20
"""Images, adjoints and radii per kernel."""


@dataclass(frozen=True)
class Shifts:
    """The matrices (taps, outputs, pixels) of single taps."""

    matrices: Tensor

    @staticmethod
    def of(padding: str, side: int) -> Shifts:
        pixels = torch.eye(side * side, dtype=torch.float64).view(-1, 1, side, side)
        taps = torch.eye(S * S, dtype=torch.float64).view(-1, 1, 1, S, S)
        conv = dinv.physics.functional.conv2d
        return Shifts(torch.stack([conv(pixels, t, padding=padding).flatten(1).T for t in taps]))

    def operator(self, kernel: Tensor) -> Tensor:
        return torch.einsum("j,jmn->mn", kernel.flatten(), self.matrices)


@dataclass(frozen=True)
class Curved:
    """psi' and psi'' of one data term at a, for measurements y."""

    first: Callable[[Tensor], Tensor]
    second: Callable[[Tensor], Tensor]


def curved(term: str, y: Tensor, number: float, weights: Tensor) -> Curved:
    """Written out once more, independently of the library."""
    if term == "L2":
        return Curved(lambda a: (a - y) / number**2, lambda a: torch.full_like(a, 1 / number**2))
    if term in ("weights", "learned weights"):
        return Curved(lambda a: weights * (a - y), lambda a: weights.expand_as(a))
    if term == "Huber":
        return Curved(
            lambda a: (a - y).clamp(-number, number),
            lambda a: ((a - y).abs() <= number).to(a),
        )
    return Curved(
        lambda a: torch.where(
            a > 0, 1 - y / (a.clamp_min(0) + number), 1 - y / number + y / number**2 * a
        ),
        lambda a: y / (a.clamp_min(0) + number) ** 2,
    )


def fidelity(term: str, number: float, weights: Tensor) -> Any:
    if term == "L2":
        return lr.L2(number)
    if term == "weights":
        return lr.WeightedL2(weights)
    if term == "learned weights":
        return lr.WeightedL2(torch.nn.Parameter(weights.clone()))
    return lr.Huber(number) if term == "Huber" else lr.KL(number)


class Case:
    """One kernel with ``BATCH`` images, adjoints and radii."""

    def __init__(self, g: torch.Generator, shifts: dict[tuple[str, int], Shifts]) -> None:
        def integer(low: int, high: int) -> int:
            return int(torch.randint(low, high, (), generator=g))

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=g, dtype=torch.float64)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=g, dtype=torch.float64)

        self.padding, self.term = PADDINGS[integer(0, 5)], TERMS[integer(0, 5)]
        self.side = side = integer(7, 12)
        key = self.padding, side
        self.shifts = shifts.setdefault(key, Shifts.of(*key))
        kernel = normal(S, S) if integer(0, 2) else uniform(S, S)
        if self.term == "KL":
            kernel = kernel.abs() / kernel.abs().sum()
        self.kernel = kernel * 10 ** (uniform() * 2 - 1.5)
        self.A = self.shifts.operator(self.kernel)
        sharp = uniform(BATCH, side * side)
        smooth = normal(BATCH, 1) * torch.linspace(0, 1, side * side).double() + normal(BATCH, 1)
        self.x = sharp if integer(0, 2) else smooth
        self.q = normal(BATCH, side * side) if integer(0, 2) else smooth.roll(1, 0)
        self.eps = 10 ** (uniform(BATCH) * 3.5 - 4)
        self.number = float(10 ** (uniform() * 2 - 1.5))
        m = self.A.shape[0]
        self.weights = uniform(1, m) * 3
        clean = self.x @ self.A.T
        self.y = clean + 0.3 * self.number * normal(BATCH, m)
        if self.term == "KL":
            self.y = (20 * self.y.abs()).round()
        direction = normal(BATCH, side * side)
        if not integer(0, 3):
            direction = self.q
        if not integer(0, 3):  # where A moves most
            direction = torch.linalg.svd(self.A)[2][:1].expand(BATCH, -1)
        self.moved = self.x + self.eps[:, None] * direction / direction.norm(dim=1, keepdim=True)

    def images(self, t: Tensor) -> Tensor:
        return t.reshape(BATCH, 1, self.side, self.side)

    def measurements(self, t: Tensor) -> Tensor:
        out = math.isqrt(self.A.shape[0])
        return t.reshape(t.shape[0], 1, out, out)

    def tied(self) -> Any:
        """The library's energy, tied to the data."""
        kernel = self.kernel[None, None].clone().requires_grad_()
        physics = dinv.physics.Blur(filter=kernel, padding=self.padding)
        term = fidelity(self.term, self.number, self.measurements(self.weights))
        flat = lr.regularizers.Tikhonov(1e-3, learned=False)
        energy = lr.Energy(physics, flat, term)
        return energy.at(self.measurements(self.y), self.images(self.x))

    def mixed(self, x: Tensor) -> Tensor:
        """J (b, pixels, d) of kernel and weights."""
        u = x @ self.A.T
        psi = curved(self.term, self.y, self.number, self.weights)
        first, second = psi.first(u), psi.second(u)
        moved = torch.einsum("jmn,bn->bjm", self.shifts.matrices, x)
        j = torch.einsum("jmn,bm->bnj", self.shifts.matrices, first)
        j = j + torch.einsum("mn,bjm->bnj", self.A, moved * second[:, None])
        if self.term == "learned weights":
            of_weights = self.A.T[None] * (u - self.y)[:, None]
            j = torch.cat([j, of_weights], dim=2)
        return j

    def hessian_moves(self) -> Tensor:
        psi = curved(self.term, self.y, self.number, self.weights)
        change = psi.second(self.moved @ self.A.T) - psi.second(self.x @ self.A.T)
        return ((change * (self.q @ self.A.T)) @ self.A).norm(dim=1)

    def compared(self) -> dict[str, tuple[Tensor, Tensor]]:
        """(bound, truth) of every certificate, (b,)."""
        f = self.tied()
        x, q = self.images(self.x), self.images(self.q)
        here, there = self.mixed(self.x), self.mixed(self.moved)
        change = torch.einsum("bnj,bn->bj", there - here, self.q).norm(dim=1)
        return {
            "hessian_change": (
                f.certificate("hessian_change", x, q, self.eps),
                self.hessian_moves(),
            ),
            "mixed_change": (f.certificate("mixed_change", x, q, self.eps), change),
            "mixed_norm": (
                f.certificate("mixed_norm", x, self.eps),
                torch.linalg.matrix_norm(there, 2),
            ),
        }


def constants(cases: int, seed: int) -> list[dict[str, Any]]:
    """Rows for each data term: how far above the truth the bounds are.

    Raises:
        SystemExit: a bound below the truth.
    """
    generator = torch.Generator().manual_seed(seed)
    shifts: dict[tuple[str, int], Shifts] = {}
    ratios: dict[tuple[str, str], list[float]] = {}
    for number in range(-(-cases // BATCH)):
        case = Case(generator, shifts)
        for name, (bound, truth) in case.compared().items():
            if bound is None or not bool((bound * (1 + 1e-9) + 1e-13 >= truth).all()):
                raise SystemExit(f"case {number}, seed {seed}: {name} of {case.term} does not hold")
            known = truth > 1e-12
            found = (bound / truth)[known & torch.isfinite(bound)].tolist()
            ratios.setdefault((case.term, name), []).extend(found)
    return [
        {
            "table": "constants",
            "term": term,
            "bound": name,
            "cases": len(values),
            "smallest": min(values),
            "median": statistics.median(values),
            "violated": 0,
        }
        for (term, name), values in sorted(ratios.items())
        if values
    ]


def norms(count: int, seed: int) -> list[dict[str, Any]]:
    """Proven ||A||^2 over the largest squared singular value, for signed and other kernels."""
    g = torch.Generator().manual_seed(seed)
    rows = []
    for padding in PADDINGS:
        for signed in (False, True):
            found = []
            for _ in range(count):
                side = int(torch.randint(6, 12, (), generator=g))
                kernel = torch.rand(S, S, generator=g, dtype=torch.float64)
                if signed:
                    kernel = torch.randn(S, S, generator=g, dtype=torch.float64)
                dense = Shifts.of(padding, side).operator(kernel)
                physics = dinv.physics.Blur(filter=kernel[None, None], padding=padding)
                L = LinearMap(physics).spectrum(torch.zeros(1, 1, side, side).double()).L
                true = float(torch.linalg.matrix_norm(dense, 2)) ** 2
                if not (L.certified and L.value >= true * (1 - 1e-12)):
                    raise SystemExit(f"the norm of {padding} does not hold: {L}, {true}")
                found.append(L.value / true)
            rows.append(
                {
                    "table": "norms",
                    "padding": padding,
                    "signed": signed,
                    "cases": count,
                    "median": statistics.median(found),
                    "largest": max(found),
                }
            )
    return rows


# --- whole problems -------------------------------------------------------------------------------


def gaussian(std: float) -> Tensor:
    t = torch.arange(S, dtype=torch.float64) - S // 2
    line = torch.exp(-(t**2) / (2 * std**2))
    kernel = line[:, None] * line
    return (kernel / kernel.sum())[None, None]


def problem(kind: str, padding: str, size: int, seed: int) -> lr.BilevelProblem:
    """A small problem with theta outside of the regularizer, in float64."""
    g = torch.Generator().manual_seed(seed)
    truth = torch.nn.functional.avg_pool2d(torch.rand(2, 1, 4 * size, 4 * size, generator=g), 4)
    truth = truth.double() + 0.5 * (truth > truth.mean()).double()
    physics = dinv.physics.Blur(filter=gaussian(1.0), padding=padding)
    y = physics.A(truth)
    y = y + 0.02 * torch.randn(y.shape, generator=g, dtype=torch.float64)
    regularizer: Any = lr.regularizers.TV(0.02, 0.1) + lr.regularizers.Tikhonov(0.1, learned=False)
    term: Any = lr.L2()
    if kind in ("kernel", "kernel + KL", "kernel + weights"):
        physics = dinv.physics.Blur(filter=gaussian(0.7).requires_grad_(), padding=padding)
    if kind == "kernel + KL":
        y, term = (30 * y.clamp_min(0)).round() / 1.0, lr.KL(5.0, gain=1 / 30)
    if kind in ("weights", "kernel + weights"):
        term = lr.WeightedL2(torch.nn.Parameter(torch.ones(1, 1, *y.shape[-2:]).double()))
    if kind == "KL, regularizer only":
        y, term = (30 * y.clamp_min(0)).round() / 1.0, lr.KL(5.0, gain=1 / 30)
        regularizer = lr.regularizers.FoE(3, 3) + lr.regularizers.Tikhonov(0.1, learned=False)
    pairs = lr.data.Pairs(truth, y, physics, tuple("ab"))
    return lr.BilevelProblem(lr.Energy(physics, regularizer, term).double(), pairs)


KINDS = ("kernel", "weights", "kernel + weights", "kernel + KL", "KL, regularizer only")


def bilevel(seeds: list[int], quick: bool) -> list[dict[str, Any]]:
    """Certified over true error of hypergradients."""
    rows = []
    for kind in KINDS:
        for seed in seeds:
            for padding in ("circular", "reflect"):
                p = problem(kind, padding, 8 if quick else 12, seed)
                exact = lr.hypergradient(p, 1e-9, 1e-9, strategy=lr.Implicit())
                for eps in (1e-2, 1e-4):
                    found = lr.hypergradient(p, eps, eps, strategy=lr.Implicit())
                    true = float((found.value - exact.value).norm())
                    if found.certified is None or found.certified < true:
                        raise SystemExit(f"{kind}: certified {found.certified}, true {true}")
                    rows.append(
                        {
                            "table": "bilevel",
                            "kind": kind,
                            "padding": padding,
                            "seed": seed,
                            "eps": eps,
                            "certified": found.certified,
                            "true": true,
                            "ratio": found.certified / max(true, 1e-300),
                            "gradient": float(exact.value.norm()),
                        }
                    )
    return rows


class Counted:
    """Applications of A and A^T of deepinv's blur, images counted."""

    def __enter__(self) -> Counted:
        self.count = 0
        self.kept = dinv.physics.Blur.A, dinv.physics.Blur.A_adjoint

        def of(method: Any) -> Any:
            def counted(physics: Any, x: Tensor, *args: Any, **more: Any) -> Tensor:
                self.count += x.shape[0]
                return method(physics, x, *args, **more)

            return counted

        dinv.physics.Blur.A, dinv.physics.Blur.A_adjoint = map(of, self.kept)
        return self

    def __exit__(self, *_: object) -> None:
        dinv.physics.Blur.A, dinv.physics.Blur.A_adjoint = self.kept


def trials() -> list[dict[str, Any]]:
    """What tying an energy at a trial theta costs, and how much of it is counted."""
    rows = []
    for padding in PADDINGS:
        p = problem("kernel", padding, 16, 0)
        start = p.energy.start(p.data)
        p.energy.at(p.data, start)
        for step in (0.0, 0.01):
            theta = p.theta.clone()
            theta[:1] += step
            theta[-1] -= step
            with Counted() as used:
                f = p.energy.with_theta(theta).at(p.data, start)
            halves = 2 * f.spent.work
            rows.append(
                {
                    "table": "trials",
                    "padding": padding,
                    "signed": step > 0,
                    "applications": used.count,
                    "counted": halves,
                }
            )
    return rows


def run(seeds: list[int] | None = None, quick: bool = False) -> list[dict[str, Any]]:
    """All rows; ``quick`` for a look."""
    seeds = [0, 1, 2] if seeds is None else seeds
    out: list[dict[str, Any]] = []
    for seed in seeds[:1] if quick else seeds:
        out += constants(200 if quick else -(-10_000 // len(seeds)), seed)
    out += norms(5 if quick else 40, seeds[0])
    out += bilevel(seeds[:1] if quick else seeds, quick)
    return out + trials()


def shown(rows: list[dict[str, Any]]) -> str:
    def cell(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    return "\n".join("  ".join(f"{k}={cell(v)}" for k, v in row.items()) for row in rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    found = run(asked.seeds, asked.quick)
    print(shown(found))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))
