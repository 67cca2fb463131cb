"""The front door ``solve``: checks the input, chooses the solver, raises on failure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core.batch import check_images, norm, per_image
from ..core.bounds import Kind, constants_of
from ..core.cost import Cost
from ..core.errors import InputError
from ..core.guards import check_energy, check_measured, isolated
from ..core.measured import Measured, Native, measured, real_channels, tensors_of
from ..core.protocols import Potential, Saddle, Solver
from ..core.ranges import check_flag, check_number
from ..core.results import Solution
from ..core.status import Status
from .iterate import Measure, examined, is_saddle, minimize, require_strong_convexity
from .select import check_solver, choose

NEAR_ROUNDING = 0.1
"""Of machine epsilon times L ||x||: where float32 gradients begin to be noise, if the potential has
no ``noise()``.
"""


@isolated
def solve(
    energy: Any,
    y: Native | Measured,
    eps: float | Tensor | None = None,
    *,
    stationarity: float | Tensor | None = None,
    solver: str | Solver = "auto",
    x0: Tensor | None = None,
    budget: int | None = None,
    params: Mapping[str, Tensor] | None = None,
    throw: bool = True,
) -> Solution:
    """Reconstruct: x~ with ||x~ - argmin_x h(x; y)|| <= eps for every image, certified.

    Args:
        energy: an Energy, or anything with ``at(y)`` -> Potential and ``start(y)``.
        y: measurements (b, ...), real or complex, or the TensorList of a stacked physics.
        eps: positive distance per image (Euclidean norm over all pixels of one image, not squared);
            a number or (b,).
        stationarity: in the place of eps, for energies that need not be strongly convex: a bound of
            the gradient norm at x~. The result is *stationary*, never certified.
        solver: ``"auto"``, a name, or a solver object.
        x0: (b, c, h, w), the start; t A^T y when None, with the t that fits the data best.
        budget: largest number of solver steps per image; 20000 when None, 2000 for saddle functions
            (a step of ``pdhg`` is ten iterations).
        params: tensors of the operator that differ from image to image, (b, ...), by the names that
            ``physics.update`` takes: masks, coil maps, kernels.
        throw: raise when an image misses eps; False hands the Solution back with its statuses.

    Returns:
        Solution with ``value`` (b, c, h, w) and ``error`` (b,); complex images where A^T y is
        complex.

    Raises:
        InputError: bad shapes, NaN or Inf, eps <= 0, unknown solver.
        MissingPropertyError: the energy is not strongly convex, so nothing can be certified.
        SolveError: some image missed eps; it carries the Solution and names the smallest eps
            reached.
    """
    check_energy(energy)
    check_flag("throw", throw)
    if (eps is None) == (stationarity is None):
        raise InputError(
            "eps",
            given=None if eps is None else "eps and stationarity",
            expected="one of eps, a distance, and stationarity, a gradient norm",
            remedy="Ask for a certified distance with eps=1e-2.",
        )
    check_solver(solver)
    budget = check_number(
        "budget",
        budget,
        lambda v: v > 0,
        "a positive number of solver steps",
        integer=True,
        optional=True,
    )
    data = as_data(y, params, energy)

    first = None if x0 is None else as_real(x0)
    if first is not None:
        check_images(first, "x0")
        if first.shape[0] != len(data):
            raise InputError(
                "x0",
                given=f"{first.shape[0]} images",
                expected=f"{len(data)}, one per measurement",
            )
    potential = energy.at(data) if first is None else energy.at(data, first)
    start = _start(energy, potential, data) if first is None else first
    if first is not None:
        _check_start(energy, potential, data, first)

    measure: Measure = "distance" if stationarity is None else "stationarity"
    given = eps if stationarity is None else stationarity
    assert given is not None
    tolerance = per_image(given, start, "eps" if stationarity is None else "stationarity")
    if measure == "distance":
        require_strong_convexity(potential)
    solution = solve_potential(
        potential,
        tolerance,
        start.detach(),
        solver,
        max_steps=budget or most_steps(potential),
        measure=measure,
    )
    solution = replace(
        solution, value=_shown(potential, solution.value), cost=solution.cost + spent_on(potential)
    )
    return solution.raise_if_failed() if throw else solution


def as_data(y: Native | Measured, params: Mapping[str, Tensor] | None, energy: Any = None) -> Any:
    """Measurements in the form that energies take: a plain tensor as it is.

    Raises:
        InputError: no tensors, NaN or Inf, another device than that of the energy, parameters of
            another number than images.
    """
    for tensor in measured(y).tensors if isinstance(y, Measured) else tensors_of(y):
        check_measured(tensor, energy)
        check_images(torch.view_as_real(tensor) if tensor.is_complex() else tensor, "y")
    if params is not None:
        y = Measured(measured(y).y, {**measured(y).params, **params})
        counts = {name: t.shape[0] for name, t in y.params.items() if t.shape[0] != len(y)}
        if counts:
            name, count = next(iter(counts.items()))
            raise InputError(
                f"params[{name!r}]",
                given=f"{count} slices",
                expected=f"{len(y)}, one per image",
                remedy="What all images share belongs to the physics itself.",
            )
    return y if isinstance(y, Tensor) and not y.is_complex() else measured(y)


def as_real(x: Tensor) -> Tensor:
    return real_channels(x) if isinstance(x, Tensor) and x.is_complex() else x


def _start(energy: Any, potential: Any, data: Any) -> Tensor:
    """The start that an energy proposes; ours know it without another A^T y."""
    offer = getattr(potential, "first", None)
    return energy.start(data) if offer is None else offer()


def _check_start(energy: Any, potential: Any, data: Any, x0: Tensor) -> None:
    """Refuse a start of another shape or type than images; packed states of saddles pass.

    Raises:
        InputError: says both.
    """
    image = getattr(potential, "back", None)
    like = energy.start(data) if image is None else image
    packed = x0.dim() == 2 and like.dim() > 2
    if not packed and (x0.dtype != like.dtype or x0.shape != like.shape):
        raise InputError(
            "x0",
            given=f"shape {tuple(x0.shape)}, {x0.dtype}",
            expected=f"shape {tuple(like.shape)}, {like.dtype}",
        )


def _shown(potential: Any, x: Tensor) -> Tensor:
    """Real images as what the physics calls images."""
    operator = getattr(potential, "operator", None)
    return x if operator is None else operator.layout.image_out(x)


def spent_on(f: Any) -> Cost:
    """What tying a potential to its data has cost: checks and norms of the operator."""
    spent = getattr(f, "spent", None)
    return spent if isinstance(spent, Cost) else Cost()


@torch.no_grad()
def solve_potential(
    f: Potential | Saddle,
    eps: float | Tensor,
    x0: Tensor,
    solver: str | Solver = "auto",
    *,
    max_steps: int | None = None,
    should_stop: Callable[[], bool] | None = None,
    measure: Measure = "distance",
) -> Solution:
    """``minimize`` with the solver chosen, and in float64 what cannot be certified in the precision
    of x0.

    Where the gradients of x0's type would be noise at the accuracy asked for, or turn out to be,
    the solve goes on in float64; the images keep their type, and the certificate pays for their
    rounding.

    Args:
        f: the potentials.
        eps, should_stop, measure: as in ``minimize``.
        max_steps: as in ``minimize``; the number that suits f when None.
        x0: (b, ...), the start: images, or for saddle functions a packed state (b, n) as well.
        solver: name or object.
    """
    method, words = choose(solver, f, measure)
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
            measure,
        )
        return replace(found, value=f.image(found.value), state=found.value)
    return _solved(f, eps, x0, method, words, max_steps, should_stop, measure)


def _solved(
    f: Any,
    eps: Tensor,
    x0: Tensor,
    method: Solver,
    words: str,
    max_steps: int,
    should_stop: Callable[[], bool] | None,
    measure: Measure,
) -> Solution:
    """``solve_potential`` once the solver is chosen and the variables are those that it works
    on.
    """
    run = partial(
        _part, f, eps, x0, method, max_steps=max_steps, should_stop=should_stop, measure=measure
    )
    everyone = torch.arange(x0.shape[0], device=x0.device)
    if x0.dtype == torch.float64:
        return replace(run(everyone, x0), solver=words)
    noisy = _near_rounding(f, eps, x0, measure)
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
        part = f if index.numel() == x0.shape[0] else f.select(index)
        parts.append((index, _narrowed(part, solution, eps[index], x0.dtype)))
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
    if limits["measure"] == "stationarity":  # rounding an image changes its gradient by L as much
        L = constants_of(potential).L
        rounding = rounding * torch.where(torch.isfinite(L), L, 1.0)
    inner = (wanted - rounding).clamp(0.1 * wanted, 0.9 * wanted)
    return minimize(potential.double(), inner, method, start, **limits)


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
        measure=parts[0][1].measure if parts else "distance",
    )


def _narrowed(f: Any, solution: Solution, eps: Tensor, dtype: torch.dtype) -> Solution:
    """The images rounded to ``dtype``, and what holds of them: gradient, certificate, status."""
    value = solution.value.to(dtype)
    moved = norm(value.double() - solution.value)
    closing, distance = examined(f, value, solution.measure)
    # two valid certificates: of the rounded image, and of the unrounded one plus its way
    error = torch.minimum(solution.error + moved, distance.nan_to_num(nan=torch.inf))
    reached = closing.evidence if solution.measure == "stationarity" else error
    status = tuple(
        Status.ROUNDING_FLOOR if s.ok and not r <= wanted else s
        for s, r, wanted in zip(solution.status, reached.tolist(), eps.tolist(), strict=True)
    )
    return replace(
        solution,
        value=value,
        error=error,
        status=status,
        gradient=closing.gradient.to(dtype),
        gradient_norm=closing.size,
        cost=solution.cost + Cost(gradients=value.shape[0]),
    )


def most_steps(f: Any) -> int:
    """The largest number of steps when none is given; one of ``pdhg`` is ten iterations."""
    return 2000 if is_saddle(f) else 20000


@torch.no_grad()
def start_distance(f: Any, x0: Tensor) -> Tensor:
    """A bound (b,) of the distance of a start x0 to the solution, at the cost of a gradient; in the
    type of x0.
    """
    require_strong_convexity(f)
    if is_saddle(f):
        z0 = x0 if x0.dim() == 2 else f.pack(*f.start(x0))
        return f.certify(z0).distance
    return norm(f.grad(x0)) / constants_of(f).mu.to(x0)


def _near_rounding(f: Any, eps: Tensor, x0: Tensor, measure: Measure) -> Tensor:
    """Images (b,) whose certifying gradient norm is lost in the rounding of gradients in the type
    of x0.
    """
    if is_saddle(f):
        return eps < f.rounding_distance(x0)
    offer = getattr(f, "noise", None)
    constants = constants_of(f)
    noise = NEAR_ROUNDING * constants.L if offer is None else offer()
    target = constants.mu * eps if measure == "distance" else eps
    return target < noise * torch.finfo(x0.dtype).eps * norm(x0).double()
