"""Smoothed TV denoising of two pixels: the exact answer is the root of a scalar equation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...core.batch import check_images, dot
from ...core.bounds import Bound, Curvature
from ...core.errors import InputError
from .vectors import VectorEnergy, VectorProblem, at_least, normal, positive_integer

THIRD_MAX = 48 / (25 * math.sqrt(5))
"""max |s'''| of s(u) = sqrt(1 + u^2), at |u| = 1/2."""


class TwoPixelTV(VectorEnergy):
    """h(x; theta, y) = 1/2 ||x - y||^2 + w [ sqrt(t^2 + nu^2) - nu ],  t = x_2 - x_1,  (w, nu) =
    exp(theta).

    Images x and y: (b, 2). The mean of the minimizer is that of y, and its t solves the scalar
    equation t - (y_2 - y_1) + 2 w t / sqrt(t^2 + nu^2) = 0. With u = t / nu: s'(u) = u / sqrt(1 +
    u^2), s'' = (1 + u^2)^(-3/2), and k = u s'' is minus the derivative of s' with respect to log
    nu; |k'| <= 1.
    """

    def _scales(self) -> tuple[float, float]:
        w, nu = self.theta.detach().double().exp().tolist()
        return w, nu

    def bounds(self) -> Curvature:
        """mu = 1 and L = 1 + 2 w / nu, attained at t = 0."""
        w, nu = self._scales()
        return Curvature(Bound.exact(1.0), Bound.exact(1 + 2 * w / nu))

    def at(self, y: Tensor, x: Tensor | None = None) -> TwoPixelAt:
        """The potentials x -> h(x; theta, y), one per row of y (b, 2); the argument ``x`` is not
        needed.
        """
        check_images(y, "y")
        if y.dim() != 2 or y.shape[1] != 2:
            raise InputError("y", given=f"shape {tuple(y.shape)}", expected="shape (b, 2)")
        return TwoPixelAt(self, y, self.bounds())

    def start(self, y: Tensor) -> Tensor:
        """y itself."""
        return y

    def directional(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """<grad_x h, v> per image (b,), differentiable in theta."""
        w, nu = self.theta.exp()
        return dot(x - y, v) + w * slope(step(x) / nu) * step(v)

    def data_adjoint(self, x: Tensor, y: Tensor, q: Tensor) -> Tensor:
        """-(d/dy grad_x h)^T q = q."""
        return q

    def _reach(self, x: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        """|u| and how far u can move in the ball: |dt| <= sqrt(2) radius."""
        nu = self._scales()[1]
        return (step(x.double()) / nu).abs(), math.sqrt(2.0) * radius / nu

    def hessian_change(self, x: Tensor, q: Tensor, radius: Tensor) -> Tensor:
        """sqrt(2) (w / nu) |q_2 - q_1| sup |s''(u') - s''(u)|, exact: s'' falls with |u|."""
        (w, nu), (u, reach) = self._scales(), self._reach(x, radius)
        here, near, far = (curvature(a) for a in (u, (u - reach).clamp_min(0), u + reach))
        return (
            math.sqrt(2.0)
            * w
            / nu
            * step(q.double()).abs()
            * torch.maximum(near - here, here - far)
        )

    def mixed_change(self, x: Tensor, q: Tensor, radius: Tensor) -> Tensor:
        """w |q_2 - q_1| || (sup |s'(u') - s'(u)|, reach) ||; s' rises, so its change is largest at
        an end.
        """
        (w, _), (u, reach) = self._scales(), self._reach(x, radius)
        change = torch.maximum(slope(u + reach) - slope(u), slope(u) - slope(u - reach))
        return w * step(q.double()).abs() * torch.hypot(change, reach)

    def mixed_norm(self, x: Tensor, radius: Tensor) -> Tensor:
        """sqrt(2) w || (s'(|u| + reach), |k(u)| + reach) ||."""
        (w, _), (u, reach) = self._scales(), self._reach(x, radius)
        return math.sqrt(2.0) * w * torch.hypot(slope(u + reach), u * curvature(u) + reach)

    def hessian_lipschitz(self) -> Bound:
        """2 sqrt(2) (w / nu^2) max |s'''|."""
        w, nu = self._scales()
        return Bound.proven(2 * math.sqrt(2.0) * w / nu**2 * THIRD_MAX)

    def mixed_lipschitz(self, reach: float = 1.0) -> Bound:
        """2 sqrt(2) w / nu: both columns change at most at the rate 2 w / nu, attained at t = 0."""
        w, nu = self._scales()
        return Bound.proven(2 * math.sqrt(2.0) * w / nu)

    def describe(self) -> str:
        """One line for records."""
        return "smoothed TV of two pixels"


class _TwoPixelHessian:
    """I + c D^T D with D = (-1, 1) and one c per image (b,)."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, v: Tensor) -> Tensor:
        return v + spread(self.weight * step(v))

    def select(self, index: Tensor) -> _TwoPixelHessian:
        return _TwoPixelHessian(self.weight[index])


