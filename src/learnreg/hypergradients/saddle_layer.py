"""The solution map of a saddle point as one differentiable operation; ``layer.Reconstructor`` is
its front.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.batch import norm
from ..core.errors import MissingPropertyError, SolveError
from ..core.guards import isolated
from ..core.params import trainable
from ..core.status import summarize
from ..solvers.solve import solve, solve_potential
from .adjoint_saddle import linearized
from .piggyback import Piggyback, mixed_saddle


class SaddleSolve(torch.autograd.Function):
    """u~ with the derivative of the exact solution map, evaluated at the computed saddle point."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        energy: Any,
        eps: float,
        solver: Any,
        piggyback: Piggyback,
        relative: float,
        *params: Tensor,
    ) -> Tensor:
        solution = solve(energy, y.detach(), eps, solver=solver)
        ctx.save_for_backward(y.detach(), solution.state)
        ctx.energy, ctx.piggyback, ctx.relative = energy, piggyback, relative
        return solution.value.clone()

    @staticmethod
    @isolated
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        y, state = ctx.saved_tensors
        energy, upstream = ctx.energy, grads[0]
        f = energy.at(y, state)
        with torch.no_grad():
            x, p = f.unpack(state)
            delta = (ctx.relative * norm(upstream)).clamp_min(torch.finfo(y.dtype).tiny)
            found = solve_potential(
                linearized(f, x, p, upstream),
                delta,
                torch.zeros_like(state),
                ctx.piggyback.solver,
                max_steps=ctx.piggyback.max_steps,
            )
        if not found.ok:
            raise SolveError(f"backward pass: {summarize(found.status)}", found)
        needs = ctx.needs_input_grad[6:]
        to_theta: list[Tensor | None] = [None] * len(needs)
        if any(needs):
            flat, params = (
                mixed_saddle(energy, f, state, found.value, ctx.piggyback.group),
                trainable(energy),
            )
            pieces = flat.split([q.numel() for q in params])
            to_theta = [
                g.view_as(q) if need else None
                for g, q, need in zip(pieces, params, needs, strict=True)
            ]
        to_y = _to_data(energy, f, found.value) if ctx.needs_input_grad[0] else None
        return (to_y, *[None] * 5, *to_theta)


@torch.no_grad()
def _to_data(energy: Any, f: Any, adjoint: Tensor) -> Tensor:
    """What the solution map passes back to the measurements: (b, ...), the shape of y.

    The data enter the system as -A^T y / sigma^2 (as a function of the image) or as -y (in a dual
    block), so (X, Y) is multiplied by the transpose of that.

    Raises:
        MissingPropertyError: a data term in which y does not enter linearly.
    """
    X, Y = f.unpack(adjoint)
    if not hasattr(energy.fidelity, "data_adjoint"):
        raise MissingPropertyError(
            "y",
            given=f"a gradient asked for with {type(energy.fidelity).__name__}",
            expected="the data term L2",
            remedy="Detach the measurements.",
        )
    return -Y[0] if f.data else energy.fidelity.data_adjoint(energy.operator, -X[0])
