"""Denoising of piecewise constant signals by smoothed TV: the reference problems of derivative-free
learning.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ...core.batch import check_images, dot, norm
from ...core.bounds import Bound, Curvature
from ...core.curvature import MeanCurvature
from ...core.errors import InputError
from ...core.protocols import Loss
from ...operators.differences import symbols
from .vectors import VectorEnergy, VectorProblem, at_least, positive_integer

NORM_SQUARED = 4.0
"""||D||^2 < 4 for a first difference of a signal."""

EFFORT = 6.0
"""Operations on one signal that a gradient costs: two differences and one slope."""

EXACT, NEWTON_STEPS = 1e-10, 300
"""``exact_solution``: distance to the minimizer, and the largest number of Newton steps."""


@dataclass(frozen=True)
class ConditionPenalty:
    """p(theta) = weight (L / mu)^2 with L / mu = (1 + 4 alpha / nu + xi) / (1 + xi).

    Args:
        weight: non-negative.
        ridge, smoothing: xi and nu where theta is log10 alpha alone.
    """

    weight: float
    ridge: float = 1e-3
    smoothing: float = 1e-3

    def __call__(self, theta: Tensor) -> Tensor:
        """theta (d,) -> scalar."""
        alpha, xi, nu = scales(theta, self.ridge, self.smoothing)
        return self.weight * ((1 + NORM_SQUARED * alpha / nu + xi) / (1 + xi)).square()


class SignalTV(VectorEnergy):
    """h(x; theta, y) = 1/2 ||x - y||^2 + alpha sum_j [ sqrt((Dx)_j^2 + nu^2) - nu ] + xi / 2
    ||x||^2.

    (Dx)_j = x_{j-1} - x_j with x_{-1} = 0, so the first entry is penalized as well. theta is (log10
    alpha,) or (log10 alpha, log10 xi, log10 nu). Signals x and y: (b, 1, 1, n).

    Args:
        theta: (1,) or (3,), the start.
        ridge, smoothing: xi and nu where theta has one entry.
    """

    def __init__(self, theta: Tensor, ridge: float = 1e-3, smoothing: float = 1e-3) -> None:
        super().__init__(theta)
        self.ridge, self.smoothing = ridge, smoothing

    def scales(self) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, xi and nu."""
        return scales(self.theta, self.ridge, self.smoothing)

    def numbers(self) -> tuple[float, float, float]:
        """The same in float64."""
        alpha, xi, nu = (
            float(s) for s in scales(self.theta.detach().double(), self.ridge, self.smoothing)
        )
        return alpha, xi, nu

    def bounds(self) -> Curvature:
        """mu = 1 + xi and L = 1 + 4 alpha / nu + xi."""
        alpha, xi, nu = self.numbers()
        return Curvature(Bound.proven(1 + xi), Bound.proven(1 + NORM_SQUARED * alpha / nu + xi))

    def at(self, y: Tensor, x: Tensor | None = None) -> SignalAt:
        """The potentials x -> h(x; theta, y), one per signal of y (b, 1, 1, n); the argument ``x``
        is not needed.
        """
        check_images(y, "y")
        if y.dim() != 4 or y.shape[1:3] != (1, 1):
            raise InputError("y", given=f"shape {tuple(y.shape)}", expected="shape (b, 1, 1, n)")
        return SignalAt(self, y, self.bounds())

    def start(self, y: Tensor) -> Tensor:
        """y itself."""
        return y

    def directional(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """<grad_x h, v> per signal (b,), differentiable in theta."""
        alpha, xi, nu = self.scales()
        slopes = difference(x) * torch.rsqrt(difference(x).square() + nu * nu)
        return dot(x - y, v) + alpha * dot(slopes, difference(v)) + xi * dot(x, v)

    def data_adjoint(self, x: Tensor, y: Tensor, q: Tensor) -> Tensor:
        """-(d/dy grad_x h)^T q = q."""
        return q

    def describe(self) -> str:
        """One line for records."""
        return "smoothed TV of signals"


class _SignalHessian:
    """(1 + xi) I + D^T diag(w) D with weights (b, 1, 1, n)."""

    def __init__(self, identity: float, weights: Tensor) -> None:
        self.identity, self.weights = identity, weights

    def __call__(self, v: Tensor) -> Tensor:
        return torch.add(adjoint(difference(v).mul_(self.weights)), v, alpha=self.identity)

    def select(self, index: Tensor) -> _SignalHessian:
        return _SignalHessian(self.identity, self.weights[index])


class SignalAt:
    """A SignalTV tied to its data: a batch of potentials (see ``core.protocols.Potential``)."""

    def __init__(self, energy: SignalTV, y: Tensor, curvature: Curvature) -> None:
        self.energy, self.y, self._curvature = energy, y, curvature
        self.alpha, self.xi, self.nu = energy.numbers()

    def value(self, x: Tensor) -> Tensor:
        d, square = difference(x), self.nu * self.nu
        rises = d.square()
        rises = rises / (
            self.nu + torch.sqrt(rises + square)
        )  # sqrt(d^2 + nu^2) - nu without cancellation
        return 0.5 * (
            dot(x - self.y, x - self.y) + self.xi * dot(x, x)
        ) + self.alpha * rises.flatten(1).sum(dim=1)

    def grad(self, x: Tensor) -> Tensor:
        d = difference(x)
        slopes = d.mul_((d * d).add_(self.nu * self.nu).rsqrt_()).mul_(self.alpha)
        return adjoint(slopes).add_(x, alpha=1 + self.xi).sub_(self.y)

    def linearize(self, x: Tensor) -> _SignalHessian:
        return _SignalHessian(1 + self.xi, (self.alpha / self.nu) * self._inverse(x).pow(3))

    def mean_curvature(self, x: Tensor) -> MeanCurvature:
        """Weights (alpha / nu) / (1 + u^2), u = Dx / nu, as those of ``regularizers.TV``."""
        mean = (self.alpha / self.nu) * self._inverse(x).square().mean(dim=-1, keepdim=True)
        return MeanCurvature(
            (2 * mean + 1 + self.xi).expand_as(x), mean * symbols(x)[1] + 1 + self.xi
        )

    def dual_start(self, x: Tensor) -> tuple[Tensor, ...]:
        """The slopes p = u / sqrt(1 + u^2) as variables of their own (see ``solvers.newton``)."""
        return (difference(x) / self.nu * self._inverse(x),)

    def dual_linearize(self, x: Tensor, dual: tuple[Tensor, ...]) -> _SignalHessian:
        """Weights (alpha / nu) (1 - p u / s) / s."""
        inverse = self._inverse(x)
        bent = 1 - dual[0] * difference(x) / self.nu * inverse
        return _SignalHessian(1 + self.xi, (self.alpha / self.nu) * bent * inverse)

    def dual_update(self, x: Tensor, dual: tuple[Tensor, ...], move: Tensor) -> tuple[Tensor, ...]:
        """s p + (u / s) p du = u + du solved for the new p, kept in [-1, 1]."""
        inverse, u, du = self._inverse(x), difference(x) / self.nu, difference(move) / self.nu
        return (((u + du - dual[0] * u * inverse * du) * inverse).clamp_(-1, 1),)

    def _inverse(self, x: Tensor) -> Tensor:
        """1 / s = (1 + u^2)^(-1/2)."""
        return (difference(x) / self.nu).square_().add_(1).rsqrt_()

    def effort(self) -> float:
        """What a gradient costs, in operations on one signal."""
        return EFFORT

    def bounds(self) -> Curvature:
        return self._curvature

    def select(self, index: Tensor) -> SignalAt:
        return SignalAt(self.energy, self.y[index], self._curvature)

    def double(self) -> SignalAt:
        return SignalAt(self.energy.widened(), self.y.double(), self._curvature)


class SignalProblem(VectorProblem):
    """SignalTV under the squared error; exact answers by a primal-dual Newton method with direct
    solves, in float64.

    Args:
        energy, x, y, loss: as in VectorProblem.
        penalty: p(theta).
        box: the range of theta that the reference experiments use, as learners take it.
    """

    def __init__(
        self,
        energy: SignalTV,
        x: Tensor,
        y: Tensor,
        loss: Loss | None = None,
        penalty: Callable[[Tensor], Tensor] | None = None,
        box: list[float] | dict[str, list[float]] | None = None,
    ) -> None:
        super().__init__(energy, x, y, loss)
        self.penalty, self.box = penalty, box

    def to(self, dtype: torch.dtype) -> Self:
        """The same problem with data in another type; the exact answers are then those of the
        rounded data.
        """
        return type(self)(
            self.energy,
            self.pairs.x.to(dtype),
            self.pairs.y.to(dtype),
            self.loss,
            self.penalty,
            self.box,
        )

    def exact_solution(self, theta: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """x*(theta): (b, 1, 1, n), to a certified distance of 1e-10.

        Raises:
            InputError: float64 does not reach that distance at these parameters.
        """
        data = (self.pairs.y if y is None else y).double()
        f = self.energy.with_theta(self._at(theta)).at(data)
        x, mu = data.clone(), f.bounds().mu.value
        dual = f.dual_start(x)
        for _ in range(NEWTON_STEPS):
            g = f.grad(x)
            if bool((norm(g) <= mu * EXACT).all()):
                return x
            move = -solve_tridiagonal(f.dual_linearize(x, dual), g)
            step = _backtracked(f, x, move, dot(g, move))
            dual, x = f.dual_update(x, dual, step), x + step
        raise InputError(
            "theta", given=self._at(theta).tolist(), expected="parameters at which float64 suffices"
        )

    def exact_loss(self, theta: Tensor | None = None) -> float:
        """f(theta), penalty included."""
        return super().exact_loss(theta) + self.penalty_at(self._at(theta))[0]

    def exact_hypergradient(self, theta: Tensor | None = None) -> Tensor:
        """mean_i -J_i^T H_i^-1 grad g_i, J_i the mixed derivative, plus the gradient of the
        penalty.
        """
        at = self._at(theta)
        x, y, x_true = self.exact_solution(at), self.pairs.y.double(), self.pairs.x.double()
        energy = self.energy.with_theta(at)
        q = solve_tridiagonal(energy.at(y).linearize(x), self.loss.grad(x, x_true))
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(energy.directional(x, y, q).mean(), energy.theta)
        return self.penalty_at(at)[1] - gradient


def one_parameter(
    theta: float = 0.0, signals: int = 10, size: int = 256, seed: int = 0
) -> SignalProblem:
    """The weight of TV: theta = log10 alpha in [-7, 7], xi = nu = 1e-3, noise 0.1.

    The one-parameter problem of Ehrhardt and Roberts, J. Math. Imaging Vis. 2021 (arXiv
    2006.12674): their objective is sum_i ||x_i - x_true||^2 = 2 ``signals`` f, least at theta =
    -0.31489 with 2 n f = 1.371490 (n = 10, seed 0).

    Args:
        theta: the start.
        signals, size: how many signals, of how many entries.
        seed: of the signals and the noise.

    Raises:
        InputError: sizes that are not positive integers, or a start that is not finite.
    """
    at_least("theta", theta, -math.inf)
    x, y = noisy_boxes(signals, size, seed)
    energy = SignalTV(torch.tensor([theta], dtype=torch.float64))
    return SignalProblem(energy, x, y, box=[-7.0, 7.0])


def three_parameters(
    weight: float = 1e-6, signals: int = 20, size: int = 256, seed: int = 0
) -> SignalProblem:
    """theta = log10 (alpha, xi, nu) with the penalty ``weight`` (L / mu)^2 on the condition number,
    noise 0.1.

    The three-parameter problem of Ehrhardt and Roberts (see ``one_parameter``): start (0, -1, -1)
    in the box [-7, 7] x [-7, 0] x [-7, 0], objective 2 n f = sum_i ||x_i - x_true||^2 + weight (L /
    mu)^2.

    Args:
        weight: non-negative; 1e-6 and 1e-4 are the two published settings.
        signals, size, seed: as in ``one_parameter``.

    Raises:
        InputError: sizes that are not positive integers, or a weight below zero.
    """
    at_least("weight", weight, 0)
    x, y = noisy_boxes(signals, size, seed)
    energy = SignalTV(torch.tensor([0.0, -1.0, -1.0], dtype=torch.float64))
    box = {"theta[0]": [-7.0, 7.0], "theta[1]": [-7.0, 0.0], "theta[2]": [-7.0, 0.0]}
    return SignalProblem(energy, x, y, penalty=ConditionPenalty(weight / (2 * signals)), box=box)


def noisy_boxes(signals: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indicator functions of random intervals in [-2, 2], and the same with noise 0.1: two of
    (signals, 1, 1, size).

    All intervals are drawn first, centre in [-1, 1] then half width in [1/2, 1], and then the noise
    of one signal after the other, from the legacy generator of numpy, whose stream is frozen.

    Raises:
        InputError: sizes or a seed that are not what they should be.
    """
    positive_integer("signals", signals)
    positive_integer("size", size)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise InputError("seed", given=seed, expected="an integer in [0, 2^32)")
    draw, grid = np.random.RandomState(seed), np.linspace(-2, 2, size)
    centres, radii = np.array(
        [[draw.uniform(-1, 1), draw.uniform(-0.5, -1)] for _ in range(signals)]
    ).T[..., None]
    x = ((grid - centres) ** 2 < radii**2).astype(np.float64)
    y = x + 0.1 * np.stack([draw.randn(size) for _ in range(signals)])
    return torch.from_numpy(x)[:, None, None], torch.from_numpy(y)[:, None, None]


def scales(theta: Tensor, ridge: float, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
    """alpha, xi and nu of theta (1,) or (3,), differentiable."""
    powers = 10.0**theta
    if theta.numel() == 3:
        return powers[0], powers[1], powers[2]
    return powers[0], torch.full_like(powers[0], ridge), torch.full_like(powers[0], smoothing)


def difference(x: Tensor) -> Tensor:
    """(Dx)_j = x_{j-1} - x_j along the last axis, x_{-1} = 0."""
    out = torch.neg(x)
    out[..., 1:] += x[..., :-1]
    return out


def adjoint(u: Tensor) -> Tensor:
    """(D^T u)_j = u_{j+1} - u_j, u_n = 0."""
    out = torch.neg(u)
    out[..., :-1] += u[..., 1:]
    return out


def solve_tridiagonal(hessian: _SignalHessian, b: Tensor) -> Tensor:
    """((1 + xi) I + D^T W D)^-1 b by elimination, stable without pivoting: the matrix is diagonally
    dominant.
    """
    w = hessian.weights.flatten(1).T.numpy()
    below = -w[1:]  # the entry (j, j - 1): -w_j
    diagonal, right = w + hessian.identity, b.flatten(1).T.numpy().copy()
    diagonal[:-1] += w[1:]
    for j in range(1, len(w)):
        factor = below[j - 1] / diagonal[j - 1]
        diagonal[j] -= factor * below[j - 1]
        right[j] -= factor * right[j - 1]
    right[-1] /= diagonal[-1]
    for j in range(len(w) - 2, -1, -1):
        right[j] = (right[j] - below[j] * right[j + 1]) / diagonal[j]
    return torch.from_numpy(right.T.copy()).view_as(b)


def _backtracked(f: SignalAt, x: Tensor, move: Tensor, slope: Tensor) -> Tensor:
    """The move, halved per signal until the energy falls; near the minimizer rounding hides the
    fall.
    """
    value, size = f.value(x), torch.ones_like(slope)
    for _ in range(30):
        trial = f.value(x + size[:, None, None, None] * move)
        failed = trial > value + 1e-4 * size * slope + 1e-14 * value.abs()
        if not bool(failed.any()):
            break
        size = torch.where(failed, 0.5 * size, size)
    return size[:, None, None, None] * move
