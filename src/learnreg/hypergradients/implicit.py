"""Implicit hypergradients: z = -J^T q with H q = grad g, the linear system solved inexactly on
purpose.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.batch import norm
from ..core.bounds import constants_of
from ..core.cost import Cost
from ..core.errors import MissingPropertyError
from ..core.params import trainable
from ..core.ranges import check_flag, check_integer, check_object, tidy
from ..core.results import Hypergradient, Solution
from ..linear.cg import CG
from ..linear.precondition import Preconditioner
from ..solvers.select import adjoint_preconditioner
from . import error_bound


@dataclass(frozen=True)
class Implicit:
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
            solution: its solution x~ with ``error`` (b,).
            delta: residual of the linear system per image, absolute.
            adjoint: (b, ...), warm start for q.

        Raises:
            MissingPropertyError: the lower level is a saddle point.
        """
        refuse_saddle(energy, "Implicit")
        x, y, x_true, loss = solution.value.detach(), problem.pairs.y, problem.pairs.x, problem.loss
        potential = energy.at(y, x)
        curvature, size = potential.bounds(), x.shape[0]
        hessian = potential.linearize(x)
        b = loss.grad(x, x_true)
        P, spent = adjoint_preconditioner(potential, x)
        system = self.linear(hessian, b, delta, adjoint, P)
        q = system.value
        z = -mixed_product(energy, x, y, q, self.group) / size
        cost = spent + system.cost + Cost(mixed_products=size, linearizations=size)
        mu, eps = curvature.mu, solution.error
        moduli = constants_of(potential).mu
        residual = torch.where(torch.isfinite(system.residual), system.residual, torch.inf)
        lower, upper = loss.bracket(x, x_true, eps)
        certified = None
        if self.certify and mu.certified:
            bound = error_bound.certified_error(
                energy, x, q, eps, residual, moduli, loss.smoothness
            )
            certified = None if bound is None else float(bound.mean())
        estimated = correction = None
        if self.estimate:
            polished, q, extra = self._polished(
                energy, potential, hessian, P, x, y, x_true, q, system.residual, loss
            )
            correction, cost = z - polished, cost + extra
            estimated, z = error_bound.estimated_error(correction), polished
            if certified is not None:  # triangle inequality: the bound was for z before the polish
                certified += float(torch.linalg.vector_norm(correction))
        # ``residual`` is that of the linear solve asked for; a polished q only improves on it
        return Hypergradient(
            z,
            float(loss.value(x.double(), x_true.double()).mean()),
            (float(lower.mean()), float(upper.mean())),
            mu.kind,
            certified,
            estimated,
            correction,
            q,
            system.residual,
            system.status,
            cost,
        )

    def _polished(
        self,
        energy: Any,
        potential: Any,
        hessian: Any,
        P: Preconditioner | None,
        x: Tensor,
        y: Tensor,
        x_true: Tensor,
        q: Tensor,
        residual: Tensor,
        loss: Any,
    ) -> tuple[Tensor, Tensor, Cost]:
        """The hypergradient at x - w, w one truncated Newton step, and the q corrected there."""
        few = replace(self.linear, max_steps=self.polish_steps, restarts=0)
        r = potential.grad(x)
        tiny = torch.finfo(x.dtype).tiny
        step = few(hessian, r, (0.02 * norm(r)).clamp_min(tiny), None, P)
        moved = x - step.value
        there = potential.linearize(moved)
        b = loss.grad(moved, x_true)
        corrected = few(there, b, (0.1 * residual).clamp_min(tiny), q, P)
        size = x.shape[0]
        z = -mixed_product(energy, moved, y, corrected.value, self.group) / size
        extra = Cost(gradients=size, mixed_products=size, linearizations=size)
        return z, corrected.value, step.cost + corrected.cost + extra


def refuse_saddle(energy: Any, who: str) -> None:
    """Refuse a lower level without gradients.

    Raises:
        MissingPropertyError: a SaddleEnergy; names the strategy for it.
    """
    if getattr(getattr(energy, "regularizer", None), "saddle", False):
        raise MissingPropertyError(
            "hypergradient",
            given=f"{who} for {type(energy).__name__}",
            expected="a differentiable Energy",
            remedy="Use Piggyback(), the strategy for saddle points.",
        )


def mixed_product(energy: Any, x: Tensor, y: Tensor, q: Tensor, group: int = 4) -> Tensor:
    """sum_i J_i^T q_i as one vector (d,): ONE reverse-mode call for all parameters per group of
    images.
    """
    params = trainable(energy)
    total: list[Tensor] | None = None
    for start in range(0, x.shape[0], group):
        part = slice(start, start + group)
        with torch.enable_grad():
            scalar = energy.directional(x[part], y[part], q[part]).sum()
            found = torch.autograd.grad(scalar, params, allow_unused=True)
        grads = [
            torch.zeros_like(p) if g is None else g for g, p in zip(found, params, strict=True)
        ]
        total = grads if total is None else [a + b for a, b in zip(total, grads, strict=True)]
    assert total is not None
    return torch.cat([g.reshape(-1) for g in total])


def without_errors(strategy: Any) -> Any:
    """The strategy with its error bounds switched off, where it has such switches."""
    off = {name: False for name in ("estimate", "certify") if hasattr(strategy, name)}
    return replace(strategy, **off) if off else strategy
