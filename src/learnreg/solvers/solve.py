"""The front door ``solve``: checks the input, chooses the solver, raises on failure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core.batch import check_images, per_image
from ..core.errors import InputError
from ..core.protocols import Solver
from ..core.results import Solution
from .agd import AGD
from .iterate import minimize, require_strong_convexity

SOLVERS: dict[str, Callable[[], Solver]] = {"agd": AGD}


def choose(name: str | Solver) -> tuple[Solver, str]:
    """The solver object and the words that name it in results; ``auto`` says why.

    Raises:
        InputError: unknown name.
    """
    if not isinstance(name, str):
        return name, name.name
    if name == "auto":
        return AGD(), "agd (auto: smooth and strongly convex with known mu)"
    if name not in SOLVERS:
        raise InputError("solver", given=repr(name), expected=f"'auto' or one of {', '.join(map(repr, SOLVERS))}")
    return SOLVERS[name](), name


def solve(energy: Any, y: Tensor, eps: float | Tensor, *, solver: str | Solver = "auto", x0: Tensor | None = None,
          budget: int | None = None, throw: bool = True) -> Solution:
    """Reconstruct: x~ with ||x~ - argmin_x h(x; y)|| <= eps for every image, certified.

    Args:
        energy: an Energy, or anything with ``at(y)`` -> Potential and ``start(y)``.
        y: measurements, (b, ...).
        eps: positive distance per image (Euclidean norm over all pixels of one image, not squared); a number or (b,).
        solver: ``"auto"``, a name, or a solver object.
        x0: (b, c, h, w), the start; A^T y when None.
        budget: largest number of solver steps per image; 20000 when None.
        throw: raise when an image misses eps; False hands the Solution back with its statuses.

    Returns:
        Solution with ``value`` (b, c, h, w) and ``error`` (b,).

    Raises:
        InputError: bad shapes, NaN or Inf, eps <= 0, unknown solver.
        MissingPropertyError: the energy is not strongly convex, so nothing can be certified.
        SolveError: some image missed eps; it carries the Solution and names the smallest eps reached.
    """
    check_images(y, "y")
    start = energy.start(y) if x0 is None else x0
    check_images(start, "x0")
    if start.shape[0] != y.shape[0]:
        raise InputError("x0", given=f"{start.shape[0]} images", expected=f"{y.shape[0]}, one per measurement")
    if x0 is not None and (x0.dtype != y.dtype or x0.shape != energy.start(y).shape):
        raise InputError("x0", given=f"shape {tuple(x0.shape)}, {x0.dtype}",
                         expected=f"shape {tuple(energy.start(y).shape)}, {y.dtype}")
    per_image(eps, start)
    if budget is not None and not (isinstance(budget, int) and budget > 0):
        raise InputError("budget", given=budget, expected="a positive number of solver steps")
    potential = energy.at(y) if x0 is None else energy.at(y, start)
    require_strong_convexity(potential)
    method, words = choose(solver)
    with torch.no_grad():
        solution = replace(minimize(potential, eps, method, start.detach(), max_steps=budget or 20000), solver=words)
    return solution.raise_if_failed() if throw else solution
