"""What pays off: the method for a potential by its condition and the price of its gradient, and
whether an adjoint system is preconditioned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.asking import offers
from ..core.bounds import constants_of
from ..core.constraints import is_boxed
from ..core.cost import Cost
from ..core.offers import offers_averages
from ..core.protocols import AnySolver, Potential
from ..linear.precondition import Preconditioner
from .agd import AGD
from .lbfgs import LBFGS, averaged
from .nmapg import NmAPG
from .offers import Priced

OWN_WORK = {"agd": 6.0, "lbfgs": 35.0}
"""What a step costs besides its gradient, in operations on one vector of pixels (measured)."""

PLAIN_GRADIENT = 10.0
"""The same for a gradient whose energy does not tell."""


def automatic(f: Potential) -> tuple[AnySolver, str]:
    """L-BFGS where the steps it saves are worth more than its own operations, accelerated gradient
    elsewhere; a line search where convexity is not known.

    Evaluations of accelerated gradient over those of preconditioned L-BFGS, measured with TV and
    Fields of Experts on denoising, deblurring, inpainting and MRI: 1.3 to 8, on average kappa^(1/9)
    for kappa = L / mu. Without a preconditioner 1.4 to 4.3 for kappa from 70 to 10^6 (matrices), 7
    to 70 for counts, and within bounds the same.
    """
    if not is_convex(f) and is_boxed(f):
        return LBFGS(), "lbfgs (auto: within bounds, the energy is not known to be convex)"
    if not is_convex(f):
        return NmAPG(), "nmapg (auto: the energy is not known to be convex)"

    kappa, gradient = _condition(f), _effort(f)
    saved = kappa ** (1 / 9) * (gradient + OWN_WORK["agd"])
    told = offers_averages(f) or offers(f, Priced)
    if told and gradient + OWN_WORK["lbfgs"] < saved:
        steps = "preconditioned steps" if offers_averages(f) else "its steps"
        return LBFGS(), f"lbfgs (auto: L/mu = {kappa:.0f}, {steps} are fewer and pay off)"
    return AGD(), f"agd (auto: L/mu = {kappa:.0f}, gradients are cheap and momentum knows mu)"


def adjoint_preconditioner(f: Potential, x: Tensor) -> tuple[Preconditioner | None, Cost]:
    """A preconditioner for conjugate gradients with the Hessian at x, where it pays off, and what
    it cost.

    Measured: steps fall by about kappa^(1/14), and each takes 8 operations on one vector of pixels
    more than 10.
    """
    product = _effort(f) + 10
    if offers_averages(f) and product + 8 < _condition(f) ** (1 / 14) * product:
        return averaged(f, x)
    return None, Cost()


def is_convex(f: Potential) -> bool:
    """Whether mu >= 0 and L are known, as momentum supposes."""
    constants = constants_of(f)
    return bool((constants.mu >= 0).all()) and bool(torch.isfinite(constants.L).all())


def _condition(f: Potential) -> float:
    curvature = f.bounds()
    return max(curvature.L.value / max(curvature.mu.value, 1e-300), 1.0)


def _effort(f: Potential) -> float:
    return f.effort() if offers(f, Priced) else PLAIN_GRADIENT
