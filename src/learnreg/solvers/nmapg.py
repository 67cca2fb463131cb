"""Nonmonotone accelerated gradient with line search (nmAPG): needs no L, survives nonconvexity; all
per image.

Recursion (Li and Lin, Accelerated proximal gradient methods for nonconvex programming, NIPS 2015,
supplement, Algorithm 4, without a nonsmooth term), g = grad F, from x_0 = x_1 = z_1, t_0 = 0, t_1 =
q_1 = 1, c_1 = F(x_1):
    y_k = x_k + t_{k-1}/t_k (z_k - x_k) + (t_{k-1} - 1)/t_k (x_k - x_{k-1})
    z_{k+1} = y_k - g(y_k)/L,   L <- L/rho until F(z_{k+1}) <= max(F(y_k), c_k) - delta ||z_{k+1} -
    y_k||^2 x_{k+1} = z_{k+1} if F(z_{k+1}) <= c_k - delta ||z_{k+1} - y_k||^2, otherwise the better
    of z_{k+1} and v_{k+1} = x_k - g(x_k)/L,   L <- L/rho until F(v_{k+1}) <= c_k - delta ||v_{k+1}
    - x_k||^2 t_{k+1} = (1 + sqrt(1 + 4 t_k^2))/2,   q_{k+1} = eta q_k + 1,   c_{k+1} = (eta q_k c_k
      + F(x_{k+1}))/q_{k+1}.
The searches start from L = ||dg||^2 / |<dg, dx>| (Barzilai and Borwein 1988), the first one for the
points y_k and y_{k-1}, the second one for x_k and y_k, kept within [L_min, bound on L]; the very
first search from L_init. So F(x_{k+1}) <= c_k <= the largest F(x_j), j <= k: values may rise, but
not above a mean of the latest ones.

Where values are noise. Values are compared with a ``slack`` of a few ulp of |c_k|. If even the
decrease a step promises, ||g||^2/L, is below it, no value is asked for: the image goes on blind, by
gradients alone. It takes x_{k+1} = z_{k+1}; L does not fall, and rises to 1.05 ||dg||/||dy|| where
that is larger; t starts again from 1 when <g(y_k), x_{k+1} - x_k> > 0 (O'Donoghue and Candes 2015,
gradient scheme); c and q stay.

Where a search fails: its trials are used up, or its steps are so short that values are noise. If
z_{k+1} fails, v_{k+1} is taken; if v_{k+1} fails, z_{k+1} is taken if it does not exceed c_k; if
both fail, the image starts again from x_k with t = 1 and a slack raised to ||g||^2/L, in case its
values are noisier than assumed. A slack beyond what rounding can explain means that values and
gradients contradict each other: the image is ``stuck``. It stays at x_k, its evidence is the
gradient norm there, it costs nothing more, and since it no longer improves the loop ends it: with
``MAX_STEPS``, or with ``ROUNDING_FLOOR`` if its gradient is as small as rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from ..core.batch import dot, expand, norm, put_fields, select_fields
from ..core.bounds import constants_of
from ..core.cost import Cost
from ..core.protocols import Potential
from ..core.ranges import check_flag, check_fraction, check_number, check_positive, tidy

ULPS = 8.0
"""Two values of an image are told apart when they differ by more than this many ulp."""

Batched = TypeVar("Batched", "NmAPGState", "_Move")


@dataclass
class NmAPGState:
    """``point`` is y_k, where the gradient ``g`` is known; ``x`` is x_k; the rest is (b,), scalars
    in float64.

    Attributes:
        L: the next search from ``point`` starts here.
        t, q, c: as in the recursion, with index k.
        noise: the rounding level of values that failed searches have taught, 0 while none has
            failed.
        stuck: both searches failed and rounding is no excuse; the image does not move any more.
    """

    point: Tensor
    g: Tensor
    x: Tensor
    L: Tensor
    t: Tensor
    q: Tensor
    c: Tensor
    noise: Tensor
    stuck: Tensor
    evidence: Tensor
    cost: Cost

    def select(self, index: Tensor) -> NmAPGState:
        """The images ``index`` of the running batch."""
        return select_fields(self, index)


@dataclass
class _Move:
    """From (x_k, y_k) to (x_{k+1}, z_{k+1}); ``value`` is that of x_{k+1} where it is ``known``."""

    x: Tensor
    z: Tensor
    value: Tensor
    L: Tensor
    t: Tensor
    known: Tensor
    failed: Tensor
    cost: Cost

    def select(self, index: Tensor) -> _Move:
        return select_fields(self, index)


@dataclass
class _Search:
    """``z`` and its ``value``, the 1/``L`` that led there, ``d`` = ||z - base||^2; the last trial
    if not ``ok``.
    """

    z: Tensor
    value: Tensor
    L: Tensor
    d: Tensor
    ok: Tensor
    cost: Cost


@dataclass(frozen=True)
class NmAPG:
    """Nonmonotone accelerated gradient; usually one gradient and one value per iteration and image.

    An iteration costs the gradient at y_{k+1}, the point it hands over (none is needed at x_{k+1}),
    and the value at z_{k+1}, which usually is that of x_{k+1}. Each further trial of a search costs
    a value; the value at y_k is asked for only if the first trial misses c_k; a second search costs
    a gradient and at least one value. An image that is done with a search is not evaluated in its
    later trials. A blind iteration costs one gradient.

    Args:
        rho: a trial that fails divides L by this; in (0, 1).
        delta: sufficient decrease, positive.
        eta: memory of the reference value c; in [0, 1), 0 for a monotone method.
        trials: most trials per search; rho^-trials should span the curvatures from L_min on (7e6 by
            default).
        L_init: the first step of all is 1/L_init.
        L_min: no search starts with a step longer than 1/L_min.
        restart: t starts again from 1 when <g(y_k), z_{k+1} - x_k> > 0, also where values can tell.
            Not in the paper; without it momentum grows for ever, which strongly convex energies
            repay with several times the work.

    Raises:
        InputError: a setting out of range; the message names it.
    """

    rho: float = 0.9
    delta: float = 0.1
    eta: float = 0.8
    trials: int = 150
    L_init: float = 10.0
    L_min: float = 1.0
    restart: bool = False
    name: str = "nmapg"

    def __post_init__(self) -> None:
        tidy(self)
        check_fraction("rho", self.rho)
        check_positive("delta", self.delta)
        check_number("eta", self.eta, lambda v: 0 <= v < 1, "a number in [0, 1)")
        check_number("trials", self.trials, lambda v: v >= 1, "an integer >= 1", integer=True)
        check_positive("L_init", self.L_init)
        check_positive("L_min", self.L_min)
        check_flag("restart", self.restart)

    @torch.no_grad()
    def init(self, f: Potential, x0: Tensor) -> NmAPGState:
        """One gradient and one value at x0."""
        size, g, c = x0.shape[0], f.grad(x0), f.value(x0).double()
        one = torch.ones_like(c)
        return NmAPGState(
            x0,
            g,
            x0,
            self.L_init * one,
            one,
            one,
            c,
            0 * one,
            one < 0,
            norm(g),
            Cost(values=size, gradients=size),
        )

    @torch.no_grad()
    def step(self, f: Potential, state: NmAPGState) -> NmAPGState:
        """One iteration; images that are stuck, or have met NaN or Inf, stay as they are and cost
        nothing.
        """
        able = torch.nonzero(~state.stuck & torch.isfinite(state.evidence)).flatten()
        if able.numel() == state.stuck.numel():
            return self._advance(f, state)
        idle = replace(state, cost=Cost())
        return (
            _put(idle, able, self._advance(f.select(able), state.select(able)))
            if able.numel()
            else idle
        )

    def _advance(self, f: Potential, s: NmAPGState) -> NmAPGState:
        """One iteration for the whole batch: move, extrapolate, evaluate the gradient there."""
        slack = torch.maximum(s.noise, ULPS * torch.finfo(s.x.dtype).eps * s.c.abs())
        move = self._move(f, s, slack)
        t = 0.5 * (1 + torch.sqrt(1 + 4 * move.t.square()))
        y = (
            move.x
            + _spread(move.t / t, s.x) * (move.z - move.x)
            + _spread((move.t - 1) / t, s.x) * (move.x - s.x)
        )
        g = f.grad(y)
        evidence, dg, dy = norm(g), g - s.g, y - s.point
        q = torch.where(move.known, self.eta * s.q + 1, s.q)
        c = torch.where(move.known, (self.eta * s.q * s.c + move.value) / q, s.c)
        L = torch.where(
            move.known, self._estimate(f, dg, dy, move.L), self._raised(f, dg, dy, move.L)
        )
        learnt = torch.maximum(2 * slack, evidence.double().square() / self._within(f, move.L))
        noise = torch.where(move.failed, learnt, s.noise)
        stuck = move.failed & ~(noise <= _explicable(f, s))
        return NmAPGState(
            y, g, move.x, L, t, q, c, noise, stuck, evidence, move.cost + Cost(gradients=y.shape[0])
        )

    def _move(self, f: Potential, s: NmAPGState, slack: Tensor) -> _Move:
        """Searches for the images whose values can tell something, blind steps for the others."""
        seeing = torch.nonzero(~(s.evidence.double().square() / s.L <= slack)).flatten()
        if seeing.numel() == slack.numel():
            return self._searched(f, s, slack)
        z = s.point - s.g / _spread(s.L, s.g)
        no = torch.zeros_like(s.stuck)
        blind = _Move(z, z, s.c, s.L, _restarted(s, z), no, no, Cost())
        if not seeing.numel():
            return blind
        return _put(
            blind, seeing, self._searched(f.select(seeing), s.select(seeing), slack[seeing])
        )

    def _searched(self, f: Potential, s: NmAPGState, slack: Tensor) -> _Move:
        """z_{k+1} by the first search; where it misses c_k, the second decides."""
        first = self._search(f, s.point, s.g, s.L, s.c, slack, at_base=True)
        t = _restarted(s, first.z) if self.restart else s.t
        move = _Move(first.z, first.z, first.value, first.L, t, first.ok, ~first.ok, first.cost)
        missed = torch.nonzero(
            ~(first.ok & (first.value <= s.c - self.delta * first.d + slack))
        ).flatten()
        if not missed.numel():
            return move
        return _put(
            move,
            missed,
            self._second(f.select(missed), s.select(missed), slack[missed], move.select(missed)),
        )

    def _second(self, f: Potential, s: NmAPGState, slack: Tensor, first: _Move) -> _Move:
        """The better of z_{k+1} and v_{k+1}; where no search has found anything, x_k and a new
        start.
        """
        g = f.grad(s.x)
        L = self._estimate(f, g - s.g, s.x - s.point, s.L)
        second = self._search(f, s.x, g, L, s.c, slack)
        keep = first.known & torch.where(
            second.ok, first.value <= second.value, first.value <= s.c + slack
        )
        failed = ~keep & ~second.ok
        x = _where(keep, first.x, _where(failed, s.x, second.z))
        return _Move(
            x,
            _where(first.known & ~failed, first.z, x),
            torch.where(keep, first.value, second.value),
            torch.where(keep, first.L, second.L),
            torch.where(failed, 1.0, first.t),
            ~failed,
            failed,
            second.cost + Cost(gradients=slack.numel()),
        )

    def _search(
        self,
        f: Potential,
        base: Tensor,
        g: Tensor,
        L: Tensor,
        c: Tensor,
        slack: Tensor,
        at_base: bool = False,
    ) -> _Search:
        """The first trial, and shorter steps from ``base`` where its value is not low enough.

        Args:
            c: (b,), what must be undercut.
            at_base: undercutting the value at ``base`` is enough; it is evaluated where the first
                trial misses c.
        """
        z, slope, spent = base - g / _spread(L, g), norm(g).double().square(), c.numel()
        value, d = f.value(z).double(), slope / L.square()
        low = value <= c - self.delta * d + slack
        if at_base and not bool(low.all()):
            missed = torch.nonzero(~low).flatten()
            h = f if missed.numel() == c.numel() else f.select(missed)
            c = c.index_copy(0, missed, torch.maximum(c[missed], h.value(base[missed]).double()))
            low, spent = value <= c - self.delta * d + slack, spent + missed.numel()
        found = _Search(z, value.clone(), L.clone(), d, low, Cost(values=spent))
        if not bool(low.all()):
            self._shorten(f, base, g, slope, c, slack, found)
        return found

    def _shorten(
        self,
        f: Potential,
        base: Tensor,
        g: Tensor,
        slope: Tensor,
        c: Tensor,
        slack: Tensor,
        found: _Search,
    ) -> None:
        """The later trials of a search, entered in ``found``; ``slope`` (b,) is ||g||^2."""
        left = torch.nonzero(~found.ok).flatten()
        for _ in range(self.trials - 1):
            left = left[~(slope[left] * self.rho / found.L[left] <= slack[left])]
            if not left.numel():
                return
            L = found.L[left] / self.rho
            z = base[left] - g[left] / _spread(L, g)
            value = (f if left.numel() == c.numel() else f.select(left)).value(z).double()
            d = slope[left] / L.square()
            low = value <= c[left] - self.delta * d + slack[left]
            found.z[left], found.value[left], found.L[left], found.d[left], found.ok[left] = (
                z,
                value,
                L,
                d,
                low,
            )
            found.cost += Cost(values=left.numel())
            left = left[~low]

    def _estimate(self, f: Potential, dg: Tensor, dx: Tensor, otherwise: Tensor) -> Tensor:
        """||dg||^2 / |<dg, dx>| per image, where it is defined."""
        L = (dot(dg, dg) / dot(dg, dx).abs()).double()
        return torch.where(torch.isfinite(L), self._within(f, L), otherwise)

    def _raised(self, f: Potential, dg: Tensor, dx: Tensor, L: Tensor) -> Tensor:
        """L, or slightly more than ||dg|| / ||dx|| if that is larger: a smaller L has just been
        refuted.
        """
        ratio = 1.05 * (norm(dg) / norm(dx)).double()
        return torch.where(ratio > L, self._within(f, ratio), L)

    def _within(self, f: Potential, L: Tensor) -> Tensor:
        """L within [L_min, bound]: for convex h only rounding takes an estimate beyond the
        bound.
        """
        most = constants_of(f).L.clamp_min(self.L_min)
        return torch.minimum(L.clamp_min(self.L_min), most)


def _restarted(s: NmAPGState, x: Tensor) -> Tensor:
    """t_k (b,), 1 where the move from x_k to ``x`` goes uphill by the gradient at y_k."""
    return torch.where(dot(s.g, x - s.x) > 0, 1.0, s.t)


def _explicable(f: Potential, s: NmAPGState) -> Tensor:
    """The largest error of a value (b,) that rounding can explain: a quadratic form has terms as
    large as L ||x||^2.
    """
    bound = constants_of(f).L
    L = torch.where(torch.isfinite(bound), bound, s.L)
    return torch.finfo(s.x.dtype).eps * (100 * s.c.abs() + L * norm(s.x).double().square())


def _spread(scalars: Tensor, like: Tensor) -> Tensor:
    """(b,) in float64 -> (b, 1, ..., 1) in the dtype of ``like``."""
    return expand(scalars.to(like.dtype), like)


def _where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Whole images of a or b, by a condition (b,)."""
    return torch.where(expand(condition, a), a, b)


def _put(whole: Batched, index: Tensor, part: Batched) -> Batched:
    """``whole`` with the images ``index`` replaced; what ``part`` has cost is added."""
    return put_fields(whole, index, part, cost=whole.cost + part.cost)
