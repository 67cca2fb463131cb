"""L-BFGS with a history and a line search of its own for every image, started from a preconditioner
that fits imaging.

Recursion (Nocedal and Wright, Numerical Optimization, Algorithms 7.4 and 7.5), g_k = grad h(x_k):
    d_k = -H_k g_k,   x_{k+1} = x_k + alpha d_k,   s = x_{k+1} - x_k,   y = g_{k+1} - g_k,
with H_k the BFGS update of gamma P over the last pairs (s, y), gamma = <s, y> / <y, P y>. P is the
inverse of averaged curvature (``linear.circulant``), made anew at x_k every few steps; the identity
where the potential offers no averages.

The line search is that of ``linesearch``: gradients only, one trial a step.

Within bounds it follows P(x_k + alpha d_k) (two-metric projection: Bertsekas, SIAM J. Control
Optim. 1982): pixels that a gradient step of length 1 / L takes to a bound go there, and the
recursion runs on the others, with pairs and P cut down to them. A pixel that is not held is farther
than g_i / L from the bound that -g points to, so that what the projection takes off a short step is
of second order in alpha: some alpha is accepted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core.asking import offers
from ..core.batch import dot, expand, norm, select_fields
from ..core.bounds import constants_of
from ..core.constraints import Domain, domain_of, masked
from ..core.cost import Cost
from ..core.offers import Averaged
from ..core.protocols import Potential
from ..core.ranges import check_number, tidy
from ..linear.circulant import ImagePreconditioner, preconditioner
from ..linear.free import preconditioner_on_free
from ..linear.precondition import Preconditioner
from .linesearch import accepts, shorter, watch

REJECTIONS = 12
"""Rejected trials in a row after which the history of an image is dropped."""

Pair = tuple[Tensor, Tensor, Tensor]
"""s (b, ...), y (b, ...), 1 / <s, y> (b,); zero in the last place switches the pair off for that
image.
"""


@dataclass
class LBFGSState:
    """``point`` with its gradient ``g``; the direction d, its slope and the next step size; the
    rest is bookkeeping.
    """

    point: Tensor
    g: Tensor
    d: Tensor
    slope: Tensor
    alpha: Tensor
    evidence: Tensor
    best: Tensor
    waiting: Tensor
    rejected: Tensor
    pairs: tuple[Pair, ...]
    P: ImagePreconditioner | None
    count: int
    cost: Cost

    def select(self, index: Tensor) -> LBFGSState:
        """The images ``index`` of the running batch."""
        pairs = tuple((s[index], y[index], rho[index]) for s, y, rho in self.pairs)
        P = None if self.P is None else self.P.select(index)
        return select_fields(self, index, pairs=pairs, P=P)


@dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS; one gradient per step, no function values.

    Args:
        memory: pairs kept, >= 1.
        refresh: steps after which the preconditioner is made anew (it costs about one gradient), >=
            1.

    Raises:
        InputError: a setting out of range.
    """

    memory: int = 5
    refresh: int = 8
    name: str = "lbfgs"
    bounded: ClassVar[bool] = True

    def __post_init__(self) -> None:
        tidy(self)
        check_number("memory", self.memory, lambda v: v >= 1, "an integer >= 1", integer=True)
        check_number("refresh", self.refresh, lambda v: v >= 1, "an integer >= 1", integer=True)

    def init(self, f: Potential, x0: Tensor) -> LBFGSState:
        """One gradient, and the averages of the curvature, at x0."""
        domain = domain_of(f)
        x0 = domain.project(x0)
        g = f.grad(x0)
        P, cost = averaged(f, x0)
        size = norm(domain.slope(x0, g))
        zeros = torch.zeros(x0.shape[0], dtype=torch.int64, device=x0.device)
        d = self._direction(f, domain, x0, g, (), P)
        return LBFGSState(
            x0,
            g,
            d,
            dot(g, d),
            torch.ones_like(size),
            size,
            size,
            zeros,
            zeros,
            (),
            P,
            0,
            cost + Cost(gradients=x0.shape[0]),
        )

    def step(self, f: Potential, state: LBFGSState) -> LBFGSState:
        """One trial of the line search; where it is accepted, the next direction."""
        domain = domain_of(f)
        move = expand(state.alpha, state.d) * state.d
        trial = domain.project(state.point + move)
        g, way, first = f.grad(trial), state.d, state.slope
        if not domain.everywhere:
            move = way = trial - state.point
            first = dot(state.g, way)
        slope = dot(g, way)
        accepted = accepts(slope, first, state.waiting)

        count, cost, P = state.count + 1, Cost(gradients=trial.shape[0]), state.P
        keep = expand(accepted, trial)
        pair = _pair(move, g - state.g, accepted)
        point, g = torch.where(keep, trial, state.point), torch.where(keep, g, state.g)
        if P is not None and count % self.refresh == 0:
            P, extra = averaged(f, point)
            cost += extra

        rejected = torch.where(accepted, 0, state.rejected + 1)
        hopeless = rejected >= REJECTIONS
        pairs = tuple(
            (s, y, torch.where(hopeless, 0.0, rho))
            for s, y, rho in (*state.pairs, pair)[-self.memory :]
        )
        anew = accepted | hopeless
        d = torch.where(expand(anew, g), self._direction(f, domain, point, g, pairs, P), state.d)
        size = norm(domain.slope(point, g))
        best, waiting = watch(size, state.best, state.waiting)

        # after the history has been dropped the search goes on at the length it had come down to
        cut = shorter(state.alpha, slope, first, rejected)
        same_length = cut * norm(state.d) / norm(d).clamp_min(torch.finfo(d.dtype).tiny)
        alpha = torch.where(accepted, 1.0, torch.where(hopeless, same_length, cut))
        return LBFGSState(
            point,
            g,
            d,
            dot(g, d),
            alpha,
            size,
            best,
            waiting,
            torch.where(hopeless, 0, rejected),
            pairs,
            P,
            count,
            cost,
        )

    @staticmethod
    def _direction(
        f: Potential,
        domain: Domain,
        x: Tensor,
        g: Tensor,
        pairs: tuple[Pair, ...],
        P: ImagePreconditioner | None,
    ) -> Tensor:
        """-H g on the pixels that are not held, and the way to the bound for those that are."""
        free = None if domain.everywhere else domain.movable(x, g, constants_of(f).L)
        slope, helper = masked(g, free), preconditioner_on_free(P, free)
        blind = None if P else _blind(f, slope)
        if free is not None:
            pairs = tuple(_on_free(pair, free) for pair in pairs)
        d = -_apply(pairs, helper, slope, blind)
        return d if free is None else torch.where(free, d, domain.toward(x, g))


