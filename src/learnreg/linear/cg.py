"""Batched conjugate gradients: per-image coefficients and stopping, warm start, true residual on exit.

Recursion (Hestenes and Stiefel 1952; preconditioned form: Saad, Iterative Methods, Algorithm 9.1), per image:
    alpha = <r, z> / <p, H p>,  q += alpha p,  r -= alpha H p,  z = M r,  p = z + <r, z>_new / <r, z>_old p.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.batch import dot, expand, norm, per_image
from ..core.cost import Cost
from ..core.protocols import Hessian
from ..core.results import LinearSolution
from ..core.status import Status

CODES = (Status.CONVERGED, Status.MAX_STEPS, Status.NOT_FINITE, Status.INDEFINITE, Status.ROUNDING_FLOOR)
CONVERGED, MAX_STEPS, NOT_FINITE, INDEFINITE, FLOOR = range(5)


@dataclass(frozen=True)
class CG:
    """Settings of ``cg``; calling the object solves.

    Args:
        max_steps: steps per image, over all restarts.
        restarts: how often the recursion restarts from the true residual when it has drifted.
    """

    max_steps: int = 2000
    restarts: int = 5

    def __call__(self, matvec: Hessian, b: Tensor, tol: float | Tensor, x0: Tensor | None = None,
                 preconditioner: Callable[[Tensor], Tensor] | None = None) -> LinearSolution:
        return cg(matvec, b, tol, x0, preconditioner, max_steps=self.max_steps, restarts=self.restarts)


@torch.no_grad()
def cg(matvec: Hessian, b: Tensor, tol: float | Tensor, x0: Tensor | None = None,
       preconditioner: Callable[[Tensor], Tensor] | None = None, *, max_steps: int = 2000,
       restarts: int = 5) -> LinearSolution:
    """Solve H q = b for every image to ||b - H q|| <= tol, an absolute residual per image.

    Finished images are compacted away. The residual that decides is the recomputed one, never the recursive one: when
    the two disagree the recursion restarts; an image whose true residual stops falling gets ``ROUNDING_FLOOR``.

    Args:
        matvec: symmetric positive definite per image; ``select(index)`` gives the images of a sub-batch.
        b: (b, ...).
        tol: positive, one value or one per image.
        x0: (b, ...), a warm start; zero when None.
        preconditioner: r -> M r per image, symmetric positive definite, must not depend on which images are passed.

    Returns:
        LinearSolution with residual (b,) in float64.
    """
    tol = per_image(tol, b, "tol")
    size, device = b.shape[0], b.device
    q = torch.zeros_like(b) if x0 is None else x0.detach().clone()
    residual = norm(b).double()
    steps = torch.zeros(size, dtype=torch.int64, device=device)
    code = torch.full((size,), MAX_STEPS, dtype=torch.int64, device=device)
    trivial = residual <= tol  # ||b|| <= tol: q = 0 solves, whatever the warm start says
    q[trivial], code[trivial] = 0, CONVERGED
    products = cg_steps = 0
    active = torch.nonzero(~trivial).flatten()
    fresh = x0 is None
    for _ in range(restarts + 1):
        if active.numel() == 0:
            break
        op = matvec if active.numel() == size else matvec.select(active)
        if fresh:  # q = 0: the residual is b itself
            r = b[active].clone()
        else:
            r = b[active] - op(q[active])
            products += active.numel()
        fresh = False
        true = norm(r).double()
        improved = true < 0.5 * residual[active]
        residual[active] = true
        done = true <= tol[active]
        finite = torch.isfinite(true)
        running = ~done & finite & (code[active] == MAX_STEPS) & (steps[active] < max_steps)  # no verdict yet
        stalled = running & (steps[active] > 0) & ~improved
        code[active[done]], code[active[~finite]], code[active[stalled]] = CONVERGED, NOT_FINITE, FLOOR
        keep = running & ~stalled
        active = active[keep]
        if active.numel() == 0:
            break
        if not bool(keep.all()):
            op, r = matvec.select(active), r[keep]
        used = _recursion(op, r, tol[active], active, q, steps, code, preconditioner, max_steps)
        products, cg_steps = products + used, cg_steps + used
    else:  # restarts used up: one last look at the true residual
        if active.numel():
            op = matvec if active.numel() == size else matvec.select(active)
            residual[active] = norm(b[active] - op(q[active])).double()
            products += active.numel()
            reached = residual[active] <= tol[active]
            code[active[reached]] = CONVERGED
            code[active[~reached & (code[active] == MAX_STEPS) & (steps[active] < max_steps)]] = FLOOR
    cost = Cost(hessian_products=products, cg_steps=cg_steps)
    return LinearSolution(q, residual, tuple(CODES[i] for i in code.tolist()), steps, cost)


def _recursion(op: Hessian, r: Tensor, tol: Tensor, active: Tensor, q: Tensor, steps: Tensor, code: Tensor,
               preconditioner: Callable[[Tensor], Tensor] | None, max_steps: int) -> int:
    """One run of the recursion from residual ``r``; writes q, steps and codes of the ``active`` images in place."""
    tol = 0.9 * tol  # a margin, so that rounding in the recursion rarely costs a restart
    x = q[active]
    z = preconditioner(r) if preconditioner else r
    p, rz = z.clone(), dot(r, z)
    index, used = active, 0
    while True:
        h = op(p)
        used += index.numel()
        steps[index] += 1
        curvature = dot(p, h)
        indefinite = ~(curvature > 0) & torch.isfinite(curvature)
        alpha = torch.where(indefinite, 0.0, rz / curvature)
        x = x + expand(alpha, x) * p
        r = r - expand(alpha, r) * h
        size = norm(r).double()
        finite = torch.isfinite(size)
        code[index[indefinite]] = INDEFINITE
        stop = (size <= tol) | ~finite | indefinite | (steps[index] >= max_steps)
        if bool(stop.any()):
            keep = ~stop
            q[index[stop & finite]] = x[stop & finite]
            code[index[~finite]] = NOT_FINITE
            if not bool(keep.any()):
                return used
            index, tol, x, r, p, rz = index[keep], tol[keep], x[keep], r[keep], p[keep], rz[keep]
            op = op.select(torch.nonzero(keep).flatten())
        z = preconditioner(r) if preconditioner else r
        new = dot(r, z)
        p = z + expand(new / rz, p) * p
        rz = new
