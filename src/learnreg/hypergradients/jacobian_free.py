"""Hypergradients from a truncated Neumann series: a fixed number of terms in the place of a linear
solve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.batch import expand, norm
from ..core.bounds import Constants, constants_of
from ..core.cost import Cost
from ..core.ranges import check_flag, check_number, check_positive, tidy
from ..core.results import Hypergradient, Solution
from ..core.status import Status
from ..solvers.iterate import require_strong_convexity
from . import error_bound
from .implicit import mixed_product, refuse_saddle


@dataclass(frozen=True)
class JacobianFree:
    """z = -J^T q with q = tau sum_{j < terms} (I - tau H)^j b, the Neumann series of H^-1 b cut
    off.

    With one term q = tau b, so that z differentiates a single gradient step at x~: Jacobian-free
    backpropagation (Fung, Heaton, Li, McKenzie, Osher, Yin, JFB, AAAI 2022, arXiv 2103.12803). More
    terms differentiate that many steps, all of them at x~: truncated backpropagation (Shaban,
    Cheng, Hatch, Boots, AISTATS 2019, arXiv 1810.10667), and the Neumann series of Lorraine, Vicol,
    Duvenaud (AISTATS 2020, arXiv 1911.02590).

    The residual is H q - b = -(I - tau H)^terms b, at most ((L - mu) / (L + mu))^terms ||b|| for
    the default tau. It is computed, not predicted, and the proven bound of the error of z, which
    holds for any q, is given with it.

    The error is not estimated. The descent test of MAID and of its fixed-accuracy baseline is
    therefore void with this strategy: a direction that happens to be wrong is noticed by the line
    search only. The decrease of every accepted step is certified as ever, because it rests on the
    bracket of the loss.

    Args:
        terms: of the series, at least 1; one Hessian product each.
        step: tau; 2 / (L + mu) when None. The series converges for tau < 2 / L.
        certify: also compute the proven bound (a few feature-map passes in float64; not an
            evaluation of the energy).
        group: images differentiated at a time in the reverse-mode call.

    Raises:
        InputError: a value out of range.
    """

    terms: int = 1
    step: float | None = None
    certify: bool = True
    group: int = 4

    def __post_init__(self) -> None:
        tidy(self)
        check_number("terms", self.terms, lambda v: v >= 1, "an integer >= 1", integer=True)
        check_positive("step", self.step, optional=True)
        check_flag("certify", self.certify)
        check_number("group", self.group, lambda v: v >= 1, "an integer >= 1", integer=True)

    @torch.no_grad()
    def gradient(
        self,
        problem: Any,
        energy: Any,
        solution: Solution,
        delta: float,
        adjoint: Tensor | None = None,
    ) -> Hypergradient:
        """The hypergradient of mean_i g(x_i) at the theta of ``energy``.

        Args:
            problem: offers ``pairs.x``, ``pairs.y`` and ``loss``.
            energy: the lower level at the theta in question.
            solution: its solution x~ (b, ...) with ``error`` (b,).
            delta: changes nothing but the status: an image whose residual exceeds it has
                ``MAX_STEPS``.
            adjoint: not used; the series starts from zero.

        Raises:
            MissingPropertyError: the lower level is not strongly convex, or L is unknown.
        """
        x, y, x_true, loss = solution.value.detach(), problem.pairs.y, problem.pairs.x, problem.loss
        refuse_saddle(energy, "JacobianFree")
        potential = energy.at(y, x)
        require_strong_convexity(potential)
        curvature, size, eps = potential.bounds(), x.shape[0], solution.error
        constants = constants_of(potential)
        b = loss.grad(x, x_true)
        q, residual = self._series(potential.linearize(x), b, self._step(constants, x))
        z = -mixed_product(energy, x, y, q, self.group) / size
        lower, upper = loss.bracket(x, x_true, eps)
        certified = None
        if self.certify and curvature.mu.certified:
            usable = torch.where(torch.isfinite(residual), residual, torch.inf)
            bound = error_bound.certified_error(
                energy, x, q, eps, usable, constants.mu, loss.smoothness
            )
            certified = (
                None
                if bound is None
                else float(torch.where(bound.isnan(), torch.inf, bound).mean())
            )
        cost = Cost(linearizations=size, hessian_products=self.terms * size, mixed_products=size)
        return Hypergradient(
            z,
            float(loss.value(x.double(), x_true.double()).mean()),
            (float(lower.mean()), float(upper.mean())),
            curvature.mu.kind,
            certified,
            None,
            None,
            q,
            residual,
            tuple(_status(r, delta) for r in residual.tolist()),
            cost,
        )

    def _step(self, constants: Constants, like: Tensor) -> Tensor:
        """tau per image, ready to multiply images."""
        tau = 2 / (constants.L + constants.mu) if self.step is None else self.step
        return expand(torch.as_tensor(tau, dtype=like.dtype, device=like.device).reshape(-1), like)

    def _series(self, hessian: Any, b: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        """q and ||b - H q|| (b,) in float64, by q += tau (b - H q): every term shows the true
        residual on its way.
        """
        q, r = torch.zeros_like(b), b
        for _ in range(self.terms):
            q = q + tau * r
            r = b - hessian(q)
        return q, norm(r.double())


def _status(residual: float, delta: float) -> Status:
    """What the residual of an image says about the accuracy asked for."""
    if residual <= delta:
        return Status.CONVERGED
    return Status.MAX_STEPS if residual < float("inf") else Status.NOT_FINITE
