"""Which solver ``auto`` takes, and the words that say why."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from ..core.cost import Cost
from ..core.errors import InputError
from ..core.protocols import Potential, Solver
from ..linear.precondition import Preconditioner
from .agd import AGD
from .lbfgs import LBFGS, averaged
from .newton import NewtonCG, PrimalDualNewton
from .nmapg import NmAPG

SOLVERS: dict[str, Callable[[], Solver]] = {
    "agd": AGD, "lbfgs": LBFGS, "newton": NewtonCG, "primal_dual_newton": PrimalDualNewton,
    "nmapg": NmAPG}

OWN_WORK = {"agd": 6.0, "lbfgs": 35.0}
"""What a step costs besides its gradient, in operations on one vector of pixels (measured)."""

SHARPEST = 600.0
"""Relative change of the Hessian over a step of ``SCALE``; beyond, quadratic models mislead. Measured with smoothed TV:
deblurring, L-BFGS needs a third of the evaluations of accelerated gradient at 60, half at 660, all at 2200; inpainting,
where averages say less, five sixths at 40 and more from 200 on."""

SCALE = 0.4
"""The root mean square of photographs with intensities in [0, 1]."""

PLAIN_GRADIENT = 10.0
"""The same for a gradient whose energy does not tell."""


def check_solver(name: str | Solver) -> None:
    """Refuse an unknown name.

    Raises:
        InputError: lists the names there are.
    """
    if isinstance(name, str) and name != "auto" and name not in SOLVERS:
        raise InputError("solver", given=repr(name), expected=f"'auto' or one of {', '.join(map(repr, SOLVERS))}")


def choose(name: str | Solver, f: Potential) -> tuple[Solver, str]:
    """The solver object and the words that name it in results; ``auto`` says why.

    Raises:
        InputError: unknown name.
    """
    check_solver(name)
    if not isinstance(name, str):
        return name, name.name
    if name != "auto":
        return SOLVERS[name](), name
    return _automatic(f)


def _automatic(f: Potential) -> tuple[Solver, str]:
    """L-BFGS where the steps it saves are worth more than its own operations, accelerated gradient elsewhere.

    Steps of accelerated gradient over those of preconditioned L-BFGS, measured with TV and Fields of Experts: about
    kappa^(1/6) for kappa = L / mu, and the root of that where pixels are missing, which averages cannot tell apart.
    """
    kappa, gradient = _condition(f), _effort(f)
    saved = kappa ** (1 / 6 if getattr(f, "uniform", True) else 1 / 12)
    if _averages(f) and gradient + OWN_WORK["lbfgs"] < saved * (gradient + OWN_WORK["agd"]):
        sharp = _sharpness(f)
        if sharp > SHARPEST:
            return AGD(), f"agd (auto: L/mu = {kappa:.0f}, kinks of sharpness {sharp:.0f} mislead quadratic models)"
        return LBFGS(), f"lbfgs (auto: L/mu = {kappa:.0f}, preconditioned steps are fewer and pay off)"
    return AGD(), f"agd (auto: L/mu = {kappa:.0f}, gradients are cheap and momentum knows mu)"


def adjoint_preconditioner(f: Potential, x: Tensor) -> tuple[Preconditioner | None, Cost]:
    """A preconditioner for conjugate gradients with the Hessian at x, where it pays off, and what it cost.

    Measured: steps fall by about kappa^(1/11), and each takes 8 operations on one vector of pixels more.
    """
    product = _effort(f) + OWN_WORK["agd"]
    if _averages(f) and product + 8 < _condition(f) ** (1 / 11) * product:
        return averaged(f, x)
    return None, Cost()


def _sharpness(f: Potential) -> float:
    """Lip(Hessian) / L times ``SCALE``, 0 where it is not known."""
    offer = getattr(f, "hessian_lipschitz", None)
    change = math.inf if offer is None else offer().value
    return change / f.bounds().L.value * SCALE if math.isfinite(change) else 0.0


def _condition(f: Potential) -> float:
    curvature = f.bounds()
    return max(curvature.L.value / max(curvature.mu.value, 1e-300), 1.0)


def _effort(f: Potential) -> float:
    offer = getattr(f, "effort", None)
    return PLAIN_GRADIENT if offer is None else offer()


def _averages(f: Potential) -> bool:
    return getattr(f, "mean_curvature", None) is not None and getattr(f, "averages", True)
