"""Tiny saddle points whose solutions and derivatives are known: matrices for K, and truths by dense
Newton steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import deepinv
import torch
from tests.regularizers.cases import Pairs, pairs
from torch import Tensor, nn

from learnreg.convex import Convex, KullbackLeibler, SmoothNorm, Squares
from learnreg.core.params import trainable
from learnreg.core.results import Solution
from learnreg.problems import L2, BilevelProblem, SaddleEnergy
from learnreg.regularizers import TGV, ExactTV, LearnedTV
from learnreg.regularizers.saddle import SaddleRegularizer
from learnreg.solvers import solve


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Matrix(SaddleRegularizer):
    """K(theta) is the matrix theta itself (m, n + k) on n pixels and k auxiliary numbers, b(theta)
    the vector shift.

    Blocks are (b, 1, numbers), so that functions which take lengths over dimension 1 act on every
    number alone.

    Args:
        table: start values (m, n + k).
        pixels: n.
        rows: f, a function of K x + b.
        own: g of the auxiliary block; there is none without it.
        shift: start values (m,) of b, or None for no offset.
        unit: K is unit times theta.
    """

    def __init__(
        self,
        table: Tensor,
        pixels: int,
        rows: Convex,
        own: Convex | None = None,
        shift: Tensor | None = None,
        unit: float = 1.0,
    ) -> None:
        super().__init__()
        self.table, self.pixels, self.rows, self.own = nn.Parameter(table / unit), pixels, rows, own
        self.unit = unit
        self.shift = None if shift is None else nn.Parameter(shift.clone())

    def auxiliary(self, u: Tensor) -> tuple[Tensor, ...]:
        return (
            ()
            if self.own is None
            else (u.new_zeros(u.shape[0], 1, self.table.shape[1] - self.pixels),)
        )

    def primal(self, u: Tensor) -> tuple[Convex, ...]:
        return () if self.own is None else (self.own,)

    def dual(self, u: Tensor) -> tuple[Convex, ...]:
        return (self.rows,)

    def dual_start(self, u: Tensor) -> tuple[Tensor, ...]:
        return (u.new_zeros(u.shape[0], 1, self.table.shape[0]),)

    def linear(self, u: Tensor, *v: Tensor) -> tuple[Tensor, ...]:
        x = torch.cat([u.flatten(1), *(t.flatten(1) for t in v)], dim=1)
        return ((x @ (self.unit * self.table).T)[:, None],)

    def adjoint(self, *p: Tensor) -> tuple[Tensor, ...]:
        x = p[0][:, 0] @ (self.unit * self.table)
        image = x[:, : self.pixels].reshape(-1, 1, 1, self.pixels)
        return (image,) if self.own is None else (image, x[:, None, self.pixels :])

    def offset(self, u: Tensor) -> tuple[Tensor | None, ...] | None:
        return None if self.shift is None else (self.shift.view(1, 1, -1),)

    def norms(self, u: Tensor) -> list[list[float]]:
        table = self.unit * self.table.detach().double()
        parts = [table[:, : self.pixels]] + ([] if self.own is None else [table[:, self.pixels :]])
        return [[float(torch.linalg.matrix_norm(t, 2)) for t in parts]]

    def sensitivity(self, u: Tensor) -> tuple[float, float]:
        return self.unit * self.table.requires_grad, 0.0 if self.shift is None else 1.0


class Dense(deepinv.physics.LinearPhysics):
    """A is a matrix (m, n), images are (b, 1, 1, n)."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        return x @ self.matrix.T

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        return y @ self.matrix


def denoising() -> nn.Module:
    return deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1))


