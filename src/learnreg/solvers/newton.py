"""Inexact Newton methods: Newton-CG, and the primal-dual Newton method for potentials that are
nearly non-smooth.

Newton-CG (Dembo, Eisenstat and Steihaug, SIAM J. Numer. Anal. 1982), g = grad h(x), H the Hessian
at x:
    ||H d + g|| <= eta ||g|| by preconditioned conjugate gradients,   x <- x + alpha d.

Primal-dual (Chan, Golub and Mulet, SIAM J. Sci. Comput. 1999; as a semismooth method for Huber-type
total variation Kunisch and Pock, SIAM J. Imaging Sci. 2013): write the slope of a potential as a
variable p of its own, p = s'(u) with s(u) = sqrt(1 + u^2), and linearize s(u) p = u instead of p =
u / s(u). Eliminating p leaves the same system with the curvature (1 - p u / s) / s in the place of
s^-3; p then follows by the linearized equation and is kept in |p| <= 1. Where u jumps across the
kink the plain Newton direction overshoots, this one does not.

Within bounds both are two-metric projections (Bertsekas, SIAM J. Control Optim. 1982): the system
is solved on the pixels that a gradient step of length 1 / L does not take to a bound, the others go
there, and the line search follows P(x + alpha d).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ..core.asking import offers
from ..core.batch import dot, expand, norm, select_fields
from ..core.bounds import constants_of
from ..core.constraints import Domain, domain_of, masked
from ..core.cost import Cost
from ..core.errors import MissingPropertyError
from ..core.offers import DualVariable
from ..core.protocols import Hessian, Potential
from ..core.ranges import check_fraction, check_number, tidy
from ..linear.cg import cg
from ..linear.free import on_free, preconditioner_on_free
from .lbfgs import averaged
from .linesearch import accepts, shorter, watch

TRIALS = 12
"""Trials of one line search; the last is taken as it is, and an image that does not improve ends as
stalled.
"""


class DualPotential(Potential, DualVariable, Protocol):
    """A potential with the slopes of its kinks as variables of their own."""


@dataclass
class NewtonState:
    """``point`` with its gradient ``g``; ``dual`` holds p, empty for Newton-CG."""

    point: Tensor
    g: Tensor
    evidence: Tensor
    best: Tensor
    waiting: Tensor
    dual: tuple[Tensor, ...]
    cost: Cost

    def select(self, index: Tensor) -> NewtonState:
        """The images ``index`` of the running batch."""
        return select_fields(self, index, dual=tuple(p[index] for p in self.dual))


@dataclass(frozen=True)
class NewtonCG:
    """Newton's method with inexact steps; a step costs its CG products, one linearization and at
    least one gradient.

    Args:
        forcing: eta, the relative residual of the linear system, in (0, 1).
        inner_steps: of conjugate gradients in one Newton step, >= 1.

    Raises:
        InputError: a setting out of range.
    """

    forcing: float = 0.1
    inner_steps: int = 200
    name: str = "newton"
    bounded: ClassVar[bool] = True

    def __post_init__(self) -> None:
        tidy(self)
        _check(self)

    def init(self, f: Potential, x0: Tensor) -> NewtonState:
        """One gradient at x0."""
        return _start(f, x0, ())

    def step(self, f: Potential, state: NewtonState) -> NewtonState:
        """One Newton step."""
        moved, _ = _step(self, f, state, f.linearize)
        return moved


@dataclass(frozen=True)
class PrimalDualNewton:
    """Newton's method on the primal-dual system: few steps even where the smoothing is tiny.

    The potential must offer ``dual_start``, ``dual_linearize`` and ``dual_update`` (TV and Fields
    of Experts do).

    Args:
        forcing, inner_steps: as in NewtonCG.

    Raises:
        InputError: a setting out of range.
        MissingPropertyError: at the start, for an energy without a dual variable.
    """

    forcing: float = 0.1
    inner_steps: int = 200
    name: str = "primal_dual_newton"
    bounded: ClassVar[bool] = True

    def __post_init__(self) -> None:
        tidy(self)
        _check(self)

    def init(self, f: DualPotential, x0: Tensor) -> NewtonState:
        """One gradient, and p = s'(u), at x0."""
        if not offers(f, DualVariable):
            raise MissingPropertyError(
                "energy",
                given=f"a {type(f).__name__} with no dual_start, dual_linearize, dual_update",
                expected="a dual variable",
                remedy="Use solver='newton' or solver='lbfgs', which need none.",
            )
        return _start(f, x0, f.dual_start(x0))

    def step(self, f: DualPotential, state: NewtonState) -> NewtonState:
        """One Newton step of x, and p by its linearized equation."""
        moved, move = _step(self, f, state, lambda x: f.dual_linearize(x, state.dual))
        cost = moved.cost + Cost(linearizations=move.shape[0])
        return replace(moved, dual=f.dual_update(state.point, state.dual, move), cost=cost)


