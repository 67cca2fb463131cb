"""A convex function and a multiple of the squared norm: what tikhonov makes of a data term."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.errors import MissingPropertyError
from ..core.ranges import check_positive
from .base import Convex, Step, matched, total
from .tangent import Tangent


class Ridged(Convex):
    """psi(a) = phi(a) + ridge/2 |a|^2 for a phi whose proximal map is known.

    All of psi follows from phi, with t = step / (1 + step ridge) and a0 = prox_{phi / ridge}(s /
    ridge), the maximizer in psi*(s) = sup_a <a, s> - psi(a):
        prox_{step psi}(a) = prox_{t phi}( a / (1 + step ridge) )   (complete the square),
        psi*(s) = <a0, s> - psi(a0),   grad psi*(s) = a0,
        psi(a) + psi*(s) - <a, s> = [ phi(a) + phi*(r) - <a, r> ] + ridge/2 |a - a0|^2,
    with r = s - ridge a0, a subgradient of phi at a0: both parts of the gap are >= 0 and local.
    psi* is finite everywhere, so that no dual point has to be repaired.

    Args:
        phi: the function.
        ridge: positive.

    Raises:
        InputError: a ridge that is not positive.
    """

    def __init__(self, phi: Convex, ridge: float) -> None:
        check_positive("ridge", ridge)
        self.phi, self.ridge = phi, float(ridge)
        self.strong, self.smooth = phi.strong + self.ridge, phi.smooth + self.ridge
        self.hessian_lipschitz, self.smoothing = phi.hessian_lipschitz, phi.smoothing
        self.separable = phi.separable

    def value(self, a: Tensor) -> Tensor:
        return self.phi.value(a) + 0.5 * self.ridge * total(a * a)

    def floor(self) -> float | Tensor:
        return self.phi.floor()

    def slopes(self, a: Tensor) -> tuple[Tensor, Tensor]:
        least, most = self.phi.slopes(a)
        return least + self.ridge * a, most + self.ridge * a

    def conjugate(self, s: Tensor) -> Tensor:
        best = self.conjugate_grad(s)
        return total(best * s) - self.value(best)

    def gap(self, a: Tensor, s: Tensor) -> Tensor:
        best = self.conjugate_grad(s)
        of_phi = self.phi.gap(a, torch.sub(s, best, alpha=self.ridge))
        return of_phi + 0.5 * self.ridge * total((a - best).square_())

    def prox(self, a: Tensor, step: Step) -> Tensor:
        step = matched(step, a)
        shrink = 1 / (1 + step * self.ridge)
        return self.phi.prox(a * shrink, step * shrink)

    def prox_(self, a: Tensor, step: Step) -> Tensor:
        step = matched(step, a)
        shrink = 1 / (1 + step * self.ridge)
        return self.phi.prox_(a.mul_(shrink), step * shrink)

    def prox_tangent(self, a: Tensor, step: Step) -> Tangent:
        step = matched(step, a)
        shrink = 1 / (1 + step * self.ridge)
        return self.phi.prox_tangent(a * shrink, step * shrink).mapped(lambda e: e * shrink)

    def grad(self, a: Tensor) -> Tensor:
        try:
            return self.phi.grad(a).add(a, alpha=self.ridge)
        except MissingPropertyError:  # in the name of this function
            return super().grad(a)

    def hessian(self, a: Tensor) -> Tangent:
        try:
            return self.phi.hessian(a).mapped(lambda e: e + self.ridge)
        except MissingPropertyError:
            return super().hessian(a)

    def conjugate_grad(self, s: Tensor) -> Tensor:
        return self.phi.prox(s / self.ridge, 1 / self.ridge)

    def conjugate_hessian(self, s: Tensor) -> Tangent:
        tangent = self.phi.prox_tangent(s / self.ridge, 1 / self.ridge)
        return tangent.mapped(lambda e: e / self.ridge)

    def change(self, a: Tensor, radius: Tensor) -> Tensor:
        try:
            return self.phi.change(a, radius)
        except MissingPropertyError:
            return super().change(a, radius)

    def growth(self, a: Tensor, s: Tensor, radius: Tensor) -> tuple[Tensor, Tensor] | None:
        """That of phi at the subgradient s - ridge a0, and the ridge; the squares around a0 in the
        gap are >= 0.
        """
        of_phi = self.phi.growth(a, s - self.ridge * self.conjugate_grad(s), radius)
        return None if of_phi is None else (of_phi[0] + self.ridge, of_phi[1])

    def select(self, index: Tensor) -> Ridged:
        return Ridged(self.phi.select(index), self.ridge)

    def double(self) -> Ridged:
        return Ridged(self.phi.double(), self.ridge)


def ridged(function: Convex, ridge: float) -> Convex:
    """``function`` + ridge/2 |a|^2; itself without one."""
    return Ridged(function, ridge) if ridge else function