def _on_free(pair: Pair, free: Tensor) -> Pair:
    """A pair cut down to the pixels ``free``; switched off where no curvature is left."""
    s, y, rho = masked(pair[0], free), masked(pair[1], free), pair[2]
    return _pair(s, y, rho > 0)


def _blind(f: Potential, g: Tensor) -> Tensor:
    """The first step size (b,) without any curvature: four times the safe one, since the secant
    rule can cut it; a step of length one where no L is known.
    """
    L = constants_of(f).L.to(g).expand(g.shape[0])
    length = norm(g).clamp_min(torch.finfo(g.dtype).tiny)
    return torch.where(torch.isfinite(L), 4.0 / L, 1.0 / length)


def averaged(f: Potential, x: Tensor) -> tuple[ImagePreconditioner | None, Cost]:
    """The preconditioner at x and what it cost; None where the potential offers no averages."""
    mean = f.mean_curvature(x) if offers(f, Averaged) else None
    if mean is None:
        return None, Cost()
    return preconditioner(mean), Cost(linearizations=x.shape[0])


def _pair(s: Tensor, y: Tensor, accepted: Tensor) -> Pair:
    """The pair of a step; switched off where the trial was rejected or rounding has eaten the
    curvature.
    """
    curvature = dot(s, y)
    good = accepted & (curvature > 10 * torch.finfo(s.dtype).eps * norm(s) * norm(y))
    return s, y, torch.where(good, 1 / curvature, 0.0)


def _apply(
    pairs: tuple[Pair, ...], P: Preconditioner | None, g: Tensor, blind: Tensor | None
) -> Tensor:
    """H g by the two-loop recursion; a pair with 1 / <s, y> = 0 does nothing."""
    q, factors = g, []
    for s, y, rho in reversed(pairs):
        a = rho * dot(s, q)
        q = torch.addcmul(q, expand(-a, y), y)
        factors.append(a)
    z = _scaled(pairs[-1] if pairs else None, P, q, blind)
    for (s, y, rho), a in zip(pairs, reversed(factors), strict=True):
        z = torch.addcmul(z, expand(a - rho * dot(y, z), s), s)
    return z


def _scaled(
    newest: Pair | None, P: Preconditioner | None, q: Tensor, blind: Tensor | None
) -> Tensor:
    """gamma P q with gamma from the newest pair, ``blind`` (one when None) for an image where that
    is switched off, and before there is one.
    """
    z = q if P is None else P(q)
    if newest is None:
        return z if blind is None else z * expand(blind, z)
    _, y, rho = newest
    otherwise = 1.0 if blind is None else blind
    gamma = torch.where(rho > 0, 1 / (rho * dot(y, y if P is None else P(y))), otherwise)
    return z * expand(gamma, z)