def posed(
    regularizer: SaddleRegularizer,
    physics: nn.Module | None = None,
    *,
    images: int = 3,
    measured: int = 0,
    seed: int = 0,
    **settings: Any,
) -> BilevelProblem:
    """A problem with random x (b, 1, 1, n) and y (b, 1, 1, measured or n)."""
    n = regularizer.pixels
    x, y = (
        normal(images, 1, 1, n, seed=seed + 1),
        normal(images, 1, 1, measured or n, seed=seed + 2),
    )
    return BilevelProblem(
        SaddleEnergy(physics or denoising(), regularizer.double(), **settings), Pairs(x=x, y=y)
    )


def quadratic(
    *,
    shift: bool = True,
    auxiliary: bool = False,
    data: bool = False,
    n: int = 6,
    m: int = 3,
    seed: int = 0,
) -> BilevelProblem:
    """g = 1.5/2 |u - y|^2 and f* = 2/2 |p|^2 (T1), with an offset, an auxiliary block, or a matrix
    A on request.
    """
    extra = 2 if auxiliary else 0
    regularizer = Matrix(
        normal(m, n + extra, seed=seed),
        n,
        Squares(0.5),
        Squares(0.8) if auxiliary else None,
        normal(m, seed=seed + 5) if shift else None,
    )
    physics = Dense(normal(n - 2, n, seed=seed + 6)) if data else None
    return posed(
        regularizer,
        physics,
        measured=n - 2 if data else 0,
        fidelity=L2(1.5**-0.5),
        tikhonov=0.3 if data else 0.0,
        seed=seed,
    )


def curved(
    *, data: bool = False, shift: bool = True, n: int = 6, m: int = 4, seed: int = 0
) -> BilevelProblem:
    """Neither g nor f* is quadratic (T2): |u - y|^2 and c sqrt(1 + v^2) + v^2/2 against f of the
    same kind.
    """
    regularizer = Matrix(
        0.6 * normal(m, n + 3, seed=seed),
        n,
        SmoothNorm(1.0, 0.7, 0.4),
        SmoothNorm(0.5, 1.0, 1.0),
        normal(m, seed=seed + 5) if shift else None,
    )
    physics = Dense(normal(n - 2, n, seed=seed + 6)) if data else None
    return posed(
        regularizer,
        physics,
        measured=n - 2 if data else 0,
        tikhonov=0.3 if data else 0.0,
        seed=seed,
    )


# --- truths ---------------------------------------------------------------------------------------


def plain(f: Convex, a: Tensor) -> Tensor:
    """phi(a) in torch operations that autograd differentiates twice, summed over everything."""
    if isinstance(f, Squares):
        d = a if f.centre is None else a - f.centre
        return 0.5 * (f.weight * d * d).sum()
    if isinstance(f, SmoothNorm):
        square = (a * a).sum(dim=1)
        return (
            f.scale * (torch.sqrt(square + f.eta**2) - f.eta)
        ).sum() + 0.5 * f.strong * square.sum()
    assert isinstance(f, KullbackLeibler)
    return (a - f.data * torch.log(a + f.background)).sum()


def primal(f: Any, x: tuple[Tensor, ...]) -> Tensor:
    """P(x), of a SaddleAt whose theta may require gradients."""
    regularizer, rows = f.energy.regularizer, list(f.energy.regularizer.linear(*x))
    for k, b in enumerate(regularizer.offset(x[0]) or ()):
        rows[k] = rows[k] if b is None else rows[k] + b
    if f.data:
        rows.insert(0, f.energy.operator.forward(x[0]))
    total = sum(plain(phi, a) for phi, a in zip(f.dual, rows, strict=True))
    return total + sum(plain(g, a) for g, a in zip(f.primal, x, strict=True))


class Truth(NamedTuple):
    """Packed solutions (b, n) of x and p, the packed adjoints, z (d,) and the loss, all exact to
    rounding.

    Packed states are compared after ``variables``: solvers may remember more in them.
    """

    state: Tensor
    adjoint: Tensor
    z: Tensor
    loss: float