def _check(settings: NewtonCG | PrimalDualNewton) -> None:
    check_fraction("forcing", settings.forcing)
    check_number(
        "inner_steps", settings.inner_steps, lambda v: v >= 1, "an integer >= 1", integer=True
    )


def _start(f: Potential, x0: Tensor, dual: tuple[Tensor, ...]) -> NewtonState:
    domain = domain_of(f)
    x0 = domain.project(x0)
    g = f.grad(x0)
    size = norm(domain.slope(x0, g))
    waiting = torch.zeros(x0.shape[0], dtype=torch.int64, device=x0.device)
    images = x0.shape[0]
    cost = Cost(gradients=images, linearizations=images if dual else 0)
    return NewtonState(x0, g, size, size, waiting, dual, cost)


def _step(
    settings: NewtonCG | PrimalDualNewton,
    f: Potential,
    state: NewtonState,
    linearize: Callable[[Tensor], Hessian],
) -> tuple[NewtonState, Tensor]:
    """The next state (its dual untouched) and the move that was made."""
    x, g, domain = state.point, state.g, domain_of(f)
    free = domain.movable(x, g, constants_of(f).L)
    P, spent = averaged(f, x)
    slope = masked(g, free)
    tol = (settings.forcing * norm(slope)).double().clamp_min(torch.finfo(g.dtype).tiny)
    # no restarts: a direction that is off by rounding is as good a direction
    solved = cg(
        on_free(linearize(x), free),
        -slope,
        tol,
        None,
        preconditioner_on_free(P, free),
        max_steps=settings.inner_steps,
        restarts=0,
    )

    d = solved.value if free is None else torch.where(free, solved.value, domain.toward(x, g))
    found = _search(f, domain, x, d, g, state.waiting)
    size = norm(domain.slope(found.x, found.g))
    best, waiting = watch(size, state.best, state.waiting)
    cost = spent + solved.cost + found.cost + Cost(linearizations=x.shape[0])
    return NewtonState(found.x, found.g, size, best, waiting, state.dual, cost), found.x - x


@dataclass
class _Found:
    x: Tensor
    g: Tensor
    cost: Cost


def _search(
    f: Potential, domain: Domain, x: Tensor, d: Tensor, g0: Tensor, waiting: Tensor
) -> _Found:
    """Backtracking from the full step; only the images that still search are evaluated."""
    alpha = torch.ones_like(dot(g0, d))
    new = domain.project(x + d)
    g = f.grad(new)
    cost = Cost(gradients=x.shape[0])
    way = d if domain.everywhere else new - x
    first, slope = dot(g0, way), dot(g, way)
    for _ in range(TRIALS - 1):
        again = torch.nonzero(~accepts(slope, first, waiting)).flatten()
        if not again.numel():
            break
        alpha[again] = shorter(alpha[again], slope[again], first[again])
        everyone = again.numel() == x.shape[0]
        part, inside = (f, domain) if everyone else (f.select(again), domain.select(again))
        new[again] = inside.project(x[again] + expand(alpha[again], d[again]) * d[again])
        g[again] = part.grad(new[again])
        if not domain.everywhere:
            way[again] = new[again] - x[again]
            first[again] = dot(g0[again], way[again])
        slope[again] = dot(g[again], way[again])
        cost += Cost(gradients=again.numel())
    return _Found(new, g, cost)
