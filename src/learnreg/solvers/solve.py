"""The front door ``solve``: checks the input, chooses the solver, raises on failure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core.batch import check_images, norm, per_image
from ..core.bounds import Kind
from ..core.cost import Cost
from ..core.errors import InputError
from ..core.guards import check_energy, check_measured, isolated
from ..core.protocols import Potential, Saddle, Solver
from ..core.ranges import check_flag, check_number
from ..core.results import Solution
from ..core.status import Status
from .iterate import is_saddle, minimize, require_strong_convexity
from .select import check_solver, choose

NEAR_ROUNDING = 0.1
"""Of machine epsilon times L ||x||: where float32 gradients begin to be noise, if the potential has
no ``noise()``.
"""


@isolated
def solve(
    energy: Any,
    y: Tensor,
    eps: float | Tensor,
    *,
    solver: str | Solver = "auto",
    x0: Tensor | None = None,
    budget: int | None = None,
    throw: bool = True,
) -> Solution:
    """Reconstruct: x~ with ||x~ - argmin_x h(x; y)|| <= eps for every image, certified.

    Args:
        energy: an Energy, or anything with ``at(y)`` -> Potential and ``start(y)``.
        y: measurements, (b, ...).
        eps: positive distance per image (Euclidean norm over all pixels of one image, not squared);
            a number or (b,).
        solver: ``"auto"``, a name, or a solver object.
        x0: (b, c, h, w), the start; A^T y when None.
        budget: largest number of solver steps per image; 20000 when None, 2000 for saddle functions
            (a step of ``pdhg`` is ten iterations).
        throw: raise when an image misses eps; False hands the Solution back with its statuses.

    Returns:
        Solution with ``value`` (b, c, h, w) and ``error`` (b,).

    Raises:
        InputError: bad shapes, NaN or Inf, eps <= 0, unknown solver.
        MissingPropertyError: the energy is not strongly convex, so nothing can be certified.
        SolveError: some image missed eps; it carries the Solution and names the smallest eps
            reached.
    """
    check_energy(energy)
    check_flag("throw", throw)
    check_measured(y, energy)
    check_images(y, "y")
    check_solver(solver)
    per_image(eps, y)
    budget = check_number(
        "budget",
        budget,
        lambda v: v > 0,
        "a positive number of solver steps",
        integer=True,
        optional=True,
    )
    start = energy.start(y) if x0 is None else x0
    check_images(start, "x0")
    packed = start.dim() == 2 and y.dim() > 2  # the state of an earlier solution of a saddle point
    if start.shape[0] != y.shape[0]:
        raise InputError(
            "x0", given=f"{start.shape[0]} images", expected=f"{y.shape[0]}, one per measurement"
        )
    if x0 is not None and not packed and (x0.dtype != y.dtype or x0.shape != energy.start(y).shape):
        raise InputError(
            "x0",
            given=f"shape {tuple(x0.shape)}, {x0.dtype}",
            expected=f"shape {tuple(energy.start(y).shape)}, {y.dtype}",
        )
    potential = energy.at(y) if x0 is None else energy.at(y, start)
    require_strong_convexity(potential)
    solution = solve_potential(
        potential, eps, start.detach(), solver, max_steps=budget or most_steps(potential)
    )
    return solution.raise_if_failed() if throw else solution


@torch.no_grad()
def solve_potential(
    f: Potential | Saddle,
    eps: float | Tensor,
    x0: Tensor,
    solver: str | Solver = "auto",
    *,
    max_steps: int | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Solution:
    """``minimize`` with the solver chosen, and in float64 what cannot be certified in the precision
    of x0.

    Where the gradients of x0's type would be noise at the accuracy asked for, or turn out to be,
    the solve goes on in float64; the images keep their type, and the certificate pays for their
    rounding.

    Args:
        f: the potentials.
        eps, should_stop: as in ``minimize``.
        max_steps: as in ``minimize``; the number that suits f when None.
        x0: (b, ...), the start: images, or for saddle functions a packed state (b, n) as well.
        solver: name or object.
    """
    method, words = choose(solver, f)
    eps, max_steps = per_image(eps, x0), max_steps or most_steps(f)
    if is_saddle(f):
        found = _solved(
            f,
            eps,
            x0 if x0.dim() == 2 else f.pack(*f.start(x0)),
            method,
            words,
            max_steps,
            should_stop,
        )
        return replace(found, value=f.image(found.value), state=found.value)
    return _solved(f, eps, x0, method, words, max_steps, should_stop)


def _solved(
    f: Any,
    eps: Tensor,
    x0: Tensor,
    method: Solver,
    words: str,
    max_steps: int,
    should_stop: Callable[[], bool] | None,
) -> Solution:
    """``solve_potential`` once the solver is chosen and the variables are those that it works
    on.
    """
    run = partial(_part, f, eps, x0, method, max_steps=max_steps, should_stop=should_stop)
    everyone = torch.arange(x0.shape[0], device=x0.device)
    if x0.dtype == torch.float64:
        return replace(run(everyone, x0), solver=words)
    noisy = _near_rounding(f, eps, x0)
    parts = [(i, run(i, x0[i])) for i in (everyone[~noisy],) if i.numel()]
    again = noisy.clone()
    for index, solution in parts:
        again[index] = torch.tensor(
            [s is Status.ROUNDING_FLOOR for s in solution.status], device=x0.device
        )
    result = _merged(parts, x0, words)
    if bool(again.any()):  # with the budget used up this ends at once, but not without a distance
        index = everyone[again]
        solution = run(
            index, result.value[index].double(), max_steps=max_steps - result.steps[index]
        )
        parts.append((index, _narrowed(solution, eps[index], x0.dtype)))
        result = _merged(parts, x0, words)
    return result


def _part(
    f: Any, eps: Tensor, x0: Tensor, method: Solver, index: Tensor, start: Tensor, **limits: Any
) -> Solution:
    """``minimize`` for some images of the batch, in the type of ``start``; part of eps pays for
    rounding them back.
    """
    potential = f if index.numel() == x0.shape[0] else f.select(index)
    if start.dtype == x0.dtype:
        return minimize(potential, eps[index], method, start, **limits)
    wanted, rounding = eps[index], 0.5 * torch.finfo(x0.dtype).eps * norm(start)
    return minimize(
        potential.double(),
        (wanted - rounding).clamp(0.1 * wanted, 0.9 * wanted),
        method,
        start,
        **limits,
    )


def _merged(parts: list[tuple[Tensor, Solution]], x0: Tensor, words: str) -> Solution:
    """One Solution of the whole batch; a later part replaces an earlier one, and costs and steps
    add up.
    """
    size = x0.shape[0]
    value, gradient = x0.clone(), torch.zeros_like(x0)
    error, closing = (
        torch.full((size,), torch.inf, dtype=torch.float64, device=x0.device) for _ in range(2)
    )
    steps = torch.zeros(size, dtype=torch.int64, device=x0.device)
    status, cost, kind = [Status.MAX_STEPS] * size, Cost(), Kind.UNKNOWN
    theorem: list[str] = []
    for index, part in parts:
        value[index], gradient[index] = part.value, part.gradient
        error[index], closing[index] = part.error, part.gradient_norm
        steps[index] += part.steps
        cost, kind = cost + part.cost, part.kind
        for i, s in zip(index.tolist(), part.status, strict=True):
            status[i] = s
        if part.theorem:
            theorem = theorem or [""] * size
            for i, words_of_image in zip(index.tolist(), part.theorem, strict=True):
                theorem[i] = words_of_image
    return Solution(
        value,
        error,
        kind,
        tuple(status),
        steps,
        cost,
        words,
        closing,
        gradient,
        theorem=tuple(theorem),
    )


def _narrowed(solution: Solution, eps: Tensor, dtype: torch.dtype) -> Solution:
    """The images rounded to ``dtype``; the certificate pays for it."""
    value = solution.value.to(dtype)
    error = solution.error + norm(value.double() - solution.value)
    status = tuple(
        Status.ROUNDING_FLOOR if s.ok and not e <= wanted else s
        for s, e, wanted in zip(solution.status, error.tolist(), eps.tolist(), strict=True)
    )
    return replace(
        solution, value=value, error=error, status=status, gradient=solution.gradient.to(dtype)
    )


def most_steps(f: Any) -> int:
    """The largest number of steps when none is given; one of ``pdhg`` is ten iterations."""
    return 2000 if is_saddle(f) else 20000


@torch.no_grad()
def start_distance(f: Any, x0: Tensor) -> Tensor:
    """A bound (b,) of the distance of a start x0 to the solution, at the cost of a gradient; in the
    type of x0.
    """
    if is_saddle(f):
        z0 = x0 if x0.dim() == 2 else f.pack(*f.start(x0))
        return f.certify(z0).distance
    return norm(f.grad(x0)) / f.bounds().mu.value


def _near_rounding(f: Any, eps: Tensor, x0: Tensor) -> Tensor:
    """Images (b,) whose certifying gradient norm is lost in the rounding of gradients in the type
    of x0.
    """
    if is_saddle(f):
        return eps < f.rounding_distance(x0)
    curvature, offer = f.bounds(), getattr(f, "noise", None)
    noise = NEAR_ROUNDING * curvature.L.value if offer is None else offer()
    return curvature.mu.value * eps < noise * torch.finfo(x0.dtype).eps * norm(x0).double()