@torch.enable_grad()
def truth(
    problem: BilevelProblem, theta: Tensor | None = None, start: Tensor | None = None
) -> Truth:
    """By dense Newton steps on P, for smooth problems; derivatives by the implicit function theorem
    on grad P = 0.
    """
    energy = problem.energy.with_theta(problem.theta if theta is None else theta)
    params = trainable(energy)
    states, adjoints, total = (
        [],
        [],
        torch.zeros(sum(q.numel() for q in params), dtype=torch.float64),
    )
    size = problem.pairs.x.shape[0]
    for i in range(size):
        f = energy.at(problem.pairs.y[i : i + 1])
        first = f.start(energy.start(f.y))[0] if start is None else f.unpack(start[i : i + 1])[0]
        x, hessian = _newton(f, first)
        blocks = _split(f, x.requires_grad_())
        slope = torch.zeros_like(x)
        pixels = blocks[0].numel()
        slope[:pixels] = problem.loss.grad(blocks[0].detach(), problem.pairs.x[i : i + 1]).flatten()
        X = torch.linalg.solve(hessian, -slope)
        (g,) = torch.autograd.grad(primal(f, blocks), x, create_graph=True)
        found = torch.autograd.grad(g @ X, params)
        total += torch.cat([t.flatten() for t in found]) / size
        p, Y = _dual(f, _split(f, x.detach()), _split(f, X))
        states.append(f.pack(_split(f, x.detach()), p))
        adjoints.append(f.pack(_split(f, X), Y))
    state = torch.cat(states)
    image = energy.at(problem.pairs.y).image(state)
    return Truth(
        state, torch.cat(adjoints), total, float(problem.loss.value(image, problem.pairs.x).mean())
    )


def variables(problem: BilevelProblem, z: Tensor) -> Tensor:
    """Only x and p (or X and Y) of a packed state (b, n)."""
    f = problem.energy.at(problem.pairs.y)
    x, p = f.unpack(z)
    return torch.cat([t.flatten(1) for t in (*x, *p)], dim=1)


def exact_loss(problem: BilevelProblem, theta: Tensor, start: Tensor) -> float:
    """f(theta) by Newton steps from the packed states ``start``."""
    return truth(problem, theta, start).loss


def _split(f: Any, x: Tensor) -> tuple[Tensor, ...]:
    sizes = [math.prod(s) for s in f.shapes[0]]
    return tuple(t.reshape(1, *s) for t, s in zip(x.split(sizes), f.shapes[0], strict=True))


