"""Which solver ``auto`` takes, and the words that say why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.bounds import constants_of
from ..core.cost import Cost
from ..core.errors import InputError, MissingPropertyError
from ..core.protocols import Potential, Saddle, Solver
from ..core.ranges import check_object
from ..linear.precondition import Preconditioner
from .agd import AGD
from .iterate import Measure, is_saddle
from .lbfgs import LBFGS, averaged
from .newton import NewtonCG, PrimalDualNewton
from .nmapg import NmAPG
from .pdhg import PDHG

SOLVERS: dict[str, Callable[[], Solver]] = {
    "agd": AGD,
    "lbfgs": LBFGS,
    "newton": NewtonCG,
    "primal_dual_newton": PrimalDualNewton,
    "nmapg": NmAPG,
    "pdhg": PDHG,
}

OWN_WORK = {"agd": 6.0, "lbfgs": 35.0}
"""What a step costs besides its gradient, in operations on one vector of pixels (measured)."""

PLAIN_GRADIENT = 10.0
"""The same for a gradient whose energy does not tell."""


def check_solver(name: str | Solver) -> None:
    """Refuse an unknown name, and an object that is no solver.

    Raises:
        InputError: lists the names there are.
    """
    expected = f"'auto' or one of {', '.join(map(repr, SOLVERS))}"
    remedy = "Leave the choice to solver='auto'."
    if not isinstance(name, str):
        check_object(
            "solver", name, ("init", "step", "name"), f"{expected}, or a solver object", remedy
        )
    elif name != "auto" and name not in SOLVERS:
        raise InputError("solver", given=repr(name), expected=expected, remedy=remedy)


def choose(
    name: str | Solver, f: Potential | Saddle, measure: Measure = "distance"
) -> tuple[Solver, str]:
    """The solver object and the words that name it in results; ``auto`` says why.

    Raises:
        InputError: unknown name.
        MissingPropertyError: a method for saddle functions and an energy that is none, or the other
            way round.
    """
    check_solver(name)
    saddle, wants = is_saddle(f), name == "pdhg" or isinstance(name, PDHG)
    if saddle and name == "auto":
        return PDHG(), "pdhg (auto: the energy is a saddle function)"
    if saddle != wants:
        raise MissingPropertyError(
            "solver",
            given=f"{name if isinstance(name, str) else name.name!r} for a {type(f).__name__}",
            expected="pdhg" if saddle else "a method for differentiable energies",
            remedy="Leave the choice to solver='auto'.",
        )
    if saddle and measure == "stationarity":
        raise MissingPropertyError(
            "stationarity",
            given=f"a {type(f).__name__}, which has no gradient",
            expected="a differentiable energy",
            remedy="Ask for a distance, eps=1e-2, with a tikhonov > 0.",
        )
    convex = saddle or _convex(f)
    if name == "agd" or isinstance(name, AGD):
        _require_convex(convex, f)
    if not isinstance(name, str):
        return name, name.name
    if name != "auto":
        return SOLVERS[name](), name
    if not convex:
        return NmAPG(), "nmapg (auto: the energy is not known to be convex)"
    return _automatic(f)


def _convex(f: Any) -> bool:
    """Whether mu >= 0 and L are known, as momentum supposes."""
    constants = constants_of(f)
    return bool((constants.mu >= 0).all()) and bool(torch.isfinite(constants.L).all())


def _require_convex(convex: bool, f: Any) -> None:
    if not convex:
        raise MissingPropertyError(
            "solver",
            given=f"'agd' for an energy with {f.bounds().mu} and L = {f.bounds().L}",
            expected="a convex energy with a finite L",
            remedy="Use solver='nmapg' or 'lbfgs', which need neither.",
        )


def _automatic(f: Any) -> tuple[Solver, str]:
    """L-BFGS where the steps it saves are worth more than its own operations, accelerated gradient
    elsewhere.

    Evaluations of accelerated gradient over those of preconditioned L-BFGS, measured with TV and
    Fields of Experts on denoising, deblurring, inpainting and MRI: 1.3 to 8, on average kappa^(1/9)
    for kappa = L / mu.
    """
    kappa, gradient = _condition(f), _effort(f)
    if _averages(f) and gradient + OWN_WORK["lbfgs"] < kappa ** (1 / 9) * (
        gradient + OWN_WORK["agd"]
    ):
        return (
            LBFGS(),
            f"lbfgs (auto: L/mu = {kappa:.0f}, preconditioned steps are fewer and pay off)",
        )
    return AGD(), f"agd (auto: L/mu = {kappa:.0f}, gradients are cheap and momentum knows mu)"


def adjoint_preconditioner(f: Potential, x: Tensor) -> tuple[Preconditioner | None, Cost]:
    """A preconditioner for conjugate gradients with the Hessian at x, where it pays off, and what
    it cost.

    Measured: steps fall by about kappa^(1/14), and each takes 8 operations on one vector of pixels
    more than 10.
    """
    product = _effort(f) + 10
    if _averages(f) and product + 8 < _condition(f) ** (1 / 14) * product:
        return averaged(f, x)
    return None, Cost()


def _condition(f: Potential) -> float:
    curvature = f.bounds()
    return max(curvature.L.value / max(curvature.mu.value, 1e-300), 1.0)


def _effort(f: Potential) -> float:
    offer = getattr(f, "effort", None)
    return PLAIN_GRADIENT if offer is None else offer()


def _averages(f: Potential) -> bool:
    return getattr(f, "mean_curvature", None) is not None and getattr(f, "averages", True)
