"""The front door ``solve``: checks the input, chooses the solver, raises on failure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.asking import offers
from ..core.batch import check_images, norm, per_image
from ..core.bounds import Kind, constants_of
from ..core.cost import Cost
from ..core.errors import InputError
from ..core.guards import check_energy, check_measured, isolated
from ..core.measured import Measured, Native, measured, real_channels, tensors_of
from ..core.protocols import AnySolver, EnergyLike, Potential, Saddle
from ..core.ranges import check_flag, check_number
from ..core.results import Solution
from ..core.status import Status
from .closing import Measure
from .iterate import minimize
from .offers import Backprojected, Billed, Operated, Started
from .select import check_solver, choose
from .views import View, require_strong_convexity, view_of


@isolated
def solve(
    energy: EnergyLike,
    y: Native | Measured,
    eps: float | Tensor | None = None,
    *,
    stationarity: float | Tensor | None = None,
    solver: str | AnySolver = "auto",
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
    potential, start = _tied(energy, data, None if x0 is None else as_real(x0))

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


def as_data(
    y: Native | Measured, params: Mapping[str, Tensor] | None, energy: object = None
) -> Tensor | Measured:
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


def first_of(energy: EnergyLike, f: Potential | Saddle, data: Tensor | Measured) -> Tensor:
    """The image that a solve starts from when nothing better is known; ours know it without another
    A^T y.
    """
    return f.first() if offers(f, Started) else energy.start(data)


def _tied(
    energy: EnergyLike, data: Tensor | Measured, x0: Tensor | None
) -> tuple[Potential | Saddle, Tensor]:
    """The functions of the measurements, and where a solve starts: x0, or what the energy proposes.

    Raises:
        InputError: an x0 that is no start for these measurements.
    """
    if x0 is None:
        potential = energy.at(data)
        return potential, first_of(energy, potential, data)

    check_images(x0, "x0")
    if x0.shape[0] != len(data):
        raise InputError(
            "x0",
            given=f"{x0.shape[0]} images",
            expected=f"{len(data)}, one per measurement",
        )
    potential = energy.at(data, x0)
    _check_start(energy, potential, data, x0)
    return potential, x0


def _check_start(
    energy: EnergyLike, potential: Potential | Saddle, data: Tensor | Measured, x0: Tensor
) -> None:
    """Refuse a start of another shape or type than images; packed states of saddles pass.

    Raises:
        InputError: says both.
    """
    like = potential.back if offers(potential, Backprojected) else energy.start(data)
    packed = x0.dim() == 2 and like.dim() > 2
    if not packed and (x0.dtype != like.dtype or x0.shape != like.shape):
        raise InputError(
            "x0",
            given=f"shape {tuple(x0.shape)}, {x0.dtype}",
            expected=f"shape {tuple(like.shape)}, {like.dtype}",
        )


def _shown(potential: Potential | Saddle, x: Tensor) -> Tensor:
    """Real images as what the physics calls images."""
    return potential.operator.layout.image_out(x) if offers(potential, Operated) else x


def spent_on(f: object) -> Cost:
    """What tying a potential to its data has cost: checks and norms of the operator."""
    # a potential of one's own may call something else so
    return f.spent if offers(f, Billed) and isinstance(f.spent, Cost) else Cost()


@torch.no_grad()
def solve_potential(
    f: Potential | Saddle,
    eps: float | Tensor,
    x0: Tensor,
    solver: str | AnySolver = "auto",
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
    view = view_of(f)
    start = view.variables(x0)
    job = _Job(view, per_image(eps, x0), start.dtype, method, measure, should_stop)
    return view.result(_solved(job, start, words, max_steps or view.most_steps))


@dataclass(frozen=True, eq=False)
class _Job:
    """What is asked of a batch, in variables of type ``dtype``, and by which method."""

    view: View
    eps: Tensor
    dtype: torch.dtype
    method: AnySolver
    measure: Measure
    should_stop: Callable[[], bool] | None

    def part(self, index: Tensor) -> View:
        """The functions of the images ``index``."""
        return self.view if index.numel() == self.eps.numel() else self.view.select(index)

    def run(self, index: Tensor, start: Tensor, max_steps: int | Tensor) -> Solution:
        """``minimize`` for some images of the batch, in the type of ``start``; part of eps pays for
        rounding them back.
        """
        part, wanted = self.part(index), self.eps[index]
        if start.dtype != self.dtype:
            rounding = 0.5 * torch.finfo(self.dtype).eps * norm(start)
            if self.measure == "stationarity":
                # rounding an image changes its gradient by L as much
                L = constants_of(part.f).L
                rounding = rounding * torch.where(torch.isfinite(L), L, 1.0)
            part, wanted = part.double(), (wanted - rounding).clamp(0.1 * wanted, 0.9 * wanted)
        return minimize(
            part.f,
            wanted,
            self.method,
            start,
            max_steps=max_steps,
            should_stop=self.should_stop,
            measure=self.measure,
        )


def _solved(job: _Job, x0: Tensor, words: str, max_steps: int) -> Solution:
    """``solve_potential`` once the solver is chosen and the variables are those that it works
    on.
    """
    everyone = torch.arange(x0.shape[0], device=x0.device)
    if x0.dtype == torch.float64:
        return replace(job.run(everyone, x0, max_steps), solver=words)

    noisy = job.view.near_rounding(job.eps, x0, job.measure)
    parts = [(i, job.run(i, x0[i], max_steps)) for i in (everyone[~noisy],) if i.numel()]
    again = noisy.clone()
    for index, solution in parts:
        again[index] = torch.tensor(
            [s is Status.ROUNDING_FLOOR for s in solution.status], device=x0.device
        )
    result = _merged(parts, x0, words)
    if bool(again.any()):  # with the budget used up this ends at once, but not without a distance
        index = everyone[again]
        left = max_steps - result.steps[index]
        solution = job.run(index, result.value[index].double(), left)
        parts.append((index, _narrowed(job, index, solution)))
        result = _merged(parts, x0, words)
    return result


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


def _narrowed(job: _Job, index: Tensor, solution: Solution) -> Solution:
    """The images rounded to the type asked for, and what holds of them: gradient, certificate,
    status.
    """
    part, value = job.part(index), solution.value.to(job.dtype)
    moved = norm(value.double() - solution.value)
    closing = part.close(value)
    distance = part.rule(solution.measure).distance(closing.evidence)
    # two valid certificates: of the rounded image, and of the unrounded one plus its way
    error = torch.minimum(solution.error + moved, distance.nan_to_num(nan=torch.inf))
    reached = closing.evidence if solution.measure == "stationarity" else error
    missed = (~(reached <= job.eps[index])).tolist()
    status = tuple(
        Status.ROUNDING_FLOOR if s.ok and m else s
        for s, m in zip(solution.status, missed, strict=True)
    )
    return replace(
        solution,
        value=value,
        error=error,
        status=status,
        gradient=closing.gradient.to(job.dtype),
        gradient_norm=closing.size,
        cost=solution.cost + Cost(gradients=value.shape[0]),
    )


def most_steps(f: Potential | Saddle) -> int:
    """The largest number of steps when none is given; one of ``pdhg`` is ten iterations."""
    return view_of(f).most_steps


@torch.no_grad()
def start_distance(f: Potential | Saddle, x0: Tensor) -> Tensor:
    """A bound (b,) of the distance of a start x0 to the solution, at the cost of a gradient; in the
    type of x0.
    """
    view = view_of(f)
    view.require_strong_convexity()
    return view.start_distance(x0)