def _newton(f: Any, start: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    x = torch.cat([t.flatten() for t in start]).detach()

    def value(at: Tensor) -> Tensor:
        return primal(f, _split(f, at))

    for _ in range(60):
        leaf = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(value(leaf), leaf)
        hessian = torch.autograd.functional.hessian(value, x)
        step, t = torch.linalg.solve(hessian, g), 1.0
        if float(step.norm()) < 1e-14 * (1 + float(x.norm())):
            break
        with torch.no_grad():
            while not value(x - t * step) <= value(x) + 1e-12 * abs(float(value(x))) and t > 1e-8:
                t /= 2
        x = x - t * step
    assert float(g.norm()) < 1e-10, float(g.norm())
    return x, hessian


def _dual(
    f: Any, x: tuple[Tensor, ...], X: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """p = grad f(K x + b) and Y, its derivative along K X."""
    with torch.no_grad():
        rows, moved = f.apply(x), f.linear(X)
    p, Y = [], []
    for phi, a, da in zip(f.dual, rows, moved, strict=True):
        leaf = a.detach().clone().requires_grad_()
        (s,) = torch.autograd.grad(plain(phi, leaf), leaf, create_graph=True)
        (ds,) = torch.autograd.grad((s * da).sum(), leaf)
        p.append(s.detach())
        Y.append(ds)
    return tuple(p), tuple(Y)


def central_difference(
    value: Callable[[Tensor], float], theta: Tensor, direction: Tensor, h: float, order: int = 2
) -> float:
    """d/dt value(theta + t direction) at 0, off by O(h^2) or, with order 4, by O(h^4)."""
    near = (value(theta + h * direction) - value(theta - h * direction)) / (2 * h)
    return (
        near if order == 2 else (4 * near - central_difference(value, theta, direction, 2 * h)) / 3
    )


# --- pictures -------------------------------------------------------------------------------------


def blur() -> nn.Module:
    """A 3 x 3 kernel without symmetry, periodic."""
    kernel = torch.tensor(
        [[0.0, 0.1, 0.0], [0.2, 0.4, 0.1], [0.0, 0.15, 0.05]], dtype=torch.float64
    )[None, None]
    return deepinv.physics.Blur(filter=kernel, padding="circular")


def inpainting(shape: tuple[int, int, int]) -> nn.Module:
    mask = (normal(*shape, seed=9) > -0.6).double()
    return deepinv.physics.Inpainting(img_size=shape, mask=mask)


PICTURES: dict[str, Callable[[], SaddleRegularizer]] = {
    "tv": lambda: ExactTV(0.1),
    "tv-anisotropic": lambda: ExactTV(0.1, isotropic=False),
    "tv-rounding": lambda: ExactTV(0.1, rounding=0.1),
    "tgv": lambda: TGV(0.04),
    "tgv-curvature": lambda: TGV(0.1, curvature=0.2, rounding=0.05),
    "learned": lambda: LearnedTV(2, weight=0.3, rounding=0.05, smoothing=0.05, curvature=0.05),
    "learned-zero": lambda: LearnedTV(
        2, weight=0.3, rounding=0.05, smoothing=0.1, curvature=0.2, padding="zero", init="random"
    ),
    "learned-sharp": lambda: LearnedTV(2, weight=0.3, rounding=0.05, smoothing=0.0, curvature=0.0),
}
SMOOTH = ("learned", "learned-zero")
PHYSICS: dict[str, Callable[[tuple[int, int, int]], tuple[nn.Module, float]]] = {
    "denoising": lambda shape: (denoising(), 0.0),
    "inpainting": lambda shape: (inpainting(shape), 0.2),
    "blur": lambda shape: (blur(), 0.3),
}


def pictured(
    name: str,
    physics: str = "denoising",
    size: tuple[int, int] = (5, 6),
    count: int = 3,
    dtype: torch.dtype = torch.float64,
) -> BilevelProblem:
    """Piecewise smooth pictures, measured."""
    data = pairs(count, size)
    operator, tikhonov = PHYSICS[physics](tuple(data.x.shape[1:]))
    noise = data.y - data.x
    y = (
        data.y
        if physics == "denoising"
        else operator.A(data.x) + 0.5 * (noise if physics == "blur" else operator.mask * noise)
    )
    if dtype == torch.float32:
        operator = operator.float()
    energy = SaddleEnergy(operator, PICTURES[name]().to(dtype), tikhonov=tikhonov)
    return BilevelProblem(energy, Pairs(x=data.x.to(dtype), y=y.to(dtype)))


def reached(
    problem: BilevelProblem, eps: float, theta: Tensor | None = None, x0: Tensor | None = None
) -> Solution:
    """A float64 solve, as far as it comes."""
    energy = problem.energy.with_theta((problem.theta if theta is None else theta).double())
    return solve(SaddleEnergy.double(energy), problem.pairs.y.double(), eps, x0=x0, throw=False)


@cache
def picture(name: str, physics: str = "denoising") -> tuple[BilevelProblem, Truth]:
    """Two small pictures, for smooth problems."""
    problem = pictured(name, physics, (3, 4), count=2)
    return problem, picture_truth(problem)


def picture_truth(problem: BilevelProblem) -> Truth:
    """Newton's method from a solution: large Hessians are paid for twice or so, not twenty
    times.
    """
    state = reached(problem, 1e-7).state
    assert state is not None
    return truth(problem, start=state)
