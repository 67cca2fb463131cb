"""Batched minimal residuals for symmetric matrices that need not be definite: what ``cg`` promises,
without its need.

Recursion (Paige and Saunders 1975; preconditioned: Elman, Silvester and Wathen, Finite Elements and
Fast Iterative Solvers, 2nd edition 2014, p. 192), per image and step, from v = r, beta = eta = <v,
M v>^(1/2), c = c_old = beta_old = 1 and everything else 0:
    Lanczos:   z = M v / beta,  v_new = H z - (beta / beta_old) v_old,  delta = <v_new, z>,  v_new
    -= (delta / beta) v,
               beta_new = <v_new, M v_new>^(1/2)
    rotation:  pivot = c delta - c_old s beta,  rho = (pivot^2 + beta_new^2)^(1/2),
               c_new = pivot / rho,  s_new = beta_new / rho
    update:    w_new = (z - s_old beta w_old - (s delta + c_old c beta) w) / rho,
               q += c_new eta w_new,  r = s_new^2 r - (c_new eta / rho) v_new,  eta = -s_new eta.
r is eta times the last vector of the Lanczos basis after the rotations, so it needs no product and
no update of its own from H w. |eta| is its norm <r, M r>^(1/2), which never grows; the Euclidean
one, which has to stop, may.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.batch import dot, expand, norm
from ..core.protocols import Hessian
from ..core.ranges import check_integer, tidy
from ..core.results import LinearSolution
from .precondition import Preconditioner, narrowed
from .restarts import FLOOR, INDEFINITE, NOT_FINITE, restarted


@dataclass(frozen=True)
class MINRES:
    """Settings of ``minres``; calling the object solves.

    Args:
        max_steps: steps per image, over all restarts.
        restarts: how often the recursion restarts from the true residual when it has drifted.
    """

    max_steps: int = 2000
    restarts: int = 5

    def __post_init__(self) -> None:
        tidy(self)
        check_integer("max_steps", self.max_steps, 1)
        check_integer("restarts", self.restarts, 0)

    def __call__(
        self,
        matvec: Hessian,
        b: Tensor,
        tol: float | Tensor,
        x0: Tensor | None = None,
        preconditioner: Preconditioner | None = None,
    ) -> LinearSolution:
        return minres(
            matvec, b, tol, x0, preconditioner, max_steps=self.max_steps, restarts=self.restarts
        )


@torch.no_grad()
def minres(
    matvec: Hessian,
    b: Tensor,
    tol: float | Tensor,
    x0: Tensor | None = None,
    preconditioner: Preconditioner | None = None,
    *,
    max_steps: int = 2000,
    restarts: int = 5,
) -> LinearSolution:
    """Solve H q = b for every image to ||b - H q|| <= tol, an absolute residual per image.

    Finished images are compacted away. The residual that decides is the recomputed Euclidean one,
    also when preconditioned: the recursive one only says when to look. When the two disagree the
    recursion restarts; an image whose true residual stops falling gets ``ROUNDING_FLOOR``. So does,
    if not ``MAX_STEPS``, a singular system without a solution: do not take its value for the
    least-squares one of least norm.

    Args:
        matvec: symmetric per image, indefinite or singular if need be; ``select(index)`` gives the
            images of a sub-batch.
        b: (b, ...).
        tol: positive, one value or one per image.
        x0: (b, ...), a warm start; zero when None. Of a singular system's solutions, the one in x0
            + range(M H).
        preconditioner: r -> M r per image, symmetric positive definite (an image where it is found
            not to be gets ``INDEFINITE``); narrowed with the batch when it has ``select(index)``,
            else it must not depend on which images are passed.

    Returns:
        LinearSolution with residual (b,) in float64; ``cost.cg_steps`` counts the steps.
    """
    return restarted(_recursion, matvec, b, tol, x0, preconditioner, max_steps, restarts)


class _State(NamedTuple):
    """What a step leaves to the next; vectors (k, ...), scalars (k,), named as in the recursion
    above.
    """

    b: Tensor  # the residual that the run started from
    x: Tensor  # the correction so far
    r: Tensor
    v: Tensor
    v_old: Tensor
    mv: Tensor  # M v
    w: Tensor
    w_old: Tensor
    beta: Tensor
    beta_old: Tensor
    c: Tensor
    c_old: Tensor
    s: Tensor
    s_old: Tensor
    eta: Tensor
    # the largest column of the tridiagonal matrix so far: M^(1/2) H M^(1/2) is at least this large
    column: Tensor
    gap: Tensor  # how far r has been seen to be from b - H x, in the norm of |eta|


def _recursion(
    op: Hessian,
    r: Tensor,
    tol: Tensor,
    active: Tensor,
    q: Tensor,
    steps: Tensor,
    code: Tensor,
    preconditioner: Preconditioner | None,
    max_steps: int,
) -> int:
    """One run of the recursion from residual ``r``; writes q, steps and codes of the ``active``
    images in place.
    """
    tol = 0.9 * tol  # a margin, so that rounding in the recursion rarely costs a restart
    index, used = active, 0
    state, indefinite = _start(r, preconditioner)
    fitted = torch.zeros_like(indefinite)
    while True:
        size = norm(state.r).double()
        # an infinite beta may pass as fitted, with r intact
        finite = torch.isfinite(size) & torch.isfinite(state.beta)
        code[index[fitted]], code[index[indefinite]], code[index[~finite]] = (
            FLOOR,
            INDEFINITE,
            NOT_FINITE,
        )
        # r is smaller than its distance from the truth: no use in going on
        drifted = state.eta.abs() <= state.gap
        stop = (size <= tol) | drifted | ~finite | indefinite | fitted | (steps[index] >= max_steps)
        if bool(stop.any()):
            keep = ~stop
            q[index[stop & finite]] += state.x[stop & finite]
            if not bool(keep.any()):
                return used
            index, tol, state = index[keep], tol[keep], _State(*(t[keep] for t in state))
            kept = torch.nonzero(keep).flatten()
            op, preconditioner = op.select(kept), narrowed(preconditioner, kept)

        state, indefinite, fitted = _step(state, op, preconditioner)
        used += index.numel()
        steps[index] += 1


def _start(r: Tensor, preconditioner: Preconditioner | None) -> tuple[_State, Tensor]:
    """The state before the first step, and where the preconditioner is not positive definite
    (k,).
    """
    mv, beta, indefinite = _weighted(r, preconditioner)
    none, zero, one = torch.zeros_like(r), torch.zeros_like(beta), torch.ones_like(beta)
    state = _State(
        b=r,
        x=none,
        r=r,
        v=r,
        v_old=none,
        mv=mv,
        w=none,
        w_old=none,
        beta=beta,
        beta_old=one,
        c=one,
        c_old=one,
        s=zero,
        s_old=zero,
        eta=beta,
        column=zero,
        gap=zero,
    )
    return state, indefinite


def _step(
    state: _State, op: Hessian, preconditioner: Preconditioner | None
) -> tuple[_State, Tensor, Tensor]:
    """One step; where the preconditioner is not positive definite (k,), and where r had nothing
    left to lose (k,).

    In both places x and r stay as they are.
    """
    b, x, r, v, v_old, mv, w, w_old, beta, beta_old, c, c_old, s, s_old, eta, column, gap = state
    z = mv / expand(beta, mv)
    hz = op(z)
    # H is symmetric, so <b - H x, z> = <b, z> - <x, H z>: one component of the true residual,
    # without a product. In the norm of |eta| the z are nearly orthonormal, so the squares of what r
    # misses of each add up to what r misses.
    gap = torch.hypot(gap, dot(b - r, z) - dot(x, hz))
    v_new = hz - expand(beta / beta_old, v) * v_old
    delta = dot(v_new, z)
    v_new = v_new - expand(delta / beta, v) * v
    mv, beta_new, indefinite = _weighted(v_new, preconditioner)
    column = torch.maximum(column, torch.hypot(delta, beta_new))
    pivot = c * delta - c_old * s * beta
    # |eta| times this is ||H r|| before the step. Once it is all rounding, r is orthogonal to the
    # range of a singular H: x is a least-squares solution, and pivot / rho would be noise that is
    # multiplied by a vector of the null space.
    slope = torch.hypot(pivot, c * beta_new)
    fitted = slope <= 100 * torch.finfo(r.dtype).eps * column
    halt = indefinite | fitted
    rho = torch.where(halt, 1.0, torch.hypot(pivot, beta_new))
    c_new, s_new = torch.where(halt, 0.0, pivot / rho), torch.where(halt, 1.0, beta_new / rho)
    w_new = (
        z - expand(s_old * beta, w) * w_old - expand(s * delta + c_old * c * beta, w) * w
    ) / expand(rho, w)
    x = x + expand(c_new * eta, x) * w_new
    r = expand(s_new * s_new, r) * r - expand(c_new * eta / rho, r) * v_new
    state = _State(
        b,
        x,
        r,
        v_new,
        v,
        mv,
        w_new,
        w,
        beta_new,
        beta,
        c_new,
        c,
        s_new,
        s,
        -s_new * eta,
        column,
        gap,
    )
    return state, indefinite, fitted


def _weighted(v: Tensor, preconditioner: Preconditioner | None) -> tuple[Tensor, Tensor, Tensor]:
    """M v, its norm <v, M v>^(1/2) (k,), and where M is not positive definite (k,)."""
    if preconditioner is None:
        return v, norm(v), torch.zeros(v.shape[0], dtype=torch.bool, device=v.device)
    mv = preconditioner(v)
    square = dot(v, mv)
    indefinite = (square < 0) | (square == 0) & (norm(v) > 0)
    return mv, square.clamp(min=0).sqrt(), indefinite
