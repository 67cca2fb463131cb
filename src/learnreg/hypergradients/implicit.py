"""Implicit hypergradients: z = -J^T q with H q = grad g, the linear system solved inexactly on
purpose; on the free pixels only where the energy bounds its images (``free``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from ..core.asking import offers
from ..core.batch import norm
from ..core.bounds import constants_of
from ..core.constraints import domain_of, masked
from ..core.cost import Cost
from ..core.errors import MissingPropertyError
from ..core.grants import STEADY, Grants
from ..core.maps import Ask, Level, Mixed, Posed, Pullback, Upper, View
from ..core.measured import Measured
from ..core.objective import ErrorWord
from ..core.params import trainable
from ..core.protocols import Hessian, Potential
from ..core.ranges import check_flag, check_integer, check_object, tidy
from ..core.results import Solution
from ..linear.cg import CG
from ..linear.free import on_free, preconditioner_on_free
from ..linear.precondition import Preconditioner
from ..solvers.select import adjoint_preconditioner
from . import error_bound
from .free import free_pixels
from .posed import ToAccuracy


@dataclass(frozen=True)
class Implicit(ToAccuracy):
    """Hypergradient by the implicit function theorem and conjugate gradients.

    Args:
        linear: the linear solver.
        estimate: recompute z at a Newton-polished point; the change estimates the error, and the
            polished z is returned (costs about 2 ``polish_steps`` Hessian products, one gradient
            and one mixed product per image).
        certify: also compute the proven bound (a few feature-map passes in float64; not an
            evaluation of the energy).
        polish_steps: CG steps of each of the two truncated solves of the estimate.
        group: images differentiated at a time in the reverse-mode call.

    Raises:
        InputError: a value out of range.
    """

    linear: CG = CG()
    estimate: bool = False
    certify: bool = True
    polish_steps: int = 6
    group: int = 4

    def __post_init__(self) -> None:
        tidy(self)
        check_object("linear", self.linear, ("__call__",), "a linear solver", "For example CG().")
        check_flag("estimate", self.estimate)
        check_flag("certify", self.certify)
        check_integer("polish_steps", self.polish_steps, 1)
        check_integer("group", self.group, 1)

    @property
    def view(self) -> View:
        """Differentiable lower levels."""
        return "smooth"

    @property
    def grants(self) -> Grants:
        """Everything: solved to an accuracy, with an error that can be estimated and bounded."""
        return Grants.GRADIENT | Grants.ADAPTIVE | Grants.ESTIMATE | Grants.BOUND | STEADY

    def pull(self, posed: Posed, solution: Solution, upper: Upper, ask: Ask) -> Pullback:
        """See ``core.maps.SolutionMap``.

        Raises:
            MissingPropertyError: the lower level is a saddle point.
        """
        estimate, certify = self._asked(ask.error)
        level = smooth_level(posed.energy, "Implicit")
        x = solution.value.detach()
        potential = smooth_potential(posed, x)
        free = free_pixels(potential, x, solution.error, sure=ask.error != "none")
        whole = potential.linearize(x)
        hessian, slope = on_free(whole, free.kept), masked(upper.grad(x), free.kept)
        P, spent = adjoint_preconditioner(potential, x)

        warm = None if ask.warm is None else masked(ask.warm, free.kept)
        helper = preconditioner_on_free(P, free.kept)
        system = self.linear(hessian, slope, ask.delta, warm, helper)
        q, size = system.value, x.shape[0]
        theta = -mixed_product(level, x, posed.y, q, self.group)
        cost = spent + free.cost + system.cost + Cost(mixed_products=size, linearizations=size)

        certified = None
        if certify and free.certain:
            certified = error_bound.pullback_error(
                level, potential, x, q, solution.error, system.residual, upper
            )
        correction = point = None
        if estimate:
            first = theta
            at = _Linearized(level, potential, whole, P, posed.y, x)
            theta, q, extra, point = self._polished(at, upper, q, system.residual)
            correction, cost = first - theta, cost + extra
        return Pullback(
            theta,
            q,
            # that of the linear solve asked for; a polished q only improves on it
            system.residual,
            system.status,
            cost,
            certified,
            correction,
            level.data_adjoint(x, posed.y, q) if ask.data else None,
            undecided=free.undecided,
            point=point,
        )

    def _asked(self, error: ErrorWord | None) -> tuple[bool, bool]:
        """Whether to estimate and whether to certify."""
        if error is None:
            return self.estimate, self.certify
        return error == "estimate", error == "certify"

    def _polished(
        self, at: _Linearized, upper: Upper, q: Tensor, residual: Tensor
    ) -> tuple[Tensor, Tensor, Cost, Tensor]:
        """The derivative at P(x - w), w one truncated Newton step on the pixels that no bound
        holds, the q corrected there, its cost, and P(x - w).
        """
        few = replace(self.linear, max_steps=self.polish_steps, restarts=0)
        r, domain = at.potential.grad(at.x), domain_of(at.potential)
        free = domain.movable(at.x, r, constants_of(at.potential).L)
        b, tiny = masked(r, free), torch.finfo(at.x.dtype).tiny
        step = few(
            on_free(at.hessian, free),
            b,
            (0.02 * norm(b)).clamp_min(tiny),
            None,
            preconditioner_on_free(at.preconditioner, free),
        )
        way = -step.value
        way = way if free is None else torch.where(free, way, domain.toward(at.x, r))

        moved = domain.project(at.x + way)
        there, kept = at.potential.linearize(moved), domain.inside(moved)
        tolerance = (0.1 * residual).clamp_min(tiny)
        corrected = few(
            on_free(there, kept),
            masked(upper.grad(moved), kept),
            tolerance,
            masked(q, kept),
            preconditioner_on_free(at.preconditioner, kept),
        )
        size = at.x.shape[0]
        theta = -mixed_product(at.level, moved, at.y, corrected.value, self.group)
        extra = Cost(gradients=size, mixed_products=size, linearizations=size)
        return theta, corrected.value, step.cost + corrected.cost + extra, moved


@dataclass(frozen=True, eq=False)
class _Linearized:
    """A lower level around its computed solution x."""

    level: MixedLevel
    potential: Potential
    hessian: Hessian
    preconditioner: Preconditioner | None
    y: Tensor | Measured
    x: Tensor


class MixedLevel(Level, Mixed, Protocol):
    """A smooth lower level with derivatives in theta and y."""


def smooth_level(energy: Level, who: str) -> MixedLevel:
    """The lower level as one with gradients.

    Raises:
        MissingPropertyError: a SaddleEnergy; names the strategy for it.
    """
    if not offers(energy, Mixed):
        raise MissingPropertyError(
            "hypergradient",
            given=f"{who} for {type(energy).__name__}",
            expected="a differentiable Energy",
            remedy="Use Piggyback(), the strategy for saddle points.",
        )
    return cast(MixedLevel, energy)


def smooth_potential(posed: Posed, x: Tensor) -> Potential:
    """The potentials of a smooth lower level around x."""
    return cast(Potential, posed.at(x))


def mixed_product(
    level: MixedLevel, x: Tensor, y: Tensor | Measured, q: Tensor, group: int = 4
) -> Tensor:
    """sum_i J_i^T q_i as one vector (d,): ONE reverse-mode call for all parameters per group of
    images.
    """
    params = trainable(cast(nn.Module, level))
    if not params:
        return x.new_zeros(0)
    total: list[Tensor] | None = None
    for start in range(0, x.shape[0], group):
        part = slice(start, start + group)
        with torch.enable_grad():
            scalar = level.directional(x[part], y[part], q[part]).sum()
            found = torch.autograd.grad(scalar, params, allow_unused=True)
        grads = [
            torch.zeros_like(p) if g is None else g for g, p in zip(found, params, strict=True)
        ]
        total = grads if total is None else [a + b for a, b in zip(total, grads, strict=True)]
    assert total is not None
    return torch.cat([g.reshape(-1) for g in total])
