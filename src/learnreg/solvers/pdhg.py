"""Primal-dual hybrid gradient for saddle functions, with block step sizes and everything per image.

Recursion (Chambolle and Pock, J. Math. Imaging Vis. 40, 2011, Algorithms 1 to 3), with block steps
tau_i = t T_i and sigma_j = S_j / t (Pock and Chambolle, ICCV 2011, in block form), where ||S^(1/2)
K T^(1/2)|| <= 1:
    p+ = prox_{sigma f*}( p + sigma (K xbar + b) ),   x+ = prox_{tau g}( x - tau K^T p+ ),
    K xbar+ = K x+ + theta (K x+ - K x).
K x and K^T p are kept, so that the primal-dual gap of an iterate costs no further application of K.

Rules for t and theta:
- ``basic``: t = balance, theta = 1; converges for every convex problem.
- ``accelerated``: theta = 1 / sqrt(1 + 2 gamma t), t+ = theta t with gamma = min_i mu_i T_i > 0;
  the gap falls as 1/k^2.
- ``linear``: T_i = m / (2 mu_i), S_j = m / (2 mu_j), t = 1, theta = 1 / (1 + m), where m / 2 is one
  over ||K|| in the metric of the moduli; the squared distance falls by theta per iteration. For g
  and f* strongly convex only.
- ``balanced``: where f names majorants of K_u^T K_u (an expensive A in K), steps in a metric, see
  ``metric.py``. Elsewhere t is adapted at moments that become rare geometrically, and is constant
  between them. With gamma > 0: as accelerated until t has come down to the ratio of the recent
  moves of x and p in the metric of T and S; then t follows that ratio (the idea of the primal
  weight of PDLP, Applegate et al., NeurIPS 2021). With gamma = 0, or next to it: t is drawn to
  where the part of the gap that longer primal steps reduce equals the part that longer dual steps
  reduce. It steers speed only: no certificate depends on step sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..core.asking import offers
from ..core.batch import expand
from ..core.cost import Cost
from ..core.errors import InputError, MissingPropertyError
from ..core.protocols import Blocks, SplitSaddle
from ..core.ranges import check_choice, check_number, check_positive, tidy
from .metric import Metric, Point
from .offers import Halved
from .pdhg_state import PDHGState, Steps

Rule = Literal["auto", "basic", "accelerated", "linear", "balanced"]

FIRST_WINDOW = 20
"""Iterations between the first two looks at the moves."""

MOVES = 0.3
"""t is drawn to this multiple of the ratio of the moves (0.3 to 1 do equally well, 3 is slower;
measured on TV).
"""

GROWTH = 1.5
"""Of the window between two looks."""

SLOW_GROWTH = 1.2
"""The same for a weak gamma: the parts of the gap change for long (a fifth fewer iterations)."""

WEAK = 0.1
"""A gamma below it is no guide where the curvature of g is larger elsewhere: t would take hundreds
of iterations to come down. Steps then follow the gap, as for gamma = 0, and every iteration goes on
beyond its own end, as in a metric: three to eight times fewer iterations to a certified distance
(inpainting, L1 and KL with a tikhonov of 1e-3).
"""

LARGEST_CHANGE = 3.0
"""Of t at one moment: a block that has come to rest moves by rounding only, and its part of the gap
is nothing.
"""


def operator_norm(
    norms: Sequence[Sequence[float]], primal: Sequence[float], dual: Sequence[float]
) -> float:
    """||S^(1/2) N T^(1/2)||, a bound of the operator norm with the blocks replaced by their
    norms.
    """
    table = torch.tensor(
        [
            [math.sqrt(s) * math.sqrt(t) * n for n, t in zip(row, primal, strict=True)]
            for row, s in zip(norms, dual, strict=True)
        ],
        dtype=torch.float64,
    )
    return float(torch.linalg.matrix_norm(table, 2))


def block_steps(f: SplitSaddle, rule: Rule, balance: float) -> Steps:
    """The steps of a saddle function ``f`` under a rule.

    Raises:
        MissingPropertyError: the rule needs strong convexity that is not there.
    """
    moduli = f.moduli()
    mu_g, mu_f = moduli[: len(f.primal)], moduli[len(f.primal) :]
    if rule == "linear":
        if min(moduli) <= 0:
            raise MissingPropertyError(
                "rule",
                given="linear, with g or f* not strongly convex",
                expected="strong convexity of both",
                remedy="Use rule='auto', or smooth the regularizer (rounding, curvature) and add "
                "tikhonov.",
            )
        T, S = [1 / m for m in mu_g], [1 / m for m in mu_f]
        m = 2 / (operator_norm(f.norms, T, S) or 1.0)  # K = 0 bears any steps
        # t = 1 and the factor m / 2 in both: tau = m / (2 mu), sigma = m / (2 mu)
        return Steps(tuple(m / 2 * a for a in T), tuple(m / 2 * a for a in S), 1.0, 1 / (1 + m))

    columns = [sum(row[i] for row in f.norms) for i in range(len(mu_g))]
    rows = [sum(row) for row in f.norms]
    T, S = ([1 / (n or 1.0) for n in sums] for sums in (columns, rows))
    size = operator_norm(f.norms, T, S) or 1.0
    T = [a / size for a in T]
    S = [a / size for a in S]

    gamma = min(m * a for m, a in zip(mu_g, T, strict=True))
    varying = any(g.strong < 0.1 * g.smooth for g in f.primal)
    weak = rule in ("auto", "balanced") and 0 < gamma < WEAK and varying
    if weak:
        gamma = 0.0
    if rule == "accelerated" and gamma <= 0:
        raise MissingPropertyError(
            "rule",
            given="accelerated, with g not strongly convex in every block",
            expected="a strongly convex g",
            remedy="Use rule='auto', or add tikhonov.",
        )
    first = 10.0 if gamma > 0 else 1.0  # acceleration shortens t by itself
    return Steps(
        tuple(T), tuple(S), balance if rule == "basic" else max(balance, first), 1.0, gamma, weak
    )


def check_steps(f: SplitSaddle, primal: Sequence[float], dual: Sequence[float]) -> None:
    """Refuse steps with tau sigma ||K||^2 > 1, for which the method may diverge.

    Raises:
        InputError: with the factor by which they are too long.
    """
    size = operator_norm(f.norms, primal, dual) ** 2
    if not size <= 1 + 1e-9:
        raise InputError(
            "steps",
            given=f"tau sigma ||K||^2 = {size:.4g}",
            expected="at most 1",
            remedy=f"Multiply tau and sigma by {size**-0.5:.3g}, or leave them to the rule.",
        )


@dataclass(frozen=True)
class PDHG:
    """Primal-dual hybrid gradient; a step of it is ``interval`` iterations, each one application of
    K and one of K^T.

    Args:
        rule: see above; ``auto`` is ``balanced``.
        balance: the first t (and the only one of ``basic``): larger for longer primal and shorter
            dual steps.
        tau, sigma: fixed step sizes for all blocks in the place of the rule's (then theta = 1).
        interval: iterations between two looks at the evidence.

    Raises:
        InputError: a value out of range; at the first step, tau and sigma with tau sigma ||K||^2 >
            1.
        MissingPropertyError: at the first step, a rule that needs more strong convexity.
    """

    rule: Rule = "auto"
    balance: float = 1.0
    tau: float | None = None
    sigma: float | None = None
    interval: int = 10
    name: str = "pdhg"

    def __post_init__(self) -> None:
        tidy(self)
        check_choice("rule", self.rule, ("auto", "basic", "accelerated", "linear", "balanced"))
        check_positive("balance", self.balance)
        check_positive("tau", self.tau, optional=True)
        check_positive("sigma", self.sigma, optional=True)
        if (self.tau is None) != (self.sigma is None):
            raise InputError(
                "tau, sigma", given=f"{self.tau}, {self.sigma}", expected="both or none"
            )
        check_number("interval", self.interval, lambda v: v >= 1, "an integer >= 1", integer=True)

    def steps(self, f: SplitSaddle) -> Steps:
        """The steps for a saddle function."""
        if self.tau is not None and self.sigma is not None:
            fixed = Steps((self.tau,) * len(f.primal), (self.sigma,) * len(f.dual))
            check_steps(f, fixed.primal, fixed.dual)
            return fixed
        return block_steps(f, self.rule, self.balance)

    @property
    def _follows(self) -> bool:
        return self.tau is None and self.rule in ("auto", "balanced")

    def init(self, f: SplitSaddle, z0: Tensor) -> PDHGState:
        """One application of K and K^T at the packed start z0 (b, n)."""
        steps = self.steps(f)
        x, p = f.unpack(z0)
        kx, ktp = f.apply(x), f.adjoint(p)
        size = z0.shape[0]
        ones = torch.ones(size, dtype=z0.dtype, device=z0.device)
        known = f.tempo(z0) if self._follows else 0 * ones
        t = torch.where(known > 0, known, steps.t * ones)
        shrinking = (
            steps.gamma > 0
            and self.tau is None
            and self.rule in ("auto", "balanced", "accelerated")
        )
        state = PDHGState(
            f,
            steps,
            x,
            p,
            kx,
            kx,
            ktp,
            t,
            steps.theta * ones,
            (known == 0) & shrinking,
            (x, p),
            0,
            FIRST_WINDOW,
            f.evidence(x, p, kx, ktp),
            Cost(gradients=size),
            fresh=_apart(kx, x),
        )
        metric = Metric.first(f, p, kx) if self._follows else None
        return (
            state
            if metric is None
            else replace(state, metric=metric, anchor=(p, kx), window=metric.first_window)
        )

    def step(self, f: SplitSaddle, state: PDHGState) -> PDHGState:
        """``interval`` iterations."""
        for count in range(self.interval):
            if state.metric is not None:
                state = self._in_metric(f, state, state.metric)
            elif state.steps.weak:
                state = self._relaxed(f, state)
            else:
                state = self._iterate(f, state, state.fresh and count > 1)
        evidence = f.evidence(state.x, state.p, state.kx, state.ktp)
        return replace(
            state, f=f, evidence=evidence, cost=Cost(gradients=self.interval * state.t.shape[0])
        )

    def _iterate(self, f: SplitSaddle, s: PDHGState, own: bool) -> PDHGState:
        """One iteration; ``own`` says that K x before was made in this step, and is free to be
        written over.
        """
        p = tuple(
            phi.prox_conjugate_(_ahead(q, a, old, sigma, s.theta, own), sigma)
            for phi, q, a, old, sigma in zip(
                f.dual, s.p, s.kx, s.before, _over(s.steps.dual, s.t, s.p), strict=True
            )
        )
        ktp = f.adjoint(p)
        x = tuple(
            g.prox_(torch.addcmul(a, k, tau, value=-1), tau)
            for g, a, k, tau in zip(
                f.primal, s.x, ktp, _times(s.steps.primal, s.t, s.x), strict=True
            )
        )
        kx = f.apply(x)
        theta, t = s.theta, s.t
        if s.steps.gamma > 0:
            theta = torch.where(s.accelerating, torch.rsqrt(1 + 2 * s.steps.gamma * t), 1.0)
            t = t * theta
        s = replace(
            s, f=f, x=x, p=p, kx=kx, before=s.kx, ktp=ktp, t=t, theta=theta, since=s.since + 1
        )
        return self._followed(s) if self._follows and s.since >= s.window else s

    def _relaxed(self, f: SplitSaddle, s: PDHGState) -> PDHGState:
        """One iteration that goes on beyond its own end."""
        at = Point(s.x, s.p, s.kx, s.ktp) if s.relaxed is None else s.relaxed
        taus, sigmas = _times(s.steps.primal, s.t, at.x), _over(s.steps.dual, s.t, at.p)
        x = tuple(
            g.prox_(torch.addcmul(a, k, tau, value=-1), tau)
            for g, a, k, tau in zip(f.primal, at.x, at.ktp, taus, strict=True)
        )
        kx = f.apply(x)
        p = tuple(
            phi.prox_conjugate_(q + sigma * (2 * a - before), sigma)
            for phi, q, a, before, sigma in zip(f.dual, at.p, kx, at.kx, sigmas, strict=True)
        )
        new = Point(x, p, kx, f.adjoint(p))
        s = replace(s, f=f, x=x, p=p, kx=kx, ktp=new.ktp, before=kx)
        s = replace(s, relaxed=at.toward(new), since=s.since + 1)
        return self._followed(s) if self._follows and s.since >= s.window else s

    def _in_metric(self, f: SplitSaddle, s: PDHGState, metric: Metric) -> PDHGState:
        """One iteration with the image stepped in a metric."""
        at = Point(s.x, s.p, s.kx, s.ktp) if s.relaxed is None else s.relaxed
        new = metric.step(f, at)
        s = replace(
            s,
            f=f,
            x=new.x,
            p=new.p,
            kx=new.kx,
            ktp=new.ktp,
            relaxed=at.toward(new),
            since=s.since + 1,
        )
        if s.since < s.window:
            return s
        metric = metric.followed(new.p, new.kx, s.anchor)
        return replace(s, metric=metric, anchor=(new.p, new.kx), since=0, window=_longer(s.window))

    def _followed(self, s: PDHGState) -> PDHGState:
        """t after a look at how far x and p have moved since the last one."""
        window = _longer(s.window, SLOW_GROWTH if s.steps.weak else GROWTH)
        if s.steps.gamma <= 0 and offers(s.f, Halved):
            of_primal, of_dual = s.f.halves(s.x, s.p, s.kx, s.ktp)
            ratio = (of_primal / of_dual).sqrt().clamp(1 / LARGEST_CHANGE, LARGEST_CHANGE)
            return replace(
                s, t=torch.where(torch.isfinite(ratio), s.t * ratio, s.t), since=0, window=window
            )
        ratio = (
            MOVES
            * _moved(s.x, s.anchor[0], s.steps.primal)
            / _moved(s.p, s.anchor[1], s.steps.dual)
        )
        usable = torch.isfinite(ratio) & (ratio > 0)
        accelerating = s.accelerating & ~(usable & (s.t <= ratio))
        drawn = (s.t * ratio).sqrt().clamp(s.t / LARGEST_CHANGE, s.t * LARGEST_CHANGE)
        t = torch.where(usable & ~accelerating, drawn, s.t)
        return replace(s, t=t, accelerating=accelerating, anchor=(s.x, s.p), since=0, window=window)


def _longer(window: int, growth: float = GROWTH) -> int:
    return max(window + 1, math.ceil(growth * window))


def _apart(kx: Blocks, x: Blocks) -> bool:
    """Whether no block of K x shares its memory with one of x, as it would for K = I."""
    taken = {a.untyped_storage().data_ptr() for a in x}
    return all(a.untyped_storage().data_ptr() not in taken for a in kx)


def _times(scales: tuple[float, ...], t: Tensor, blocks: Blocks) -> list[Tensor]:
    """tau_i = t T_i, ready to multiply the blocks."""
    return [expand(scale * t, b) for scale, b in zip(scales, blocks, strict=True)]


def _over(scales: tuple[float, ...], t: Tensor, blocks: Blocks) -> list[Tensor]:
    """sigma_j = S_j / t, ready to multiply the blocks."""
    return [expand(scale / t, b) for scale, b in zip(scales, blocks, strict=True)]


def _ahead(
    p: Tensor, kx: Tensor, before: Tensor, sigma: Tensor, theta: Tensor, own: bool
) -> Tensor:
    """p + sigma (K x + theta (K x - K x before)), in the place of K x before if it is ``own``."""
    further = expand(theta, p) * sigma
    behind = torch.addcmul(p, before, further, value=-1, out=before if own else None)
    return behind.addcmul_(kx, further.add_(sigma))


def _moved(now: Blocks, then: Blocks, scales: tuple[float, ...]) -> Tensor:
    """sqrt(sum_i ||now_i - then_i||^2 / scale_i) per image (b,)."""
    parts = [
        (a - b).flatten(1).square().sum(dim=1) / c
        for a, b, c in zip(now, then, scales, strict=True)
    ]
    return torch.stack(parts).sum(dim=0).sqrt()
