"""An attack on certificates: random small problems, every claim beside an independent truth.

    OMP_NUM_THREADS=1 python benchmarks/attack.py --cases 2000 --seed 0 --json attack.json

Each case draws a physics, a data term, a regularizer, a solver, a precision, a scale of the data
(1e-4 to 1e4), parameters up to the extreme, pictures (noise, edges, constant, zero, tiny) and an
accuracy from loose to the floor, and solves. The truth is Newton's method with matrices in float64
(``learnreg.testing``); for exact total variation ADMM with a duality gap of its own. A claim is
violated when true distance - uncertainty of the truth > certified distance (the worst ratio is that
of both sides); ``blind`` counts cases where the uncertainty is larger than what is certified. What
is refused is counted; so are errors that say nothing (crashes). The exit code is 1 if any claim is
false.

    python benchmarks/attack.py --seed 0 --case 17      shows one case again
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import random
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import deepinv
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import learnreg as lr
from learnreg.core.batch import norm
from learnreg.testing import truth
from learnreg.testing.dense import Dense, newton
from learnreg.testing.formulas import Part
from learnreg.testing.honest import Matrix
from learnreg.testing.measurements import Forward, of_data

R, P = lr.regularizers, deepinv.physics
Shape = tuple[int, int, int]

ROUNDING = 1e-6
"""Relative excess that is put down to the rounding of both distances."""


class Draw(random.Random):
    """Random settings; what was drawn is remembered by name."""

    def __init__(self, seed: str) -> None:
        super().__init__(seed)
        self.settings: dict[str, Any] = {}

    def pick(self, name: str, choices: Any) -> Any:
        self.settings[name] = value = self.choice(list(choices))
        return value

    def power(self, name: str, low: float, high: float) -> float:
        """10 to a uniform exponent."""
        self.settings[name] = value = float(f"{10 ** self.uniform(low, high):.3g}")
        return value

    def tensor(self, *shape: int) -> Tensor:
        """Standard normal, float64."""
        generator = torch.Generator().manual_seed(self.getrandbits(31))
        return torch.randn(*shape, generator=generator, dtype=torch.float64)


# --- what is drawn: a new kind is one line in one of these tables ---------------------------------


def _dense(d: Draw, s: Shape) -> nn.Module:
    n = math.prod(s)
    rows = max(1, round(n * d.choice([0.5, 1, 1.5])))
    gain = d.power("gain", -2, 2)
    decay = torch.logspace(0, -d.choice([0, 2, 6]), n, dtype=torch.float64)
    return Matrix(gain * d.tensor(rows, n) / n**0.5 * decay, s)


def _kernel(d: Draw) -> Tensor:
    return (d.tensor(1, 1, 3, 3).abs() + 0.01) / 5


PHYSICS: dict[str, Callable[[Draw, Shape], nn.Module]] = {
    "identity": lambda d, s: P.Denoising(P.GaussianNoise(0.1)),
    "dense": _dense,
    "mask": lambda d, s: P.Inpainting(s, mask=(d.tensor(*s) > 0.3).double()),
    "weights": lambda d, s: P.Inpainting(s, mask=d.power("gain", -2, 2) * d.tensor(*s)),
    "blur": lambda d, s: P.Blur(
        filter=_kernel(d), padding=d.pick("padding", ["circular", "replicate", "constant"])
    ),
    "blur_fft": lambda d, s: P.BlurFFT(s, filter=_kernel(d)),
    "downsampling": lambda d, s: P.Downsampling(s, filter="gaussian", factor=2),
}

DATA: dict[str, Callable[[Draw], Any]] = {
    "L2": lambda d: lr.L2(d.power("sigma", -2, 2)),
    "Huber": lambda d: lr.Huber(d.power("threshold", -3, 1), d.power("huber_weight", -2, 2)),
    "KL": lambda d: lr.KL(d.power("background", -1, 2), d.power("gain", -1, 1)),
    "WeightedL2": lambda d: lr.WeightedL2(torch.ones(1, 1)),  # weights are drawn when y is known
}
"""A data term whose ``tie(y)`` has value, grad and curvature needs no other line: see
``learnreg.testing.measurements.of_data``."""


def _weight(d: Draw, name: str = "weight") -> float:
    return d.power(name, -4, 2)


def _tv(d: Draw, scale: float, s: Shape) -> Any:
    isotropic = d.pick("isotropic", [True, False])
    return R.TV(_weight(d), scale * d.power("smoothing", -4, 1), isotropic=isotropic)


def _foe(d: Draw, scale: float, s: Shape) -> Any:
    arguments = {"filters": d.choice([1, 3]), "size": 3, "channels": s[0]}
    return R.FoE(
        **arguments,
        weight=_weight(d),
        smoothing=scale * d.power("smoothing", -3, 1),
        least_smoothing=0.0,
        init=d.choice(["dct", "random"]),
        padding=d.pick("padding_of_filters", ["reflect", "zero"]),
    )


SMOOTH: dict[str, Callable[[Draw, float, Shape], Any]] = {
    "tv": _tv,
    "huber_tv": lambda d, c, s: R.HuberTV(_weight(d), c * d.power("smoothing", -4, 1)),
    "foe": _foe,
    "tikhonov": lambda d, c, s: R.Tikhonov(_weight(d)),
    "sum": lambda d, c, s: _tv(d, c, s) + R.HuberTV(_weight(d, "second"), 0.1 * c),
    "scaled": lambda d, c, s: d.power("factor", -3, 3) * _tv(d, c, s),
    "scaled_by_zero": lambda d, c, s: 0 * _tv(d, c, s) + R.Tikhonov(_weight(d, "second")),
}


def _exact(d: Draw, c: float, s: Shape) -> Any:
    return R.ExactTV(c * _weight(d), isotropic=d.pick("isotropic", [True, False]))


def _rounded(d: Draw, c: float, s: Shape) -> Any:
    w = c * _weight(d)
    isotropic = d.pick("isotropic", [True, False])
    return R.ExactTV(w, isotropic=isotropic, rounding=c * w * d.power("rounding", -4, 1))


def _learned(d: Draw, c: float, s: Shape) -> Any:
    w = d.power("weight", -2, 1)
    return R.LearnedTV(
        filters=d.choice([1, 2, 4]),
        weight=w,
        rounding=0.05 * w * w * d.power("rounding", -1, 1),
        smoothing=0.05 * w * d.power("smoothing", -1, 1),
        curvature=0.05 / w**2 * d.power("curvature", -1, 1),
        init=d.choice(["interpolated", "random"]),
    )


SADDLE: dict[str, Callable[[Draw, float, Shape], Any]] = {
    "exact_tv": _exact,
    "rounded_tv": _rounded,
    "learned_tv": _learned,
}

SOLVERS = ("auto", "agd", "lbfgs", "newton", "nmapg", "primal_dual_newton")
SADDLE_SOLVERS = ("auto", "pdhg")
PICTURES = ("noise", "edges", "constant", "zero", "tiny", "one_bright")
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def _picture(d: Draw, kind: str, b: int, s: Shape) -> Tensor:
    x = torch.zeros(b, *s, dtype=torch.float64)
    if kind in ("noise", "tiny"):
        x = d.tensor(b, *s)
    elif kind == "edges":
        x[..., : max(1, s[-1] // 2)] = 1
        x = x + 0.05 * d.tensor(b, *s)
    elif kind == "constant":
        x = x + 0.7
    elif kind == "one_bright":
        x[..., 0, -1] = 1
    return x * 1e-9 if kind == "tiny" else x


@dataclass
class Case:
    """One problem and what came of it."""

    number: int
    settings: dict[str, Any]
    outcome: str = ""
    claim: str = ""
    ratio: float = 0.0
    violated: bool = False
    blind: bool = False
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Posed:
    """A problem ready to be solved."""

    energy: Any
    y: Tensor
    like: Tensor
    eps: float
    solver: str
    budget: int
    saddle: bool


def posed(d: Draw) -> Posed:
    """A random problem."""
    saddle = d.pick("saddle", [False, False, False, True])
    kind = d.pick("physics", PHYSICS)
    shape = _shape(d, kind, saddle)
    b = d.pick("batch", [1, 1, 2, 4])
    dtype = DTYPES[d.pick("dtype", DTYPES)]
    scale = d.power("scale", -4, 4)

    name = d.pick("regularizer", SADDLE if saddle else SMOOTH)
    if name == "foe" and min(shape[1:]) < 3:
        name = d.settings["regularizer"] = "tv"
    if name == "learned_tv" and min(shape[1:]) < 3:
        name = d.settings["regularizer"] = "rounded_tv"
    physics = PHYSICS[kind](d, shape)
    fidelity = DATA[d.pick("data", ["L2"] if saddle else [*DATA])](d)
    regularizer = (SADDLE if saddle else SMOOTH)[name](d, scale, shape)
    ridge = 0.0 if kind == "identity" and d.random() < 0.5 else d.power("ridge", -4, 1)
    if ridge and not saddle:
        regularizer = regularizer + R.Tikhonov(ridge)
    energy = (
        lr.SaddleEnergy(physics.to(dtype), regularizer.to(dtype), fidelity, ridge)
        if saddle
        else lr.Energy(physics.to(dtype), regularizer.to(dtype), fidelity)
    )

    x = scale * _picture(d, d.pick("picture", PICTURES), b, shape)
    y = physics.A(x.to(dtype))
    y = y + (0.1 * scale * d.tensor(*y.shape)).to(dtype) * d.choice([0, 1, 1])
    if isinstance(fidelity, lr.KL):
        y = y.abs()
    if isinstance(fidelity, lr.WeightedL2):  # zeros among the weights
        weights = (d.power("weights", -2, 2) * d.tensor(1, *y.shape[1:])).clamp_min(0).to(dtype)
        energy = lr.Energy(physics.to(dtype), regularizer.to(dtype), lr.WeightedL2(weights))
    eps = scale * math.sqrt(math.prod(shape)) * d.power("relative_eps", -13, 0)
    solver = d.pick("solver", SADDLE_SOLVERS if saddle else SOLVERS)
    budget = d.pick("budget", [3, 30, 300] if saddle else [5, 50, 300, 1000])
    return Posed(energy, y, x.to(dtype), eps, solver, budget, saddle)


def _shape(d: Draw, physics: str, saddle: bool) -> Shape:
    """4 to 30 unknowns mostly, and some larger pictures."""
    c = d.choice([1, 1, 2, 3])
    if d.random() < (0.1 if saddle else 0.12):
        c, h, w = (1, 8, 8) if saddle else (d.choice([1, 3]), d.choice([6, 12]), d.choice([8, 12]))
    else:
        h, w = d.choice([(2, 2), (1, 4), (3, 3), (4, 2), (3, 5), (5, 6), (4, 4)])
        c = c if c * h * w <= 30 else 1
    if physics == "downsampling":
        h, w = 8, 8
    if physics.startswith("blur"):
        h, w = max(h, 3), max(w, 3)
    d.settings["shape"] = [c, h, w]
    return c, h, w


# --- truths of saddle points ----------------------------------------------------------------------


def saddle_truth(p: Posed) -> tuple[Tensor, Tensor]:
    """Minimizers and their uncertainties, image by image."""
    found = [_saddle_truth(p.energy, p.y[i : i + 1], p.like[i : i + 1]) for i in range(len(p.y))]
    return torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])


def _saddle_truth(energy: Any, y: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    r, shape = energy.regularizer, like.shape[1:]
    matrix, offset = Forward(energy.physics, like).matrix(shape)
    if isinstance(r, R.LearnedTV):
        return _lifted_newton(energy, y, like, matrix, offset)
    k = _gradient_matrix(r, shape)
    if r.rounding > 0:
        size = torch.tensor(r.rounding, dtype=torch.float64)
        parts = [Part("huber", _rows(k), torch.ones_like(size), size)]
        parts += _ridge(energy.tikhonov, math.prod(shape))
        data = of_data(energy.fidelity, y.double())
        dense = Dense(matrix, offset, y.shape[1:], data, parts, None, torch.Size([k.shape[-1]]))
        x, uncertainty = newton(dense, like.double().flatten(1))
        return x.view(1, *shape), uncertainty
    return _admm(matrix, y, energy, k, shape)


def _rows(k: Tensor) -> Callable[[Tensor], Tensor]:
    """Features of vectors (b, n) by a matrix (groups, width, n)."""
    return lambda x: torch.einsum("gkn,bn->bgk", k, x.flatten(1))


def _ridge(weight: float, n: int) -> list[Part]:
    size = torch.tensor(weight, dtype=torch.float64)
    eye = torch.eye(n, dtype=torch.float64)[:, None]
    return [Part("square", _rows(eye), size, torch.ones_like(size))] if weight else []


def _gradient_matrix(r: Any, shape: torch.Size) -> Tensor:
    """w D, (groups, width, n)."""
    n = math.prod(shape)
    eye = torch.eye(n, dtype=torch.float64).view(n, *shape)
    down, right = torch.zeros_like(eye), torch.zeros_like(eye)
    down[..., :-1, :], right[..., :-1] = eye.diff(dim=-2), eye.diff(dim=-1)
    d = torch.stack([down.flatten(1), right.flatten(1)], dim=-1)  # (n, pixels, 2)
    d = d if r.isotropic else d.flatten(1)[..., None]
    return r.log_weight.detach().double().exp() * d.movedim(0, -1)


def _lifted_newton(
    energy: Any, y: Tensor, like: Tensor, matrix: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor]:
    """A smooth LearnedTV as a function of the image and its auxiliary fields, p eliminated."""
    r, shape = energy.regularizer.double(), like.shape[1:]
    n, fields = math.prod(shape), r.auxiliary(like.double())
    sizes = [n, *(v.numel() for v in fields)]
    total = sum(sizes)
    eye = torch.eye(total, dtype=torch.float64)
    pieces = eye.split(sizes, dim=1)
    blocks = [pieces[0].view(total, *shape)]
    blocks += [v.view(total, *f.shape[1:]) for v, f in zip(pieces[1:], fields, strict=True)]
    with torch.no_grad():
        k = torch.cat([t.flatten(1) for t in r.linear(*blocks)], dim=1).T / r.rounding**0.5
    one = torch.tensor(1.0, dtype=torch.float64)
    parts = [Part("square", _rows(k[:, None]), one, one)]
    start = n
    for v in fields:
        places = torch.arange(v.numel()).view(v.shape[1:]).movedim(0, -1)
        groups = eye[start + places.flatten()].view(-1, 2, total)
        parts.append(Part("root", _rows(groups), one, one * r.smoothing))
        parts.append(Part("square", _rows(groups), one * r.curvature, one))
        start += v.numel()
    if energy.tikhonov:
        parts.append(Part("square", _rows(eye[:n, None]), one * energy.tikhonov, one))
    wide = torch.cat([matrix, torch.zeros(matrix.shape[0], total - n, dtype=matrix.dtype)], dim=1)
    data = of_data(energy.fidelity, y.double())
    dense = Dense(wide, offset, y.shape[1:], data, parts, None, torch.Size([total]))
    begin = torch.cat([like.double().flatten(), torch.zeros(total - n, dtype=torch.float64)])
    z, uncertainty = newton(dense, begin[None])
    return z[:, :n].view(1, *shape), uncertainty


def _admm(
    matrix: Tensor, y: Tensor, energy: Any, k: Tensor, shape: torch.Size
) -> tuple[Tensor, Tensor]:
    """Exact total variation. For p with |p| <= 1 and u(p) the minimizer of the Lagrangian, the gap
    is sum |K u| - <K u, p> and ||u(p) - u*||^2 <= 2 gap / mu.
    """
    weight = 1 / energy.fidelity.sigma**2
    n = matrix.shape[1]
    q = weight * matrix.T @ matrix + energy.tikhonov * torch.eye(n, dtype=torch.float64)
    c = weight * matrix.T @ y.double().flatten()
    values = torch.linalg.eigvalsh(q)
    mu = max(float(values[0]), energy.tikhonov)
    flat = k.flatten(0, 1)
    inverse = torch.linalg.inv(q)
    z = torch.zeros(k.shape[:2], dtype=torch.float64)
    p, best = torch.zeros_like(z), (math.inf, torch.zeros(n, dtype=torch.float64))
    gram = flat.T @ flat
    rho = float(q.diagonal().mean() / gram.diagonal().mean().clamp_min(1e-300))
    first, solve = rho, torch.linalg.inv(q + rho * gram)
    for step in range(1, 6001):
        u = solve @ (c + flat.T @ (rho * z - p).flatten())
        ku = (k @ u).view_as(z)
        before, w = z, ku + p / rho
        z = w * (1 - 1 / (rho * w.norm(dim=1, keepdim=True)).clamp_min(1e-300)).clamp_min(0)
        p = p + rho * (ku - z)
        p = p / p.norm(dim=1, keepdim=True).clamp_min(1)
        if step % 50 == 0:
            at = inverse @ (c - flat.T @ p.flatten())
            kat = (k @ at).view_as(z)
            size = kat.norm(dim=1)
            gap = float((size - (kat * p).sum(dim=1)).clamp_min(0).sum())
            gap += 4e-16 * float(size.sum())
            best = min(best, (gap, at), key=lambda pair: pair[0])
            if gap <= 1e-15 * float(size.sum()) or gap == 0:
                break
            if step < 3000:
                primal, dual = float((ku - z).norm()), rho * float((z - before).norm())
                change = min(max(((primal + 1e-300) / (dual + 1e-300)) ** 0.5, 0.2), 5.0)
                if not 0.5 < change < 2:
                    rho = min(max(rho * change, 1e-6 * first), 1e6 * first)
                    solve = torch.linalg.inv(q + rho * gram)
    rounding = 1e-15 * float(values[-1]) / mu * float(best[1].norm())
    uncertainty = math.sqrt(2 * best[0] / mu) + rounding
    return best[1].view(1, *shape), torch.tensor([uncertainty], dtype=torch.float64)


# --- the attack -----------------------------------------------------------------------------------


def attacked(seed: int, number: int) -> Case:
    """One case."""
    d = Draw(f"{seed}/{number}")
    case = Case(number, d.settings)
    try:
        p = posed(d)
        solution = lr.solve(p.energy, p.y, p.eps, solver=p.solver, budget=p.budget, throw=False)
    except lr.LearnregError as error:
        return _ended(case, "refused", error)
    except Exception as error:
        return _ended(case, "crashed", error)
    if not solution.kind.certifies:
        case.outcome = "labelled"
        return case
    try:
        minimizer, uncertainty = _truth(p)
    except (RuntimeError, torch.linalg.LinAlgError) as error:
        return _ended(case, "no truth", error)
    case.outcome = "judged"
    _judge(case, "solve", solution.value, solution.error, minimizer, uncertainty)
    reached = [s.ok for s in solution.status]
    if any(ok and not e <= p.eps for ok, e in zip(reached, solution.error.tolist(), strict=True)):
        _blame(case, "status", math.inf, {"error": solution.error.tolist(), "eps": p.eps})
    if not p.saddle and d.random() < 0.3:
        _other_image(case, d, p, solution.value, minimizer, uncertainty)
    return case


def _ended(case: Case, outcome: str, error: Exception) -> Case:
    case.outcome = outcome
    case.details["error"] = f"{type(error).__name__}: {error}"[:300]
    if outcome == "crashed":
        case.details["trace"] = traceback.format_exc().splitlines()[-4:]
    return case


def _truth(p: Posed) -> tuple[Tensor, Tensor]:
    if p.saddle:
        return saddle_truth(p)
    found = truth(p.energy, p.y, p.like)
    return found.minimizer, found.uncertainty


def _judge(
    case: Case, claim: str, x: Tensor, certified: Tensor, minimizer: Tensor, uncertainty: Tensor
) -> None:
    true = norm(x.double() - minimizer)
    for t, u, e in zip(true.tolist(), uncertainty.tolist(), certified.tolist(), strict=True):
        least = max(t - u, 0.0)
        ratio = least / e if e > 0 else (math.inf if least > 0 else 0.0)
        if math.isnan(e) or math.isnan(t) or ratio > 1 + ROUNDING:
            _blame(case, claim, ratio, {"true": t, "certified": e, "uncertainty": u})
        case.ratio = max(case.ratio, ratio)
        case.blind = case.blind or u > e


def _blame(case: Case, claim: str, ratio: float, details: dict[str, Any]) -> None:
    if not case.violated or ratio >= case.ratio:
        case.violated, case.claim = True, claim
        case.ratio = max(case.ratio, ratio)
        case.details.update(details)


def _other_image(
    case: Case, d: Draw, p: Posed, x: Tensor, minimizer: Tensor, uncertainty: Tensor
) -> None:
    """``lr.certify`` of some other image, from both sides."""
    other = x + (d.power("away", -8, 0) * (1 + float(x.abs().max())) * d.tensor(*x.shape)).to(x)
    try:
        found = lr.certify(p.energy, p.y, other)
    except lr.LearnregError as error:
        case.details["certify"] = str(error)[:200]
        return
    _judge(case, "certify", other, found.certified, minimizer, uncertainty)
    true = norm(other.double() - minimizer)
    for t, u, low in zip(true.tolist(), uncertainty.tolist(), found.at_least.tolist(), strict=True):
        if low > (t + u) * (1 + ROUNDING) + 1e-300:
            _blame(case, "at_least", low / max(t, 1e-300), {"true": t, "at_least": low})


def summary(cases: list[Case]) -> Table:
    """By kind: cases judged, the worst ratio, violations."""
    table = Table("kind", "judged", "blind", "refused", "other", "worst ratio", "violations")
    groups: dict[str, list[Case]] = collections.defaultdict(list)
    for case in cases:
        for key in ("physics", "regularizer", "solver", "dtype", "picture"):
            groups[f"{key}: {case.settings.get(key, '-')}"].append(case)
    groups["all"] = cases
    for name in sorted(groups):
        group = groups[name]
        count = collections.Counter(c.outcome for c in group)
        other = len(group) - count["judged"] - count["refused"]
        worst = max((c.ratio for c in group if c.outcome == "judged"), default=0.0)
        wrong = sum(c.violated for c in group)
        blind = sum(c.blind for c in group)
        numbers = (count["judged"], blind, count["refused"], other)
        table.add_row(name, *map(str, numbers), f"{worst:.3g}", str(wrong))
    return table


def numbers(given: argparse.Namespace) -> Iterator[int]:
    """Of the cases to be run."""
    yield from [given.case] if given.case is not None else range(given.cases)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="this one only")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    console, began, cases = Console(), time.perf_counter(), []
    for number in numbers(given):
        cases.append(attacked(given.seed, number))
        last = cases[-1]
        if last.violated or last.outcome == "crashed" or given.case is not None:
            console.print(json.dumps(asdict(last), default=str), soft_wrap=True, highlight=False)
        if given.json and (number % 100 == 99 or number == given.cases - 1):
            given.json.write_text(json.dumps([asdict(c) for c in cases], default=str, indent=1))
    console.print(summary(cases))
    wrong = [c.number for c in cases if c.violated]
    console.print(
        f"{len(wrong)} violations in {len(cases)} cases, {time.perf_counter() - began:.0f} s"
    )
    if wrong:
        console.print(f"again: python benchmarks/attack.py --seed {given.seed} --case {wrong[0]}")
        sys.exit(1)


if __name__ == "__main__":
    main()