class TwoPixelAt:
    """TwoPixelTV tied to its data: a batch of potentials (see ``core.protocols.Potential``)."""

    def __init__(self, energy: TwoPixelTV, y: Tensor, curvature: Curvature) -> None:
        self.energy, self.y, self._curvature = energy, y, curvature
        self.w, self.nu = energy.theta.detach().exp()

    def value(self, x: Tensor) -> Tensor:
        square = (step(x) / self.nu).square()
        return 0.5 * dot(x - self.y, x - self.y) + self.w * self.nu * square / (
            1 + torch.sqrt(1 + square)
        )

    def grad(self, x: Tensor) -> Tensor:
        return x - self.y + spread(self.w * slope(step(x) / self.nu))

    def linearize(self, x: Tensor) -> _TwoPixelHessian:
        return _TwoPixelHessian(self.w / self.nu * curvature(step(x) / self.nu))

    def bounds(self) -> Curvature:
        return self._curvature

    def select(self, index: Tensor) -> TwoPixelAt:
        return TwoPixelAt(self.energy, self.y[index], self._curvature)

    def double(self) -> TwoPixelAt:
        return TwoPixelAt(self.energy.widened(), self.y.double(), self._curvature)


class ScalarTVProblem(VectorProblem):
    """TwoPixelTV under the squared error; x(theta) by bisection in float64."""

    def _root(self, theta: Tensor, y: Tensor) -> Tensor:
        """t with t - a + 2 w s'(t / nu) = 0, a = y_2 - y_1: between 0 and a, where the left side
        changes sign.
        """
        w, nu = theta.exp()
        a = step(y)
        low, high = a.clamp_max(0), a.clamp_min(0)
        for _ in range(200):
            middle = 0.5 * (low + high)
            above = middle - a + 2 * w * slope(middle / nu) > 0
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return 0.5 * (low + high)

    def exact_solution(self, theta: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """The mean of y, plus and minus half the root."""
        y = (self.pairs.y if y is None else y).double()
        return y.mean(dim=1, keepdim=True) + 0.5 * spread(self._root(self._at(theta), y))

    def exact_hypergradient(self, theta: Tensor | None = None) -> Tensor:
        """By dt/dlog w = -2 w s' / F' and dt/dlog nu = 2 w k / F' with F' = 1 + 2 (w / nu) s''."""
        theta = self._at(theta)
        w, nu = theta.exp()
        u = self._root(theta, self.pairs.y.double()) / nu
        rates = (
            2
            * w
            * torch.stack([-slope(u), u * curvature(u)], dim=1)
            / (1 + 2 * w / nu * curvature(u))[:, None]
        )
        outer = self.loss.grad(self.exact_solution(theta), self.pairs.x.double())
        return (0.5 * step(outer)[:, None] * rates).mean(dim=0)


def scalar_tv(
    images: int = 6, weight: float = 0.1, smoothing: float = 0.05, seed: int = 0
) -> ScalarTVProblem:
    """Smoothed TV denoising of images of two pixels with noise 0.1; the first is constant, where
    curvature is largest.

    Args:
        images: how many.
        weight, smoothing: exp(theta) to start from.
        seed: of the images and the noise.

    Raises:
        InputError: a number of images that is not a positive integer, a weight or smoothing that is
            not positive.
    """
    positive_integer("images", images)
    at_least("weight", weight, 0, strictly=True)
    at_least("smoothing", smoothing, 0, strictly=True)
    g = torch.Generator().manual_seed(seed)
    x_true = torch.rand(images, 2, generator=g, dtype=torch.float64)
    noise = 0.1 * normal(g, images, 2)
    x_true[0], noise[0, 1] = 0.5, noise[0, 0]
    energy = TwoPixelTV(torch.tensor([math.log(weight), math.log(smoothing)], dtype=torch.float64))
    return ScalarTVProblem(energy, x_true, x_true + noise)


def step(x: Tensor) -> Tensor:
    """D x = x_2 - x_1: (b, 2) -> (b,)."""
    return x[:, 1] - x[:, 0]


def spread(t: Tensor) -> Tensor:
    """D^T t: (b,) -> (b, 2)."""
    return torch.stack([-t, t], dim=1)


def slope(u: Tensor) -> Tensor:
    """s'(u)."""
    return u * torch.rsqrt(1 + u * u)


def curvature(u: Tensor) -> Tensor:
    """s''(u)."""
    return (1 + u * u).pow(-1.5)
