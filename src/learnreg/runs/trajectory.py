"""What a run went through, measured again afterwards: exact loss with a certified bracket, and
held-out quality.

The losses in a record are those that the learner itself needed: as inexact as it chose, or none at
all. To compare learners, some thetas of a run are evaluated again here, all to the same accuracy;
nothing of it counts as their work.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ..core.asking import offers
from ..core.errors import InputError, MissingPropertyError
from ..core.grants import Grants
from ..core.maps import Level, Limits, Posed, SolutionMap
from ..core.measured import native_of
from ..core.objective import Objective, Row, Value
from ..core.ranges import check_number, check_positive
from ..core.results import Solution
from ..core.status import Status
from ..metrics import data_psnr
from ..objectives.bilevel import Bilevel
from ..problems import BilevelProblem
from ..problems.bilevel import data_of
from ..solvers.solve import solve
from .learn import objective_of
from .run import Run, TruePairs

COPIED = (
    "seconds",
    "cpu_seconds",
    "eps",
    "delta",
    "step_size",
    "gradient_norm",
    "trials",
    "refinements",
)
"""Columns of the record that go with an evaluated step."""

MOST_STEPS = 5000
"""Of one solve: what a learner left at a theta where nothing can be solved must not take longer
than the learning.
"""

REFINEMENTS = 30
"""Solves at one theta until its bracket is narrow enough; each at least halves eps."""


class Reconstructs(Protocol):
    """A lower level; an objective of the user's own may have learned something else."""

    at: Any
    start: Any


