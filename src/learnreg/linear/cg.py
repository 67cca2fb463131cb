"""Batched conjugate gradients: per-image coefficients and stopping, warm start, true residual on exit.

Recursion (Hestenes and Stiefel 1952; preconditioned form: Saad, Iterative Methods, Algorithm 9.1), per image:
    alpha = <r, z> / <p, H p>,  q += alpha p,  r -= alpha H p,  z = M r,  p = z + <r, z>_new / <r, z>_old p.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.batch import dot, expand, norm
from ..core.protocols import Hessian
from ..core.results import LinearSolution
from .precondition import Preconditioner, narrowed
from .restarts import INDEFINITE, NOT_FINITE, restarted


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
                 preconditioner: Preconditioner | None = None) -> LinearSolution:
        return cg(matvec, b, tol, x0, preconditioner, max_steps=self.max_steps, restarts=self.restarts)


@torch.no_grad()
def cg(matvec: Hessian, b: Tensor, tol: float | Tensor, x0: Tensor | None = None,
       preconditioner: Preconditioner | None = None, *, max_steps: int = 2000, restarts: int = 5) -> LinearSolution:
    """Solve H q = b for every image to ||b - H q|| <= tol, an absolute residual per image.

    Finished images are compacted away. The residual that decides is the recomputed one, never the recursive one: when
    the two disagree the recursion restarts; an image whose true residual stops falling gets ``ROUNDING_FLOOR``.

    Args:
        matvec: symmetric positive definite per image; ``select(index)`` gives the images of a sub-batch.
        b: (b, ...).
        tol: positive, one value or one per image.
        x0: (b, ...), a warm start; zero when None.
        preconditioner: r -> M r per image, symmetric positive definite; narrowed with the batch when it has
            ``select(index)``, else it must not depend on which images are passed.

    Returns:
        LinearSolution with residual (b,) in float64.
    """
    return restarted(_recursion, matvec, b, tol, x0, preconditioner, max_steps, restarts)


def _recursion(op: Hessian, r: Tensor, tol: Tensor, active: Tensor, q: Tensor, steps: Tensor, code: Tensor,
               preconditioner: Preconditioner | None, max_steps: int) -> int:
    """One run of the recursion from residual ``r``; writes q, steps and codes of the ``active`` images in place."""
    tol = 0.9 * tol  # a margin, so that rounding in the recursion rarely costs a restart
    x = q[active]
    z = r if preconditioner is None else preconditioner(r)
    p, rz = z.clone(), dot(r, z)
    index, used = active, 0
    while True:
        h = op(p)
        used += index.numel()
        steps[index] += 1
        curvature = dot(p, h)
        indefinite = ~((curvature > 0) & (rz > 0)) & torch.isfinite(curvature)  # of H, or of the preconditioner
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
            kept = torch.nonzero(keep).flatten()
            op, preconditioner = op.select(kept), narrowed(preconditioner, kept)
        z = r if preconditioner is None else preconditioner(r)
        new = dot(r, z)
        p = z + expand(new / rz, p) * p
        rz = new
