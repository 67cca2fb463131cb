"""Unrolled hypergradients: the derivative of a fixed number of lower-level iterations, by reverse
mode on checkpoints.

Recursion, k = 0, ..., K - 1, with x_{-1} = x_0:
    z_k = x_k + beta (x_k - x_{k-1}),   x_{k+1} = z_k - tau grad h(z_k; theta).
Backwards, with l_k the derivative of the loss with respect to x_k, l_K = grad g(x_K):
    m_k = l_{k+1} - tau H(z_k) l_{k+1},   l_k = (1 + beta) m_k - beta m_{k+1}   (m_K = 0),
    dg/dtheta = -tau sum_k J(z_k)^T l_{k+1}.
Reverse mode through an optimizer: Domke, AISTATS 2012; Maclaurin, Duvenaud, Adams, ICML 2015, arXiv
1502.03492. Checkpoints: Griewank, Optimization Methods and Software 1, 1992 (here the plain
two-level schedule).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..core.batch import expand, norm
from ..core.bounds import constants_of
from ..core.certificates import distance_from_gradient
from ..core.cost import Cost
from ..core.errors import MissingPropertyError
from ..core.protocols import Potential
from ..core.ranges import check_choice, check_number, check_positive, tidy
from ..core.results import Hypergradient, Solution
from ..core.status import Status
from ..solvers.iterate import require_strong_convexity, rounding_of
from .implicit import mixed_product, refuse_saddle


@dataclass(frozen=True)
class Unrolled:
    """The derivative of ``steps`` iterations of a lower-level method, from the data or from a
    solution.

    - ``start="data"``: x_0 = A^T y. The lower level *is* the map of K steps: the reconstruction is
      x_K, whatever eps asks for, and z is the gradient of the mean loss of x_K. This is the
      baseline of learning by unrolling. Learners that certify a decrease or adapt their accuracy
      refuse it (``fixed`` is True). What was trained is the reconstruction by K steps,
      ``reconstruct(energy.at(y), energy.start(y))``; a solve to eps is another one.
    - ``start="solution"``: x_0 = x~, held constant: truncated unrolling through the last K
      iterations (Shaban, Cheng, Hatch, Boots, AISTATS 2019, arXiv 1810.10667), for every learner.
      The reconstruction is the certified x~; z tends to the implicit hypergradient as K grows.

    The steps are those of Nesterov's method with constant momentum, tau = 1 / L and beta = (1 -
    sqrt(mu tau)) / (1 + sqrt(mu tau)) (``agd``; Nesterov, Lectures on Convex Optimization, scheme
    2.2.22), or gradient steps with tau = 2 / (L + mu) and beta = 0 (``gd``). tau and beta are held
    constant in the differentiation, although L and mu may depend on theta: z is the derivative at
    frozen step sizes. With ``step`` given it is the exact derivative of the loss of K steps (for
    ``agd`` as long as mu does not depend on theta). Learners that search along lines want it with
    ``start="data"``: after few steps the frozen derivative is not the slope of the loss that they
    see.

    Nothing is differentiated by autograd but grad h in theta. Only the iterates at the starts of
    segments are kept, and those inside a segment are computed again when their turn comes: about 3
    sqrt(K) images per image of the batch (2 sqrt(K) for ``gd``) instead of K, for less than K
    further gradients.

    The error is neither estimated nor bounded. With ``start="solution"`` the descent test of MAID
    and of its fixed-accuracy baseline is therefore void: a direction that happens to be wrong is
    noticed by the line search only. The decrease of every accepted step is certified as ever,
    because it rests on the bracket of the loss.

    Args:
        steps: K, at least 1.
        start: see above.
        method: ``agd`` or ``gd``.
        step: tau in the place of the one above; steps that are too long diverge, which the status
            shows.
        segment: steps between two iterates that are kept; ceil(sqrt(K)) when None. It changes cost
            and memory only.
        group: images differentiated at a time in the reverse-mode calls.

    Raises:
        InputError: a value out of range.
    """

    steps: int = 20
    start: Literal["data", "solution"] = "data"
    method: Literal["gd", "agd"] = "agd"
    step: float | None = None
    segment: int | None = None
    group: int = 4

    def __post_init__(self) -> None:
        tidy(self)
        for name in ("steps", "group"):
            check_number(
                name, getattr(self, name), lambda v: v >= 1, "an integer >= 1", integer=True
            )
        check_number(
            "segment",
            self.segment,
            lambda v: v >= 1,
            "an integer >= 1 or None",
            integer=True,
            optional=True,
        )
        check_positive("step", self.step, optional=True)
        check_choice("start", self.start, ("data", "solution"))
        check_choice("method", self.method, ("gd", "agd"))

    @property
    def fixed(self) -> bool:
        """Whether the reconstruction is x_K as well, so that no accuracy can be asked for."""
        return self.start == "data"

    @torch.no_grad()
    def reconstruct(self, potential: Potential, x0: Tensor) -> Solution:
        """x_K, and how far it is from the minimizer.

        Args:
            potential: h(.; theta, y), one per image.
            x0: (b, ...), the start: A^T y for the map that ``gradient`` differentiates.

        Returns:
            Solution with ``value`` x_K (b, ...) and its certified distance ``error`` (b,). The
            status is CONVERGED for every finite image, since steps are all that was asked for, else
            NOT_FINITE (with the start as value).

        Raises:
            MissingPropertyError: the lower level is a saddle point, or not strongly convex, or L is
                unknown.
        """
        refuse_saddle(getattr(potential, "energy", None), "Unrolled")
        recursion = self._recursion(potential)
        at = _At(x0, x0)
        for _ in range(self.steps):
            at = recursion.advance(at)
        closing = recursion.close(at.x)
        finite = torch.isfinite(norm(closing))
        size = torch.where(finite, norm(closing), torch.inf)
        keep, mu = expand(finite, x0), potential.bounds().mu
        return Solution(
            torch.where(keep, at.x, x0),
            self._distance(potential, at.x, size),
            mu.kind,
            _statuses(finite),
            torch.full_like(finite, self.steps, dtype=torch.int64),
            recursion.cost,
            f"unrolled {self.method}, {self.steps} steps",
            size,
            torch.where(keep, closing, 0.0).to(x0.dtype),
        )

    @torch.no_grad()
    def gradient(
        self,
        problem: Any,
        energy: Any,
        solution: Solution,
        delta: float,
        adjoint: Tensor | None = None,
    ) -> Hypergradient:
        """The derivative of mean_i g(x_K,i) at the theta of ``energy``.

        ``start="data"`` repeats the forward pass although ``solution`` usually is x_K: the iterates
        on the way are needed, and those of the last segment serve the backward pass at once.

        Args:
            problem: offers ``pairs.x``, ``pairs.y`` and ``loss``.
            energy: the lower level at the theta in question.
            solution: x~ (b, ...) with ``error`` (b,), the start of ``start="solution"``;
                ``start="data"`` ignores it.
            delta, adjoint: not used, there is no linear system.

        Returns:
            Hypergradient; ``loss`` and ``bracket`` are those of x_K for ``start="data"`` and of x~
            else, ``adjoint`` is tau sum_k l_{k+1}, which tends to H^-1 grad g, and ``residual`` is
            NaN.

        Raises:
            MissingPropertyError: the lower level is not strongly convex, or L is unknown.
        """
        y, x_true, loss = problem.pairs.y, problem.pairs.x, problem.loss
        x0 = energy.start(y) if self.fixed else solution.value.detach()
        refuse_saddle(energy, "Unrolled")
        potential = energy.at(y, x0)
        recursion, mu = self._recursion(potential), potential.bounds().mu
        end, points = self._forward(recursion, x0)
        z, q = self._backward(recursion, energy, y, points, loss.grad(end, x_true))
        x, error = solution.value, solution.error
        if self.fixed:
            x, error = end, self._distance(potential, end, norm(recursion.close(end)))
        lower, upper = loss.bracket(x, x_true, error)
        return Hypergradient(
            z,
            float(loss.value(x.double(), x_true.double()).mean()),
            (float(lower.mean()), float(upper.mean())),
            mu.kind,
            None,
            None,
            None,
            q,
            torch.full_like(error, torch.nan),
            _statuses(torch.isfinite(norm(q))),
            recursion.cost,
        )

    @staticmethod
    def _distance(potential: Potential, x: Tensor, size: Tensor) -> Tensor:
        """The certified distance (b,) of x from the norm of its closing gradient in float64."""
        wide = potential.double()
        allowed = size + rounding_of(wide, x.double())
        distance = distance_from_gradient(allowed, constants_of(potential).mu)
        return distance.nan_to_num(nan=torch.inf, posinf=torch.inf)

    def _recursion(self, potential: Potential) -> _Recursion:
        require_strong_convexity(potential)
        curvature = potential.bounds()
        mu, L = curvature.mu.value, curvature.L.value
        if self.method == "gd":
            return _Recursion(potential, self.step or 2 / (L + mu), 0.0)
        tau = self.step or 1 / L
        root = math.sqrt(min(mu * tau, 1.0))  # a step beyond 1 / mu leaves nothing to accelerate
        return _Recursion(potential, tau, (1 - root) / (1 + root))

    def _forward(self, recursion: _Recursion, x0: Tensor) -> tuple[Tensor, Iterator[Tensor]]:
        """x_K, and z_{K-1}, ..., z_0 with all but the last segment yet to be computed again."""
        length = self.segment or math.ceil(math.sqrt(self.steps))
        at, kept = _At(x0, x0), []
        whole, rest = divmod(
            self.steps - 1, length
        )  # at least one step remains for the last segment
        for _ in range(whole):
            kept.append(at)
            for _ in range(length):
                at = recursion.advance(at)
        last = recursion.points(at, rest + 1)
        return recursion.step(last[-1]), _backwards(recursion, kept, length, last)

    def _backward(
        self, recursion: _Recursion, energy: Any, y: Tensor, points: Iterator[Tensor], slope: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The mean derivative (d,) and tau sum_k l_{k+1} (b, ...) from ``slope`` = grad g(x_K)."""
        tau, beta, size = recursion.tau, recursion.beta, slope.shape[0]
        to_theta: Tensor | None = None
        total, later = torch.zeros_like(slope), torch.zeros_like(slope)
        for k, z in zip(reversed(range(self.steps)), points, strict=True):
            mixed = mixed_product(energy, z, y, slope, self.group)
            recursion.cost += Cost(mixed_products=size)
            to_theta = mixed if to_theta is None else to_theta + mixed
            total = total + slope
            if k == 0:  # x_0 does not depend on theta
                break
            back = slope - tau * recursion.curved(z, slope)
            slope, later = (1 + beta) * back - beta * later, back
        assert to_theta is not None
        return -tau / size * to_theta, tau * total


