"""What a run went through, measured again afterwards: exact loss with a certified bracket, and
held-out quality.

The losses in a record are those that the learner itself needed: as inexact as it chose, or none at
all. To compare learners, some thetas of a run are evaluated again here, all to the same accuracy;
nothing of it counts as their work.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InputError, MissingPropertyError
from ..core.ranges import check_number, check_positive
from ..core.results import Solution
from ..core.status import Status
from ..metrics import data_psnr
from ..solvers.solve import solve
from .lower_level import LowerLevel, Point
from .run import Run

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


def trajectory(
    run: Run,
    problem: Any,
    test: Any,
    *,
    points: int = 12,
    relative: float = 1e-4,
    eps_test: float = 1e-2,
    strategy: Any = None,
    solver: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Evaluate some thetas of a run again: f(theta) tightly, and the quality of held-out
    reconstructions.

    The steps are the first, the last, and those in between that are spread most evenly over the
    logarithm of the work; a step that left theta as it was is passed over. Solves start from the
    solutions at the theta before.

    Args:
        run: what ``learn`` returned.
        problem: the BilevelProblem that it learned from.
        test: held-out pairs ``.x`` and ``.y``.
        points: largest number of steps.
        relative: width of the certified bracket of f(theta), penalty included, relative to it.
        eps_test: certified distance of each held-out reconstruction.
        strategy: the hypergradient strategy of the run. One with ``fixed`` set learns a
            reconstruction of its own (so many iterations from A^T y), made by
            ``reconstruct(potential, x0)``; its quality is then measured too.
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
    check_number("points", points, lambda v: v >= 2, "an integer >= 2", integer=True)
    check_number("relative", relative, lambda v: 0 < v < 1, "a number in (0, 1)")
    check_positive("eps_test", eps_test)
    if not run.record.rows:
        raise InputError("run", given="no rows", expected="at least the start")
    steps = chosen_steps(run, points)
    watch = _Evaluation(problem, test, relative, eps_test, strategy, solver)
    rows: list[dict[str, Any]] = []
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
        self, problem: Any, test: Any, relative: float, eps_test: float, strategy: Any, solver: str
    ) -> None:
        self.problem, self.test, self.relative, self.eps_test = problem, test, relative, eps_test
        own = getattr(strategy, "fixed", False) and not getattr(strategy, "joint", False)
        self.own = strategy if own and hasattr(strategy, "reconstruct") else None
        self.solver = solver
        self._x0: Tensor | None = None
        self._test_x0: Tensor | None = None
        self._latest: tuple[Tensor, dict[str, Any]] | None = None

    def at(self, theta: Tensor) -> dict[str, Any]:
        """Everything about one theta; one that cannot be solved has a note instead of numbers."""
        if self._latest is not None and self._latest[0].equal(theta):
            return dict(self._latest[1])
        found: dict[str, Any] = {
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
            found |= self._quality(theta)
        except MissingPropertyError as error:  # so far out that the energy has no finite constants
            found["note"] = str(error)
        self._latest = theta, found
        return dict(found)

    def _loss(self, theta: Tensor) -> dict[str, Any]:
        point = self._tight(self.problem.to(theta.dtype), theta)
        if theta.dtype != torch.float64 and self._too_wide(point):
            point = self._tight(self.problem.to(torch.float64), theta.double(), point)
        if point.failed or not math.isfinite(point.width):
            return {"note": f"the lower level could not be solved here: {_trouble(point.solution)}"}
        self._x0 = point.solution.warm
        wide = self._too_wide(point)
        return {
            "loss": point.loss,
            "lower": point.lower,
            "upper": point.upper,
            "kind": point.solution.kind.label,
            "note": "the bracket is as narrow as float64 allows, and wider than asked for"
            if wide
            else None,
        }

    def _too_wide(self, point: Point) -> bool:
        return not point.width <= self.relative * abs(point.loss)

    def _tight(self, problem: Any, theta: Tensor, present: Point | None = None) -> Point:
        """The lower level solved until the bracket is as narrow as asked, or no narrower one can be
        had.
        """
        lower = LowerLevel(problem, None, self.solver, MOST_STEPS)
        start = present.solution.warm if present is not None and not present.failed else self._x0
        x0 = lower.start(theta) if start is None else start.to(theta)
        first = (
            x0
            if x0.shape == problem.pairs.x.shape
            else self.problem.energy.at(problem.pairs.y, x0).image(x0)
        )
        d = (first.double() - problem.pairs.x.double()).flatten(1).norm(dim=1)
        # for 1/2 ||x - x_true||^2 the bracket at distance d is 2 d eps wide; other losses are
        # narrowed below
        eps = (
            0.45 * self.relative * float(d.square().mean()) / (2 * float(d.mean()))
            if float(d.max()) > 0
            else 1e-3
        )
        point = lower.solve(theta, eps, x0)
        for _ in range(REFINEMENTS):
            if not self._too_wide(point) or point.at_floor or point.failed:
                break
            fit = 0.8 * self.relative * abs(point.loss) / point.width
            eps *= min(0.5, max(fit, 1e-3))
            point = replace(lower.refine(point, eps), eps=eps)
        return point

    def _quality(self, theta: Tensor) -> dict[str, Any]:
        energy, y, x = (
            self.problem.energy.with_theta(theta),
            self.test.y.to(theta),
            self.test.x.to(theta),
        )
        start = None if self._test_x0 is None else self._test_x0.to(theta)
        solution = solve(energy, y, self.eps_test, solver=self.solver, x0=start, throw=False)
        if any(status in (Status.NOT_FINITE, Status.MAX_STEPS) for status in solution.status):
            return {
                "note": f"the held-out images could not be reconstructed here: {_trouble(solution)}"
            }
        self._test_x0 = solution.warm
        values = data_psnr(solution.value, x)
        own = None
        if self.own is not None:
            x0 = energy.start(y)
            own = _finite(
                float(data_psnr(self.own.reconstruct(energy.at(y, x0), x0).value, x).mean())
            )
        return {
            "psnr_test": _finite(float(values.mean())),
            "psnr_test_images": [_finite(v) for v in values.tolist()],
            "psnr_test_own": own,
        }


def _trouble(solution: Solution) -> str:
    """What went wrong, for the first image with which something did."""
    return next(
        (status.value for status in solution.status if not status.ok), "no distance is known"
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
