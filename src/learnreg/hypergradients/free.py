"""Which pixels of a bounded minimizer move with theta, as far as a computed image shows it.

With F the pixels of x* strictly between their bounds, and slopes that are not zero at the others,
    d<b, x*> = -<q, J dtheta>  with  H_FF q_F = b_F,  q = 0 outside of F:
pixels at a bound stay there. The unconstrained q answers another question and may point the other
way. Where F is not known for certain the derivative is an estimate, however exact the linear solve.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.bounds import constants_of
from ..core.constraints import bounds_of
from ..core.cost import Cost
from ..core.protocols import Potential
from ..solvers.iterate import rounding_of


@dataclass(frozen=True, eq=False)
class FreeSet:
    """The free pixels of a batch.

    Attributes:
        kept: (b, ...) booleans, the pixels taken for free; None for all, where nothing is bounded.
        undecided: (b,), pixels of which it is not certain to which set they belong; None where
            nothing is bounded, or nobody asked.
        cost: what finding out has cost.
    """

    kept: Tensor | None = None
    undecided: Tensor | None = None
    cost: Cost = Cost()

    @property
    def certain(self) -> bool:
        """Whether ``kept`` is the free set of the minimizer."""
        if self.kept is None:
            return True
        return self.undecided is not None and not bool(self.undecided.any())


def free_pixels(f: Potential, x: Tensor, eps: Tensor, sure: bool) -> FreeSet:
    """The free pixels of the minimizers of f, near images x (b, ...).

    Args:
        eps: (b,), certified distances of x.
        sure: find out which are certain, for one gradient in float64.
    """
    domain = bounds_of(f)
    if domain is None:
        return FreeSet()
    inside = domain.inside(x)
    if not sure:
        return FreeSet(inside)

    wide, z = f.double(), x.double()
    constants = constants_of(f)
    # an L that is a guess decides nothing
    L = constants.L if constants.L_kind.certifies else torch.full_like(constants.L, torch.inf)
    slack = L * eps + rounding_of(wide, z)
    active, undecided = domain.double().undecided(z, wide.grad(z), eps, slack)
    count = undecided.flatten(1).sum(dim=1)
    return FreeSet(inside & ~active, count, Cost(gradients=x.shape[0]))
