"""Quadratic energies with known spectrum: solution, loss, hypergradient and optimum in closed
form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.batch import check_images, dot, norm
from ...core.bounds import Bound, Curvature
from ...core.errors import InputError
from .vectors import VectorEnergy, VectorProblem, at_least, normal, positive_integer


class QuadraticEnergy(VectorEnergy):
    """h(x; theta) = 1/2 x^T Q x - x^T (B theta + c), one (Q, B, c) per image.

    The measurement of an image is its own (Q, B, c), flattened: y = (Q row-major, B row-major, c),
    of shape (b, n (n + d + 1)). So any part of a batch is a problem of its own, as it is for
    pictures.

    Args:
        theta: (d,), the start.
        size: n.
        mu, L: the extreme eigenvalues of every Q.
        mixed: the largest ||B||.
    """

    def __init__(self, theta: Tensor, size: int, mu: float, L: float, mixed: float) -> None:
        super().__init__(theta)
        self.size, self.mu, self.L, self.mixed = size, mu, L, mixed

    def unpack(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Q (b, n, n), B (b, n, d), c (b, n).

        Raises:
            InputError: y has another shape.
        """
        n, d = self.size, self.theta.numel()
        if y.dim() != 2 or y.shape[1] != n * (n + d + 1):
            raise InputError(
                "y",
                given=f"shape {tuple(y.shape)}",
                expected=f"shape (b, {n * (n + d + 1)})",
                remedy="Pass measurements of this problem, as problem.pairs.y.",
            )
        q, b, c = y.split([n * n, n * d, n], dim=1)
        return q.unflatten(1, (n, n)), b.unflatten(1, (n, d)), c

    def bounds(self, dtype: torch.dtype = torch.float64) -> Curvature:
        """mu and L: exact in float64; rounding Q to ``dtype`` moves eigenvalues by at most eps / 2
        ||Q||_F.
        """
        if dtype == torch.float64:
            return Curvature(Bound.exact(self.mu), Bound.exact(self.L))
        slack = 0.5 * torch.finfo(dtype).eps * math.sqrt(self.size) * self.L
        return Curvature(Bound.proven(max(self.mu - slack, 0.0)), Bound.proven(self.L + slack))

    def at(self, y: Tensor, x: Tensor | None = None) -> QuadraticAt:
        """The potentials x -> h(x; theta), one per row of y; the argument ``x`` is not needed."""
        check_images(y, "y")
        return QuadraticAt(self, y, self.bounds(y.dtype))

    def start(self, y: Tensor) -> Tensor:
        """Zero."""
        return y.new_zeros(y.shape[0], self.size)

    def directional(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """<grad_x h, v> per image (b,), differentiable in theta."""
        q, b, c = self.unpack(y)
        return dot(torch.einsum("bij,bj->bi", q, x) - b @ self.theta - c, v)

    def data_adjoint(self, x: Tensor, y: Tensor, q: Tensor) -> Tensor:
        """-(d/dy grad_x h)^T q for grad_x h = Q x - B theta - c, shape of y."""
        outer = q[:, :, None]
        return torch.cat(
            [-(outer * x[:, None, :]).flatten(1), (outer * self.theta.detach()).flatten(1), q],
            dim=1,
        )

    def hessian_change(self, x: Tensor, q: Tensor, radius: Tensor) -> Tensor:
        """0: the Hessian is constant."""
        return torch.zeros_like(radius)

    def mixed_change(self, x: Tensor, q: Tensor, radius: Tensor) -> Tensor:
        """0: the mixed derivative is -B everywhere."""
        return torch.zeros_like(radius)

    def mixed_norm(self, x: Tensor, radius: Tensor) -> Tensor:
        """max ||B||, with room for the rounding of B when x is not float64."""
        slack = (
            0.0
            if x.dtype == torch.float64
            else torch.finfo(x.dtype).eps * math.sqrt(self.theta.numel())
        )
        return torch.full_like(radius, self.mixed * (1 + slack))

    def hessian_lipschitz(self) -> Bound:
        """0."""
        return Bound.exact(0.0)

    def mixed_lipschitz(self, reach: float = 1.0) -> Bound:
        """0."""
        return Bound.exact(0.0)

    def describe(self) -> str:
        """One line for records."""
        return f"quadratic with eigenvalues in [{self.mu:.4g}, {self.L:.4g}]"


class _Matrices:
    """A constant Hessian (b, n, n)."""

    def __init__(self, q: Tensor) -> None:
        self.q = q

    def __call__(self, v: Tensor) -> Tensor:
        return torch.einsum("bij,bj->bi", self.q, v)

    def select(self, index: Tensor) -> _Matrices:
        return _Matrices(self.q[index])


class QuadraticAt:
    """A QuadraticEnergy tied to its data: a batch of potentials (see
    ``core.protocols.Potential``).
    """

    def __init__(self, energy: QuadraticEnergy, y: Tensor, curvature: Curvature) -> None:
        self.energy, self.y, self._curvature = energy, y, curvature
        q, b, c = energy.unpack(y)
        self.hessian, self.linear = _Matrices(q), b @ energy.theta.detach() + c

    def value(self, x: Tensor) -> Tensor:
        return dot(x, 0.5 * self.hessian(x) - self.linear)

    def grad(self, x: Tensor) -> Tensor:
        return self.hessian(x) - self.linear

    def linearize(self, x: Tensor) -> _Matrices:
        return self.hessian

    def bounds(self) -> Curvature:
        return self._curvature

    def select(self, index: Tensor) -> QuadraticAt:
        return QuadraticAt(self.energy, self.y[index], self._curvature)

    def double(self) -> QuadraticAt:
        return QuadraticAt(self.energy.widened(), self.y.double(), self._curvature)


@dataclass(eq=False)
class OperatorSquaredError:
    """g(x) = 1/2 ||A (x - x_true) - e||^2, that is 1/2 ||A x - b||^2 with b = A x_true + e.

    Args:
        matrix: A, (m, n).
        offset: e, (m,), what A cannot explain.
        smoothness: ||A||^2, the Lipschitz constant of the gradient.
    """

    matrix: Tensor
    offset: Tensor
    smoothness: float

    def _residual(self, x: Tensor, x_true: Tensor) -> Tensor:
        return (x - x_true) @ self.matrix.to(x).T - self.offset.to(x)

    def value(self, x: Tensor, x_true: Tensor) -> Tensor:
        """(b, n), (b, n) -> (b,)."""
        residual = self._residual(x, x_true)
        return 0.5 * dot(residual, residual)

    def grad(self, x: Tensor, x_true: Tensor) -> Tensor:
        """A^T (A (x - x_true) - e)."""
        return self._residual(x, x_true) @ self.matrix.to(x)

    def bracket(self, x: Tensor, x_true: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Range of g over the ball of radius eps (b,) around x: lower (b,), upper (b,), in float64.

        g(x) +- ||grad g(x)|| eps, above plus ||A||^2 eps^2 / 2; below, convexity needs no quadratic
        term, and g >= 0.
        """
        x, x_true = x.double(), x_true.double()
        value, first = self.value(x, x_true), norm(self.grad(x, x_true)) * eps
        return (value - first).clamp_min(0), value + first + 0.5 * self.smoothness * eps**2


class QuadraticProblem(VectorProblem):
    """Quadratic lower and upper levels.

    x(theta) = M theta + m with M = Q^-1 B and m = Q^-1 c, so f(theta) = mean_i g_i(M_i theta + m_i)
    is quadratic too.
    """

    def _map(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """M (b, n, d) and m (b, n) in float64, by dense solves."""
        q, b, c = self.energy.unpack(y.double())
        solved = torch.linalg.solve(q, torch.cat([b, c[:, :, None]], dim=2))
        return solved[..., :-1], solved[..., -1]

    def exact_solution(self, theta: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """M theta + m."""
        m, offset = self._map(self.pairs.y if y is None else y)
        return m @ self._at(theta) + offset

    def exact_hypergradient(self, theta: Tensor | None = None) -> Tensor:
        """mean_i M_i^T grad g_i(x_i(theta))."""
        m, offset = self._map(self.pairs.y)
        outer = self.loss.grad(m @ self._at(theta) + offset, self.pairs.x.double())
        return torch.einsum("bnd,bn->d", m, outer) / self.size

    def exact_optimum(self) -> Tensor:
        """theta*: (d,) float64, the zero of grad f, an affine map (its columns: differences at unit
        vectors).
        """
        d = self.theta.numel()
        start = self.exact_hypergradient(torch.zeros(d, dtype=torch.float64))
        columns = [
            self.exact_hypergradient(unit) - start for unit in torch.eye(d, dtype=torch.float64)
        ]
        return torch.linalg.solve(torch.stack(columns, dim=1), -start)


def quadratic(
    images: int = 4, n: int = 8, d: int = 3, condition: float = 100.0, seed: int = 0
) -> QuadraticProblem:
    """h_i(x; theta) = 1/2 x^T Q_i x - x^T (B_i theta + c_i) under the squared error to noisy images
    of a hidden theta.

    Every Q_i has eigenvalues spread geometrically over [1, condition] in a basis of its own; every
    ||B_i|| = 2.

    Args:
        images: how many.
        n: length of x.
        d: length of theta.
        condition: L / mu, at least 1.
        seed: of everything random.

    Raises:
        InputError: a size that is not a positive integer, or a condition below 1.
    """
    for name, value in (("images", images), ("n", n), ("d", d)):
        positive_integer(name, value)
    at_least("condition", condition, 1)
    g = torch.Generator().manual_seed(seed)
    eigenvalues, k = _geometric(condition, n), min(n, d)
    basis = _orthonormal(g, images, n, n)
    q = (basis * eigenvalues) @ basis.mT
    q = 0.5 * (q + q.mT)
    b = (_orthonormal(g, images, n, k) * _one_to_two(k)) @ _orthonormal(g, images, d, k).mT
    c, hidden = normal(g, images, n), normal(g, d)
    x_true = torch.linalg.solve(q, b @ hidden + c) + 0.1 * normal(g, images, n)
    energy = QuadraticEnergy(
        torch.ones(d, dtype=torch.float64), n, 1.0, float(eigenvalues.max()), 2.0
    )
    return QuadraticProblem(energy, x_true, torch.cat([q.flatten(1), b.flatten(1), c], dim=1))


def spectrum_quadratic(
    condition: float, n: int = 80, d: int = 4, seed: int = 0
) -> QuadraticProblem:
    """min 1/2 ||A1 x - b1||^2 over theta, x = argmin 1/2 ||A2 x + A3 theta - b2||^2, all A in R^{n
    x d}.

    Singular values are spread over [1, 2] for A1 and A3 and over [1, sqrt(condition)] for A2, so mu
    = 1 and L = condition; b1 and b2 come from hidden x and theta with noise 0.01. The quadratic
    experiment of Salehi et al., arXiv 2308.10098, Section 4.1, with a controlled spectrum.

    Args:
        condition: L / mu of the lower level, at least 1.
        n: rows of the matrices, at least d.
        d: length of x and of theta.
        seed: of everything random.

    Raises:
        InputError: sizes that are not positive integers with n >= d, or a condition below 1.
    """
    for name, value in (("n", n), ("d", d)):
        positive_integer(name, value)
    if n < d:
        raise InputError(
            "n", given=n, expected=f"at least d = {d}", remedy="A2 needs full column rank."
        )
    at_least("condition", condition, 1)
    g = torch.Generator().manual_seed(seed)

    def matrix(singular_values: Tensor) -> Tensor:
        return (_orthonormal(g, 1, n, d)[0] * singular_values) @ _orthonormal(g, 1, d, d)[0].mT

    a1, a3, spread = (
        matrix(_one_to_two(d)),
        matrix(_one_to_two(d)),
        _geometric(math.sqrt(condition), d),
    )
    a2 = matrix(spread)
    x1, x2, hidden = (torch.rand(d, generator=g, dtype=torch.float64) for _ in range(3))
    b2 = a2 @ x2 + a3 @ hidden + 0.01 * normal(g, n)
    q, b, c = a2.mT @ a2, -a2.mT @ a3, a2.mT @ b2
    energy = QuadraticEnergy(
        torch.ones(d, dtype=torch.float64),
        d,
        1.0,
        float(spread.max()) ** 2,
        float(torch.linalg.matrix_norm(b, 2)),
    )
    loss = OperatorSquaredError(a1, 0.01 * normal(g, n), 4.0)
    return QuadraticProblem(energy, x1[None], torch.cat([q.flatten(), b.flatten(), c])[None], loss)


def _orthonormal(g: torch.Generator, batch: int, rows: int, columns: int) -> Tensor:
    """Random matrices (batch, rows, columns) with orthonormal columns; columns <= rows."""
    return torch.linalg.qr(normal(g, batch, rows, columns)).Q


def _one_to_two(count: int) -> Tensor:
    """Evenly spaced over [1, 2]; a single value is 2."""
    return torch.linspace(2, 1, count, dtype=torch.float64)


def _geometric(ratio: float, count: int) -> Tensor:
    """From 1 to ``ratio``, evenly spaced in the logarithm; a single value is 1."""
    return torch.linspace(0, math.log(ratio), count, dtype=torch.float64).exp()
