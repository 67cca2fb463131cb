"""Reconstructor: a deepinv model, forward a certified solve, backward implicit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from deepinv.models import Reconstructor as DeepinvReconstructor
from torch import Tensor, nn

from ..core.batch import norm, per_image
from ..core.errors import MissingPropertyError, SolveError
from ..core.guards import check_energy, check_strategy, isolated
from ..core.measured import Measured, Native
from ..core.params import trainable
from ..core.status import summarize
from ..linear.cg import CG
from ..solvers.select import adjoint_preconditioner, check_solver
from ..solvers.solve import as_data, solve
from .implicit import Implicit
from .once import once
from .piggyback import Piggyback, natural_strategy
from .saddle_layer import SaddleSolve


class Reconstructor(DeepinvReconstructor):
    """x~(y) = argmin_x h(x; theta, y) up to eps, differentiable in theta and y, once.

    Forward: ``solve`` to the certified distance eps. Backward: the implicit function theorem, one
    CG solve per image to a relative residual, memory independent of the number of iterations.
    Parameters are those of the energy (regularizer, data term and physics), so torch.optim,
    Lightning and deepinv.Trainer work. A derivative of the derivative raises torch's error of a
    function that is differentiable once.

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
    def forward(
        self,
        y: Native | Measured,
        physics: nn.Module | None = None,
        params: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """(b, ...) -> (b, c, h, w). Mixed precision is off in here, forwards and backwards.

        Args:
            y: measurements, real or complex, or a TensorList.
            physics: replaces the one of the energy when given, as ``deepinv.Trainer`` does; its
                tensors may hold one slice per image.
            params: tensors of the operator per image, as in ``solve``.
        """
        if isinstance(y, Tensor) and y.dtype in (torch.float16, torch.bfloat16):
            y = y.float()  # what layers before this one make under autocast
        energy = self.energy if physics is None else self.energy.with_physics(physics)
        data = as_data(y, params)
        if isinstance(data, Tensor):
            return self._solved(data, energy, Layer(energy, None))

        # complex numbers and lists become one real tensor, whose gradient autograd takes back
        layout = energy.layout(data)
        real = self._solved(layout.data_in(data.y), energy, Layer(energy, data, layout))
        return layout.image_out(real)

    def _solved(self, y: Tensor, energy: Any, layer: Layer) -> Tensor:
        params = trainable(energy)
        if isinstance(self.strategy, Piggyback):
            return SaddleSolve.apply(y, layer, self, *params)
        return _ImplicitSolve.apply(y, layer, self, *params)


class Layer:
    """An energy, and how real measurements become those that it takes.

    Args:
        energy: the lower level.
        data: the measurements as they came, None for plain ones.
        layout: of the measurements.
    """

    def __init__(self, energy: Any, data: Measured | None, layout: Any = None) -> None:
        self.energy, self.layout = energy, layout
        self.params = {} if data is None else data.params

    def native(self, y: Tensor) -> Any:
        """The measurements for the energy."""
        if self.layout is None:
            return y
        return Measured(self.layout.data_out(y), self.params)

    def solve(self, y: Tensor, eps: float, solver: str) -> Any:
        """The certified solution, with images as the physics has them (see ``real``)."""
        return solve(self.energy, self.native(y.detach()), eps, solver=solver)

    def real(self, x: Tensor) -> Tensor:
        """An image of ``solve`` as real channels."""
        return x if self.layout is None else self.layout.image_in(x)


class _ImplicitSolve(torch.autograd.Function):
    """x~ with the derivative of the exact solution map, evaluated at x~."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, layer: Layer, model: Reconstructor, *params: Tensor) -> Tensor:
        solution = layer.solve(y, model.eps, model.solver)
        x = layer.real(solution.value).clone()
        ctx.save_for_backward(y, x, *params)
        ctx.layer, ctx.linear, ctx.relative = layer, model.strategy.linear, model.relative_delta
        return x

    @staticmethod
    @isolated
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        upstream = grads[0]
        given, x, *params = ctx.saved_tensors
        y, x, sources = given.detach(), x.detach(), (upstream, given, *params)
        upstream = upstream.detach()
        energy, data = ctx.layer.energy, ctx.layer.native(y)
        q = backward_solve(energy, data, x, upstream, ctx.linear, ctx.relative)

        needs = ctx.needs_input_grad[3:]
        wanted = [p for p, need in zip(params, needs, strict=True) if need]
        to_theta: list[Tensor | None] = [None] * len(params)
        if wanted:
            with torch.enable_grad():
                scalar = -energy.directional(x, data, q).sum()
            found = iter(torch.autograd.grad(scalar, wanted, allow_unused=True))
            to_theta = [next(found) if need else None for need in needs]

        to_y = energy.data_adjoint(x, data, q) if ctx.needs_input_grad[0] else None
        return once((to_y, None, None, *to_theta), sources)


def backward_solve(
    energy: Any, y: Any, x: Tensor, upstream: Tensor, linear: CG, relative: float
) -> Tensor:
    """q with ||H q - upstream|| <= relative ||upstream|| per image."""
    floor = torch.finfo(x.dtype).tiny
    potential = energy.at(y, x)
    P, _ = adjoint_preconditioner(potential, x)
    tolerance = (relative * norm(upstream)).clamp_min(floor)
    system = linear(potential.linearize(x), upstream, tolerance, None, P)
    if not system.ok:
        raise SolveError(f"backward pass: {summarize(system.status)}", system)
    return system.value
