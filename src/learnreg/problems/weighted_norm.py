"""A sharper L of data terms through operators without negative entries.

D(A x, y) with a diagonal Hessian H <= W has L <= ||A^T W A||. For A and W without negative entries
the theorem of Collatz and Wielandt bounds that for every p > 0,

    ||A^T W A||  <=  max_j (A^T W A p)_j / p_j,

which is far below max W ||A||^2 where the weights differ: counts above a background.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from ..core.asking import offers
from ..core.bounds import Constants, Kind
from ..core.cost import Cost
from ..operators.nonnegative import collatz_wielandt, known_nonnegative
from ..operators.physics import TiedMap

PRODUCTS = 3
"""With A^T W A at most: each costs as much as a gradient, and the fourth gains less than 2 %."""

ALIKE = 1.2
"""Largest weight over the mean one up to which nothing can be gained."""


class Steepest(Protocol):
    """A data term tied to measurements that may know the largest diagonal of its Hessian."""

    def steepest(self) -> Tensor | None: ...


@torch.no_grad()
def sharper(found: Constants, function: object, operator: TiedMap, x: Tensor) -> Constants:
    """The constants with the smaller of two upper bounds, per image.

    Args:
        found: what is known without this.
        function: D(., y), which may know its W >= 0, (1, ...) or (b, ...) like measurements.
        operator: A of the images of a batch.
        x: images (b, c, ...).
    """
    weights = function.steepest() if offers(function, Steepest) else None
    if weights is None or operator.is_identity or not bool((weights >= 0).all()):
        return found
    rows = weights.double().flatten(1)
    if not bool((rows.amax(dim=1) > ALIKE * rows.mean(dim=1)).any()):
        return found
    if not operator.layout.plain or known_nonnegative(operator.physics) is not Kind.BOUND:
        return found

    wide, w = operator.double(), weights.double()

    def product(p: Tensor) -> Tensor:
        return wide.adjoint(w * wide.forward(p))

    count = max(weights.shape[0], x.shape[0] if operator.names else 1)
    like = x.detach()[:1].expand(count, *x.shape[1:]) if count > 1 else x.detach()[:1]
    bounds = collatz_wielandt(product, like, most=PRODUCTS)
    if bounds is None:
        return found
    operator.map.cost += Cost(hessian_products=bounds.products * count)
    upper = bounds.upper.to(found.L)
    if not math.isfinite(float(upper.max())):
        return found
    return Constants(found.mu, torch.minimum(found.L, upper), found.mu_kind, found.L_kind)
