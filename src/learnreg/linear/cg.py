"""Batched conjugate gradients: per-image coefficients and stopping, warm start, true residual on
exit.

Recursion (Hestenes and Stiefel 1952; preconditioned form: Saad, Iterative Methods, Algorithm 9.1),
per image:
    alpha = <r, z> / <p, H p>,  q += alpha p,  r -= alpha H p,  z = M r,  p = z + <r, z>_new / <r,
    z>_old p.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.batch import dot, expand, norm
from ..core.protocols import Hessian
from ..core.ranges import check_integer, tidy
from ..core.results import LinearSolution
from .precondition import Preconditioner, narrowed
from .restarts import INDEFINITE, NOT_FINITE, restarted

CPU_INTERVAL, GPU_INTERVAL = 1, 8
"""The host looks at the residuals every so many steps; on a GPU seldom, so that the queue never
runs dry.
"""


@dataclass(frozen=True)
class CG:
    """Settings of ``cg``; calling the object solves.

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
        return cg(
            matvec, b, tol, x0, preconditioner, max_steps=self.max_steps, restarts=self.restarts
        )


@torch.no_grad()
def cg(
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

    Finished images are compacted away. The residual that decides is the recomputed one, never the
    recursive one: when the two disagree the recursion restarts; an image whose true residual stops
    falling gets ``ROUNDING_FLOOR``.

    Args:
        matvec: symmetric positive definite per image; ``select(index)`` gives the images of a
            sub-batch.
        b: (b, ...).
        tol: positive, one value or one per image.
        x0: (b, ...), a warm start; zero when None.
        preconditioner: r -> M r per image, symmetric positive definite; narrowed with the batch
            when it has ``select(index)``, else it must not depend on which images are passed.

    Returns:
        LinearSolution with residual (b,) in float64.
    """
    return restarted(_recursion, matvec, b, tol, x0, preconditioner, max_steps, restarts)


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
    x = q[active]
    z = r if preconditioner is None else preconditioner(r)
    p, rz = z.clone(), dot(r, z)
    index, used, since = active, 0, 0
    indefinite = torch.zeros_like(rz, dtype=torch.bool)
    frozen = indefinite.clone()  # images that are done but not yet looked at
    interval = GPU_INTERVAL if r.is_cuda else CPU_INTERVAL
    while True:
        h = op(p)
        used, since = used + index.numel(), since + 1
        curvature = dot(p, h)
        # of H, or of the preconditioner
        positive = (curvature > 0) & (rz > 0)
        indefinite |= ~(positive | frozen) & torch.isfinite(curvature)
        alpha = torch.where(indefinite | frozen, 0.0, rz / curvature)
        x = torch.addcmul(x, expand(alpha, x), p)
        r = torch.addcmul(r, expand(-alpha, r), h)
        size = norm(r)

        if interval > 1:
            frozen = frozen | indefinite | (size <= tol)
        if since == interval:
            steps[index] += since
            since = 0
            finite = torch.isfinite(size)
            stop = (size <= tol) | ~finite | indefinite | (steps[index] >= max_steps)
            if bool(stop.any()):
                keep = ~stop
                q[index[stop & finite]] = x[stop & finite]
                code[index[indefinite]], code[index[~finite]] = INDEFINITE, NOT_FINITE
                if not bool(keep.any()):
                    return used
                kept = torch.nonzero(keep).flatten()
                index, tol, x, r, p, rz, indefinite, frozen = (
                    t[kept] for t in (index, tol, x, r, p, rz, indefinite, frozen)
                )
                op, preconditioner = op.select(kept), narrowed(preconditioner, kept)

        z = r if preconditioner is None else preconditioner(r)
        new = dot(r, z)
        p = torch.addcmul(z, expand(new / rz, p), p)
        rz = new
        if interval > 1:
            p = torch.where(expand(frozen, p), 0.0, p)