class _At(NamedTuple):
    """x_k and x_{k-1}."""

    x: Tensor
    before: Tensor


class _Recursion:
    """The steps of the method, each counted."""

    def __init__(self, potential: Potential, tau: float, beta: float) -> None:
        self.potential, self.tau, self.beta = potential, tau, beta
        self.cost = Cost()

    def step(self, z: Tensor) -> Tensor:
        """x_{k+1} from z_k."""
        self.cost += Cost(gradients=z.shape[0])
        return z - self.tau * self.potential.grad(z)

    def ahead(self, at: _At) -> Tensor:
        """z_k."""
        return at.x + self.beta * (at.x - at.before) if self.beta else at.x

    def advance(self, at: _At, z: Tensor | None = None) -> _At:
        """x_{k+1} and x_k; ``z`` is z_k if that is known."""
        x = self.step(self.ahead(at) if z is None else z)
        return _At(
            x, at.x if self.beta else x
        )  # without momentum nobody asks for x_k, so it need not be kept

    def points(self, at: _At, count: int) -> list[Tensor]:
        """z_k, ..., z_{k + count - 1} from x_k and x_{k-1}; the step after the last is not made."""
        points = [self.ahead(at)]
        while len(points) < count:
            at = self.advance(at, points[-1])
            points.append(self.ahead(at))
        return points

    def curved(self, z: Tensor, v: Tensor) -> Tensor:
        """H(z) v."""
        self.cost += Cost(linearizations=z.shape[0], hessian_products=z.shape[0])
        return self.potential.linearize(z)(v)

    def close(self, x: Tensor) -> Tensor:
        """grad h(x) in float64, which certifies the distance of x."""
        self.cost += Cost(gradients=x.shape[0])
        return self.potential.double().grad(x.double())


