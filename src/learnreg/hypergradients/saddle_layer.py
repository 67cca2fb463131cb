"""The solution map of a saddle point as one differentiable operation; ``layer.Reconstructor`` is
its front.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.batch import norm
from ..core.errors import SolveError
from ..core.guards import isolated
from ..core.status import summarize
from ..solvers.solve import solve_potential
from .adjoint_saddle import linearized
from .once import once
from .piggyback import mixed_saddle


class SaddleSolve(torch.autograd.Function):
    """u~ with the derivative of the exact solution map, evaluated at the computed saddle point."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, layer: Any, model: Any, *params: Tensor) -> Tensor:
        solution = layer.solve(y, model.eps, model.solver)
        # saved parameters make autograd refuse a backward pass after they have changed in place
        ctx.save_for_backward(y, solution.state, *params)
        ctx.layer, ctx.piggyback, ctx.relative = layer, model.strategy, model.relative_delta
        return layer.real(solution.value).clone()

    @staticmethod
    @isolated
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        given, state, *params = ctx.saved_tensors
        sources = (grads[0], given, *params)
        energy, upstream, y = ctx.layer.energy, grads[0].detach(), given.detach()
        f = energy.at(ctx.layer.native(y), state)
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

        needs = ctx.needs_input_grad[3:]
        to_theta: list[Tensor | None] = [None] * len(needs)
        if any(needs):
            flat = mixed_saddle(energy, f, state, found.value, ctx.piggyback.group)
            pieces = flat.split([q.numel() for q in params])
            to_theta = [
                g.view_as(q) if need else None
                for g, q, need in zip(pieces, params, needs, strict=True)
            ]
        to_y = f.to_data(found.value) if ctx.needs_input_grad[0] else None
        return once((to_y, None, None, *to_theta), sources)
