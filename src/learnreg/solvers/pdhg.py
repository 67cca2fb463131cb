"""Primal-dual hybrid gradient for saddle functions, with block step sizes and everything per image.

Recursion (Chambolle and Pock, J. Math. Imaging Vis. 40, 2011, Algorithms 1 to 3), with block steps tau_i = t T_i and
sigma_j = S_j / t (Pock and Chambolle, ICCV 2011, in block form), where ||S^(1/2) K T^(1/2)|| <= 1:
    p+ = prox_{sigma f*}( p + sigma (K xbar + b) ),   x+ = prox_{tau g}( x - tau K^T p+ ),
    K xbar+ = K x+ + theta (K x+ - K x).
K x and K^T p are kept, so that the primal-dual gap of an iterate costs no further application of K.

Rules for t and theta:
- ``basic``: t = balance, theta = 1; converges for every convex problem.
- ``accelerated``: theta = 1 / sqrt(1 + 2 gamma t), t+ = theta t with gamma = min_i mu_i T_i > 0; the gap falls as
  1/k^2.
- ``linear``: T_i = m / (2 mu_i), S_j = m / (2 mu_j), t = 1, theta = 1 / (1 + m), where m / 2 is one over ||K|| in the
  metric of the moduli; the squared distance falls by theta per iteration. For g and f* strongly convex only.
- ``balanced``: t is adapted at moments that become rare geometrically, and is constant between them. With gamma > 0: as
  accelerated until t has come down to the ratio of the recent moves of x and p in the metric of T and S, then t follows
  that ratio (the idea of the primal weight of PDLP, Applegate et al., NeurIPS 2021). With gamma = 0: t is drawn to
  where the part of the gap that longer primal steps reduce equals the part that longer dual steps reduce. It steers
  speed only: no certificate depends on step sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..core.batch import expand
from ..core.cost import Cost
from ..core.errors import InputError, MissingPropertyError
from ..core.ranges import check_number, check_positive

Rule = Literal["auto", "basic", "accelerated", "linear", "balanced"]

FIRST_WINDOW = 20
"""Iterations between the first two looks at the moves; each next window is half as long again."""

MOVES = 0.3
"""t is drawn to this multiple of the ratio of the moves (0.3 to 1 do equally well, 3 is slower; measured on TV)."""

LARGEST_CHANGE = 3.0
"""Of t at one moment where the parts of the gap decide; on TGV they give 2.3 times the speed of the ratio of moves."""


@dataclass(frozen=True)
class Steps:
    """Block steps: tau_i = t primal[i], sigma_j = dual[j] / t, with ||S^(1/2) K T^(1/2)|| <= 1.

    Attributes:
        primal, dual: T and S.
        t: the first t.
        theta: constant extrapolation.
        gamma: min_i mu_i T_i, the strong convexity of g in the metric of T.
    """

    primal: tuple[float, ...]
    dual: tuple[float, ...]
    t: float = 1.0
    theta: float = 1.0
    gamma: float = 0.0


def operator_norm(norms: Sequence[Sequence[float]], primal: Sequence[float], dual: Sequence[float]) -> float:
    """||S^(1/2) N T^(1/2)||, a bound of the operator norm with the blocks replaced by their norms."""
    table = torch.tensor([[math.sqrt(s * t) * n for n, t in zip(row, primal, strict=True)]
                          for row, s in zip(norms, dual, strict=True)], dtype=torch.float64)
    return float(torch.linalg.matrix_norm(table, 2))


def block_steps(f: Any, rule: Rule, balance: float) -> Steps:
    """The steps of a saddle function ``f`` under a rule.

    Raises:
        MissingPropertyError: the rule needs strong convexity that is not there.
    """
    moduli = f.moduli()
    mu_g, mu_f = moduli[:len(f.primal)], moduli[len(f.primal):]
    if rule == "linear":
        if min(moduli) <= 0:
            raise MissingPropertyError(
                "rule", given="linear, with g or f* not strongly convex", expected="strong convexity of both",
                remedy="Use rule='auto', or smooth the regularizer (rounding, curvature) and add tikhonov.")
        T, S = [1 / m for m in mu_g], [1 / m for m in mu_f]
        m = 2 / max(operator_norm(f.norms, T, S), 1e-300)
        # t = 1 and the factor m / 2 in both: tau = m / (2 mu), sigma = m / (2 mu)
        return Steps(tuple(m / 2 * a for a in T), tuple(m / 2 * a for a in S), 1.0, 1 / (1 + m))
    columns = [sum(row[i] for row in f.norms) for i in range(len(mu_g))]
    rows = [sum(row) for row in f.norms]
    T, S = ([1 / max(n, 1e-300) for n in sums] for sums in (columns, rows))
    size = max(operator_norm(f.norms, T, S), 1e-300)
    T = [a / size for a in T]
    S = [a / size for a in S]
    gamma = min(m * a for m, a in zip(mu_g, T, strict=True))
    if rule == "accelerated" and gamma <= 0:
        raise MissingPropertyError("rule", given="accelerated, with g not strongly convex in every block",
                                   expected="a strongly convex g", remedy="Use rule='auto', or add tikhonov.")
    first = 10.0 if gamma > 0 else 1.0  # acceleration shortens t by itself
    return Steps(tuple(T), tuple(S), balance if rule == "basic" else max(balance, first), 1.0, gamma)


def check_steps(f: Any, primal: Sequence[float], dual: Sequence[float]) -> None:
    """Refuse steps with tau sigma ||K||^2 > 1, for which the method may diverge.

    Raises:
        InputError: with the factor by which they are too long.
    """
    size = operator_norm(f.norms, primal, dual) ** 2
    if not size <= 1 + 1e-9:
        raise InputError("steps", given=f"tau sigma ||K||^2 = {size:.4g}", expected="at most 1",
                         remedy=f"Multiply tau and sigma by {size ** -0.5:.3g}, or leave them to the rule.")


@dataclass
class PDHGState:
    """x, p with K x + b, K^T p and the K x + b before; the rest steers t, per image."""

    f: Any
    steps: Steps
    x: tuple[Tensor, ...]
    p: tuple[Tensor, ...]
    kx: tuple[Tensor, ...]
    before: tuple[Tensor, ...]
    ktp: tuple[Tensor, ...]
    t: Tensor
    theta: Tensor
    accelerating: Tensor
    anchor: tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
    since: int
    window: int
    evidence: Tensor
    cost: Cost

    @property
    def point(self) -> Tensor:
        """All variables as (b, n)."""
        return self.f.pack(self.x, self.p)

    def select(self, index: Tensor) -> PDHGState:
        """The images at positions ``index``."""
        def chosen(blocks: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(b[index] for b in blocks)

        return replace(self, f=self.f.select(index), x=chosen(self.x), p=chosen(self.p), kx=chosen(self.kx),
                       before=chosen(self.before), ktp=chosen(self.ktp), t=self.t[index], theta=self.theta[index],
                       accelerating=self.accelerating[index],
                       anchor=(chosen(self.anchor[0]), chosen(self.anchor[1])), evidence=self.evidence[index])


@dataclass(frozen=True)
class PDHG:
    """Primal-dual hybrid gradient; a step of it is ``interval`` iterations, each one application of K and one of K^T.

    Args:
        rule: see above; ``auto`` is ``balanced``.
        balance: the first t (and the only one of ``basic``): larger for longer primal and shorter dual steps.
        tau, sigma: fixed step sizes for all blocks in the place of the rule's (then theta = 1).
        interval: iterations between two looks at the evidence.

    Raises:
        InputError: a value out of range; at the first step, tau and sigma with tau sigma ||K||^2 > 1.
        MissingPropertyError: at the first step, a rule that needs more strong convexity.
    """

    rule: Rule = "auto"
    balance: float = 1.0
    tau: float | None = None
    sigma: float | None = None
    interval: int = 10
    name: str = "pdhg"

    def __post_init__(self) -> None:
        if self.rule not in ("auto", "basic", "accelerated", "linear", "balanced"):
            raise InputError("rule", given=repr(self.rule),
                             expected="'auto', 'basic', 'accelerated', 'linear' or 'balanced'")
        check_positive("balance", self.balance)
        check_positive("tau", self.tau, optional=True)
        check_positive("sigma", self.sigma, optional=True)
        if (self.tau is None) != (self.sigma is None):
            raise InputError("tau, sigma", given=f"{self.tau}, {self.sigma}", expected="both or none")
        check_number("interval", self.interval, lambda v: v >= 1, "an integer >= 1", integer=True)

    def steps(self, f: Any) -> Steps:
        """The steps for a saddle function."""
        if self.tau is not None and self.sigma is not None:
            fixed = Steps((self.tau,) * len(f.primal), (self.sigma,) * len(f.dual))
            check_steps(f, fixed.primal, fixed.dual)
            return fixed
        return block_steps(f, self.rule, self.balance)

    @property
    def _follows(self) -> bool:
        return self.tau is None and self.rule in ("auto", "balanced")

    def init(self, f: Any, z0: Tensor) -> PDHGState:
        """One application of K and K^T at the packed start z0 (b, n)."""
        steps = self.steps(f)
        x, p = f.unpack(z0)
        kx, ktp = f.apply(x), f.adjoint(p)
        size = z0.shape[0]
        ones = torch.ones(size, dtype=z0.dtype, device=z0.device)
        shrinking = steps.gamma > 0 and self.tau is None and self.rule in ("auto", "balanced", "accelerated")
        return PDHGState(f, steps, x, p, kx, kx, ktp, steps.t * ones, steps.theta * ones,
                         torch.full((size,), shrinking, device=z0.device), (x, p), 0, FIRST_WINDOW,
                         f.evidence(x, p, kx, ktp), Cost(gradients=size))

    def step(self, f: Any, state: PDHGState) -> PDHGState:
        """``interval`` iterations."""
        for _ in range(self.interval):
            state = self._iterate(f, state)
        evidence = f.evidence(state.x, state.p, state.kx, state.ktp)
        return replace(state, f=f, evidence=evidence, cost=Cost(gradients=self.interval * state.t.shape[0]))

    def _iterate(self, f: Any, s: PDHGState) -> PDHGState:
        """One iteration."""
        p = tuple(
            phi.prox_conjugate(_ahead(q, a, old, sigma, s.theta), sigma)
            for phi, q, a, old, sigma in zip(f.dual, s.p, s.kx, s.before, _over(s.steps.dual, s.t, s.p), strict=True))
        ktp = f.adjoint(p)
        x = tuple(g.prox(torch.addcmul(a, k, tau, value=-1), tau)
                  for g, a, k, tau in zip(f.primal, s.x, ktp, _times(s.steps.primal, s.t, s.x), strict=True))
        kx = f.apply(x)
        theta, t = s.theta, s.t
        if s.steps.gamma > 0:
            theta = torch.where(s.accelerating, torch.rsqrt(1 + 2 * s.steps.gamma * t), 1.0)
            t = t * theta
        s = PDHGState(f, s.steps, x, p, kx, s.kx, ktp, t, theta, s.accelerating, s.anchor, s.since + 1, s.window,
                      s.evidence, s.cost)
        return self._followed(s) if self._follows and s.since >= s.window else s

    def _followed(self, s: PDHGState) -> PDHGState:
        """t after a look at how far x and p have moved since the last one."""
        window = max(s.window + 1, math.ceil(1.5 * s.window))
        if s.steps.gamma <= 0 and hasattr(s.f, "halves"):
            of_primal, of_dual = s.f.halves(s.x, s.p, s.kx, s.ktp)
            ratio = (of_primal / of_dual).sqrt().clamp(1 / LARGEST_CHANGE, LARGEST_CHANGE)
            return replace(s, t=torch.where(torch.isfinite(ratio), s.t * ratio, s.t), since=0, window=window)
        ratio = MOVES * _moved(s.x, s.anchor[0], s.steps.primal) / _moved(s.p, s.anchor[1], s.steps.dual)
        usable = torch.isfinite(ratio) & (ratio > 0)
        accelerating = s.accelerating & ~(usable & (s.t <= ratio))
        t = torch.where(usable & ~accelerating, (s.t * ratio).sqrt(), s.t)
        return replace(s, t=t, accelerating=accelerating, anchor=(s.x, s.p), since=0, window=window)


def _times(scales: tuple[float, ...], t: Tensor, blocks: tuple[Tensor, ...]) -> list[Tensor]:
    """tau_i = t T_i, ready to multiply the blocks."""
    return [expand(scale * t, b) for scale, b in zip(scales, blocks, strict=True)]


def _over(scales: tuple[float, ...], t: Tensor, blocks: tuple[Tensor, ...]) -> list[Tensor]:
    """sigma_j = S_j / t, ready to multiply the blocks."""
    return [expand(scale / t, b) for scale, b in zip(scales, blocks, strict=True)]


def _ahead(p: Tensor, kx: Tensor, before: Tensor, sigma: Tensor, theta: Tensor) -> Tensor:
    """p + sigma (K x + theta (K x - K x before))."""
    theta = expand(theta, p)
    return torch.addcmul(p, kx, sigma * (1 + theta)).addcmul_(before, sigma * theta, value=-1)


def _moved(now: tuple[Tensor, ...], then: tuple[Tensor, ...], scales: tuple[float, ...]) -> Tensor:
    """sqrt(sum_i ||now_i - then_i||^2 / scale_i) per image (b,)."""
    parts = [(a - b).flatten(1).square().sum(dim=1) / c for a, b, c in zip(now, then, scales, strict=True)]
    return torch.stack(parts).sum(dim=0).sqrt()
