"""Hypergradients from a truncated Neumann series: a fixed number of terms in the place of a linear
solve.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.batch import expand, norm
from ..core.bounds import Constants, constants_of
from ..core.constraints import masked
from ..core.cost import Cost
from ..core.grants import STEADY, Grants
from ..core.maps import Ask, Posed, Pullback, Upper, View
from ..core.protocols import Hessian
from ..core.ranges import check_flag, check_number, check_positive, tidy
from ..core.results import Solution
from ..core.status import Status
from ..linear.free import on_free
from ..solvers.iterate import require_strong_convexity
from . import error_bound
from .free import free_pixels
from .implicit import mixed_product, smooth_level, smooth_potential
from .posed import ToAccuracy


@dataclass(frozen=True)
class JacobianFree(ToAccuracy):
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

    Where the energy bounds its images, H and b are those of the free pixels: the steps that are
    differentiated are projected.

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

    @property
    def view(self) -> View:
        """Differentiable lower levels."""
        return "smooth"

    @property
    def grants(self) -> Grants:
        """Solved to an accuracy; the error is bounded, but by no number that delta makes small."""
        return Grants.GRADIENT | Grants.ADAPTIVE | STEADY

    @torch.no_grad()
    def pull(self, posed: Posed, solution: Solution, upper: Upper, ask: Ask) -> Pullback:
        """See ``core.maps.SolutionMap``.

        ``ask.delta`` changes nothing but the status: an image whose residual exceeds it has
        ``MAX_STEPS``. ``ask.warm`` is not used; the series starts from zero.

        Raises:
            MissingPropertyError: the lower level is not strongly convex, or L is unknown.
        """
        level, x = smooth_level(posed.energy, "JacobianFree"), solution.value.detach()
        potential = smooth_potential(posed, x)
        require_strong_convexity(potential)
        tau, size = self._step(constants_of(potential), x), x.shape[0]

        certify = self.certify and ask.error != "none"
        free = free_pixels(potential, x, solution.error, certify)
        hessian = on_free(potential.linearize(x), free.kept)
        q, residual = self._series(hessian, masked(upper.grad(x), free.kept), tau)
        theta = -mixed_product(level, x, posed.y, q, self.group)
        certified = None
        if certify and free.certain:
            certified = error_bound.pullback_error(
                level, potential, x, q, solution.error, residual, upper
            )
        wanted = torch.as_tensor(ask.delta, device=residual.device).expand_as(residual)
        return Pullback(
            theta,
            q,
            residual,
            tuple(_status(*pair) for pair in zip(residual.tolist(), wanted.tolist(), strict=True)),
            free.cost
            + Cost(linearizations=size, hessian_products=self.terms * size, mixed_products=size),
            certified,
            data=level.data_adjoint(x, posed.y, q) if ask.data else None,
            undecided=free.undecided,
        )

    def _step(self, constants: Constants, like: Tensor) -> Tensor:
        """tau per image, ready to multiply images."""
        tau = 2 / (constants.L + constants.mu) if self.step is None else self.step
        return expand(torch.as_tensor(tau, dtype=like.dtype, device=like.device).reshape(-1), like)

    def _series(self, hessian: Hessian, b: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
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
