"""Reconstructor: a deepinv model whose forward is a certified solve and whose backward is
implicit.
"""

from __future__ import annotations

from typing import Any

import torch
from deepinv.models import Reconstructor as DeepinvReconstructor
from torch import Tensor

from ..core.batch import norm, per_image
from ..core.errors import MissingPropertyError, SolveError
from ..core.guards import check_energy, check_strategy, isolated
from ..core.params import trainable
from ..core.status import summarize
from ..linear.cg import CG
from ..solvers.select import adjoint_preconditioner, check_solver
from ..solvers.solve import solve
from .implicit import Implicit
from .piggyback import Piggyback, natural_strategy
from .saddle_layer import SaddleSolve


class Reconstructor(DeepinvReconstructor):
    """x~(y) = argmin_x h(x; theta, y) up to eps, differentiable in theta and y.

    Forward: ``solve`` to the certified distance eps. Backward: the implicit function theorem, one
    CG solve per image to a relative residual, memory independent of the number of iterations.
    Parameters are those of the energy, so torch.optim, Lightning and deepinv.Trainer work.

    A SaddleEnergy works as well: its backward pass solves the linear saddle point of ``Piggyback``.

    Args:
        energy: the lower level.
        eps: distance per image.
        solver: as in ``solve``.
        hypergradient: its linear solver is used backwards; ``Implicit()`` or, for a SaddleEnergy,
            ``Piggyback()`` when None.
        relative_delta: residual of the backward system relative to the incoming gradient.

    Raises:
        MissingPropertyError: a strategy that does not belong to the energy.
        InputError: eps or relative_delta not positive; in ``forward`` also bad measurements.
        SolveError: in ``forward``, when an image misses eps.
    """

    def __init__(
        self,
        energy: Any,
        eps: float,
        *,
        solver: str = "auto",
        hypergradient: Implicit | Piggyback | None = None,
        relative_delta: float = 1e-3,
    ) -> None:
        super().__init__()
        check_energy(energy)
        check_solver(solver)
        if isinstance(hypergradient, type):
            check_strategy(hypergradient, "hypergradient")
        per_image(eps, torch.zeros(1, 1))
        per_image(relative_delta, torch.zeros(1, 1), "relative_delta")
        self.energy, self.eps, self.solver = energy, eps, solver
        self.strategy: Any = hypergradient or natural_strategy(energy)
        if type(self.strategy) is not type(natural_strategy(energy)):
            raise MissingPropertyError(
                "hypergradient",
                given=f"{type(self.strategy).__name__} for {type(energy).__name__}",
                expected=type(natural_strategy(energy)).__name__,
                remedy="Leave the choice to hypergradient=None.",
            )
        self.relative_delta = relative_delta

    @isolated
    def forward(self, y: Tensor, physics: Any = None, **kwargs: Any) -> Tensor:
        """(b, ...) -> (b, c, h, w); ``physics`` replaces the one of the energy when given.

        Mixed precision is off in here, forwards and backwards.
        """
        if isinstance(y, Tensor) and y.dtype in (torch.float16, torch.bfloat16):
            y = y.float()  # what layers before this one make under autocast
        energy = self.energy if physics is None else self.energy.with_physics(physics)
        if isinstance(self.strategy, Piggyback):
            return SaddleSolve.apply(
                y,
                energy,
                self.eps,
                self.solver,
                self.strategy,
                self.relative_delta,
                *trainable(energy),
            )
        return _ImplicitSolve.apply(y, energy, self, *trainable(energy))


class _ImplicitSolve(torch.autograd.Function):
    """x~ with the derivative of the exact solution map, evaluated at x~."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, energy: Any, model: Reconstructor, *params: Tensor) -> Tensor:
        solution = solve(energy, y.detach(), model.eps, solver=model.solver)
        ctx.save_for_backward(y.detach(), solution.value, *params)
        ctx.energy, ctx.linear, ctx.relative = energy, model.strategy.linear, model.relative_delta
        return solution.value.clone()

    @staticmethod
    @isolated
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        upstream = grads[0]
        y, x, *params = ctx.saved_tensors
        q = backward_solve(ctx.energy, y, x, upstream, ctx.linear, ctx.relative)
        wanted = [p for p, need in zip(params, ctx.needs_input_grad[3:], strict=True) if need]
        to_theta: list[Tensor | None] = []
        if wanted:
            with torch.enable_grad():
                scalar = -ctx.energy.directional(x, y, q).sum()
            found = iter(torch.autograd.grad(scalar, wanted, allow_unused=True))
            to_theta = [next(found) if need else None for need in ctx.needs_input_grad[3:]]
        else:
            to_theta = [None] * len(params)
        to_y = ctx.energy.data_adjoint(x, y, q) if ctx.needs_input_grad[0] else None
        return (to_y, None, None, *to_theta)


def backward_solve(
    energy: Any, y: Tensor, x: Tensor, upstream: Tensor, linear: CG, relative: float
) -> Tensor:
    """q with ||H q - upstream|| <= relative ||upstream|| per image."""
    floor = torch.finfo(x.dtype).tiny
    potential = energy.at(y, x)
    P, _ = adjoint_preconditioner(potential, x)
    system = linear(
        potential.linearize(x), upstream, (relative * norm(upstream)).clamp_min(floor), None, P
    )
    if not system.ok:
        raise SolveError(f"backward pass: {summarize(system.status)}", system)
    return system.value