def trajectory(
    run: Run,
    problem: BilevelProblem | Objective,
    test: TruePairs,
    *,
    points: int = 12,
    relative: float = 1e-4,
    eps_test: float = 1e-2,
    strategy: SolutionMap | None = None,
    solver: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Evaluate some thetas of a run again: f(theta) tightly, and the quality of held-out
    reconstructions.

    The steps are the first, the last, and those in between that are spread most evenly over the
    logarithm of the work; a step that left theta as it was is passed over. Solves start from the
    solutions at the theta before.

    Args:
        run: what ``learn`` returned.
        problem: the BilevelProblem or the objective that it learned from.
        test: held-out pairs ``.x`` and ``.y``.
        points: largest number of steps.
        relative: width of the certified bracket of f(theta), penalty included, relative to it.
        eps_test: certified distance of each held-out reconstruction.
        strategy: the solution map of the run. One that is no solve to an accuracy (so many
            iterations from A^T y) makes a reconstruction of its own; its quality is then measured
            too.
        solver: as in ``solve``.
        progress: called with (steps evaluated, of how many).

    Returns:
        One dict per step, in order: ``step``, ``work`` (per training image, as the learner spent
            it), ``loss`` with
        ``lower``, ``upper`` and ``kind`` ("certified" if the bracket is proven), ``psnr_test``
        (mean) and ``psnr_test_images``, ``psnr_test_own`` (None without a reconstruction of its
        own), ``note`` (why something could not be evaluated, or None), and the columns ``COPIED``
        of the record. Unknown values are None. A bracket is wider than asked for only where float64
        cannot do better.

    Raises:
        InputError: a number out of range, or a run without rows.
    """
    check_measure(points, relative, eps_test)
    if not run.record.rows:
        raise InputError("run", given="no rows", expected="at least the start")
    steps = chosen_steps(run, points)
    objective = objective_of(problem, strategy, solver)
    watch = _Evaluation(objective, test, relative, eps_test, solver)
    rows: list[Row] = []
    for k in steps:
        row, theta = run.record.rows[k], run.thetas[k]
        if progress is not None:
            progress(len(rows), len(steps))
        rows.append(
            {
                "step": row["step"],
                "work": row["work"] / run.record.images,
                **{c: row.get(c) for c in COPIED},
                **watch.at(theta),
            }
        )
    if progress is not None:
        progress(len(rows), len(steps))
    return rows


def check_measure(points: int, relative: float, eps_test: float) -> None:
    """Refuse numbers out of range."""
    check_number("points", points, lambda v: v >= 2, "an integer >= 2", integer=True)
    check_number("relative", relative, lambda v: 0 < v < 1, "a number in (0, 1)")
    check_positive("eps_test", eps_test)


def chosen_steps(run: Run, points: int) -> list[int]:
    """Row numbers: first, last, and up to ``points - 2`` in between, evenly spread over log(work).

    Each next one is the row farthest from all that were chosen before, so the same run gives the
    same rows, and more points add to fewer.
    """
    last = len(run.record.rows) - 1
    moved = [k for k in range(1, last) if not run.thetas[k].equal(run.thetas[k - 1])]
    place = [math.log1p(row["work"]) for row in run.record.rows]
    chosen = sorted({0, last})
    gaps = {k: min(abs(place[k] - place[c]) for c in chosen) for k in moved}
    while gaps and len(chosen) < points:
        new = max(gaps, key=lambda k: (gaps[k], -k))
        del gaps[new]
        chosen.append(new)
        gaps = {k: min(gap, abs(place[k] - place[new])) for k, gap in gaps.items()}
    return sorted(chosen)


class _Evaluation:
    """Evaluations along a run; each starts where the one before ended."""

    def __init__(
        self, objective: Objective, test: TruePairs, relative: float, eps_test: float, solver: str
    ) -> None:
        self.given, self.test = objective, test
        # the exact loss, whatever it was learned through; a subclass may have another loss
        if type(objective) is Bilevel:
            objective = Bilevel(objective.problem, None, solver)
        self.objective = objective
        self.relative, self.eps_test, self.solver = relative, eps_test, solver
        self._latest_value: Value | None = None
        self._test_x0: Tensor | None = None
        self._latest: tuple[Tensor, Row] | None = None

    def at(self, theta: Tensor) -> Row:
        """Everything about one theta; one that cannot be solved has a note instead of numbers."""
        if self._latest is not None and self._latest[0].equal(theta):
            return dict(self._latest[1])
        found: Row = {
            "loss": None,
            "lower": None,
            "upper": None,
            "kind": None,
            "psnr_test": None,
            "psnr_test_images": None,
            "psnr_test_own": None,
            "note": None,
        }
        try:
            if not bool(torch.isfinite(theta).all()):
                raise MissingPropertyError(
                    "theta", given="NaN or Inf", expected="finite parameters"
                )
            found |= self._loss(theta)
            energy = self.objective.learned(theta)
            if offers(energy, Reconstructs):
                found |= self._quality(cast(Level, energy), theta)
            else:
                what = f"the objective gave {type(energy).__qualname__}, which is no energy"
                found["note"] = found["note"] or f"no held-out images are reconstructed: {what}"
        except MissingPropertyError as error:  # so far out that the energy has no finite constants
            found["note"] = str(error)
        self._latest = theta, found
        return dict(found)

    def _loss(self, theta: Tensor) -> Row:
        same = theta.dtype == self.objective.theta.dtype
        objective = self.objective if same else self.objective.widened()
        value = self._tight(objective, theta, self._latest_value)
        if theta.dtype != torch.float64 and self._too_wide(value):
            start = None if value.failed else value
            value = self._tight(objective.widened(), theta.double(), start)
        if value.failed or not math.isfinite(value.width):
            return {"note": f"the lower level could not be solved here: {value.trouble}"}
        self._latest_value = value
        note = "the bracket is as narrow as float64 allows, and wider than asked for"
        return {
            "loss": value.loss,
            "lower": value.lower,
            "upper": value.upper,
            "kind": value.row()["kind"],
            "note": note if self._too_wide(value) else None,
        }

    def _too_wide(self, value: Value) -> bool:
        return not value.width <= self.relative * abs(value.loss)

    def _tight(self, objective: Objective, theta: Tensor, near: Value | None) -> Value:
        """The objective evaluated until its bracket is as narrow as asked, or no narrower one can
        be had.
        """
        start = None if near is None or near.warm is None else near.warm.to(theta)
        eps, _ = objective.accuracies(theta, None, 1.0)
        value = objective.evaluate(theta, eps, start, MOST_STEPS)
        for _ in range(REFINEMENTS):
            if not self._too_wide(value) or value.at_floor or value.failed:
                break
            fit = 0.8 * self.relative * abs(value.loss) / value.width
            eps *= min(0.5, max(fit, 1e-3))
            value = objective.refine(value, eps)
        return value

    def _quality(self, energy: Level, theta: Tensor) -> Row:
        y, x = native_of(data_of(self.test).to(theta.dtype)), self.test.x.to(theta)
        start = None if self._test_x0 is None else self._test_x0.to(theta)
        solution = solve(energy, y, self.eps_test, solver=self.solver, x0=start, throw=False)
        if any(status in (Status.NOT_FINITE, Status.MAX_STEPS) for status in solution.status):
            return {
                "note": f"the held-out images could not be reconstructed here: {_trouble(solution)}"
            }
        self._test_x0 = solution.warm
        values = data_psnr(solution.value, x)
        own = self._own(Posed(energy, y))
        return {
            "psnr_test": _finite(float(values.mean())),
            "psnr_test_images": [_finite(v) for v in values.tolist()],
            "psnr_test_own": None if own is None else _finite(float(data_psnr(own, x).mean())),
        }

    def _own(self, posed: Posed) -> Tensor | None:
        """The reconstruction of a solution map that is no solve to an accuracy, such as so many
        steps from A^T y.
        """
        if not isinstance(self.given, Bilevel):
            return None
        strategy = self.given.strategy
        if Grants.ADAPTIVE in strategy.grants or Grants.STATELESS not in strategy.grants:
            return None
        return strategy.solve(posed, self.eps_test, None, Limits(self.solver)).value


def _trouble(solution: Solution) -> str:
    """What went wrong, for the first image with which something did."""
    return next(
        (status.value for status in solution.status if not status.ok), "no distance is known"
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