def _backwards(
    recursion: _Recursion, kept: list[_At], length: int, points: list[Tensor]
) -> Iterator[Tensor]:
    """z_{K-1}, ..., z_0: first ``points``, those of the last segment, then segment by segment what
    was not kept.

    Both lists are emptied on the way, so that nothing is held for longer than it is needed.
    """
    while True:
        while points:
            yield points.pop()
        if not kept:
            return
        points = recursion.points(kept.pop(), length)


def _statuses(finite: Tensor) -> tuple[Status, ...]:
    """(b,) -> one Status per image: steps are all that was asked for, so a finite image has what it
    should.
    """
    return tuple(Status.CONVERGED if f else Status.NOT_FINITE for f in finite.tolist())


def refuse_fixed(learner_name: str, strategy: Any) -> None:
    """Refuse a strategy whose lower level is a fixed number of steps; for learners that rely on its
    accuracy.

    Raises:
        MissingPropertyError: ``strategy.fixed`` is True.
    """
    if getattr(strategy, "fixed", False):
        raise MissingPropertyError(
            "hypergradient",
            given=repr(strategy),
            expected=f"a strategy whose lower level is solved as accurately as {learner_name} "
            "asks for",
            remedy="Use start='solution', or a learner that needs no accuracy, such as a "
            "stochastic one.",
        )
