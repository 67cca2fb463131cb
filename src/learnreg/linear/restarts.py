"""The loop around every Krylov recursion: the recomputed residual decides, finished images leave
the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.batch import norm, per_image
from ..core.cost import Cost
from ..core.protocols import Hessian
from ..core.results import LinearSolution
from ..core.status import Status
from .precondition import Preconditioner, narrowed

CODES = (
    Status.CONVERGED,
    Status.MAX_STEPS,
    Status.NOT_FINITE,
    Status.INDEFINITE,
    Status.ROUNDING_FLOOR,
)
CONVERGED, MAX_STEPS, NOT_FINITE, INDEFINITE, FLOOR = range(5)

# recursion(op, r, tol, active, q, steps, code, preconditioner, max_steps) -> Hessian products
# spent: one run from the residual r (k, ...) of the k images ``active``, whose entries of q (b,
# ...), steps (b,) and code (b,) it writes in place. It only nominates an image as solved: its
# verdicts are those of failure. One product is one step.
Recursion = Callable[
    [Hessian, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Preconditioner | None, int], int
]


def restarted(
    recursion: Recursion,
    matvec: Hessian,
    b: Tensor,
    tol: float | Tensor,
    x0: Tensor | None,
    preconditioner: Preconditioner | None,
    max_steps: int,
    restarts: int,
) -> LinearSolution:
    """Run ``recursion`` until ||b - H q|| <= tol for every image, at most ``restarts`` times again.

    A run ends when the recursion believes in its residual. The true one is then recomputed: where
    the two disagree the recursion restarts from the true one; where the true one has not halved
    since the last look, rounding is what keeps it from falling, and the image gets
    ``ROUNDING_FLOOR`` (and the q from before the run, should it have grown).

    Args:
        matvec, b, tol, x0, preconditioner, max_steps, restarts: those of ``cg`` and ``minres``.
    """
    tol = per_image(tol, b, "tol")
    size, device = b.shape[0], b.device
    q = torch.zeros_like(b) if x0 is None else x0.detach().clone()
    residual = norm(b).double()
    steps = torch.zeros(size, dtype=torch.int64, device=device)
    code = torch.full((size,), MAX_STEPS, dtype=torch.int64, device=device)
    trivial = residual <= tol  # ||b|| <= tol: q = 0 solves, whatever the warm start says
    q[trivial], code[trivial] = 0, CONVERGED
    products = total = 0
    active = torch.nonzero(~trivial).flatten()
    before, fresh = q, x0 is None
    for run in range(restarts + 2):  # the last time round is for a look only
        if active.numel() == 0:
            break
        op = matvec if active.numel() == size else matvec.select(active)
        if fresh:  # q = 0: the residual is b itself
            r = b[active]
        else:
            r = b[active] - op(q[active])
            products += active.numel()
        fresh = False

        true, last = norm(r).double(), residual[active]
        done, finite = true <= tol[active], torch.isfinite(true)
        # no verdict yet
        running = ~done & finite & (code[active] == MAX_STEPS) & (steps[active] < max_steps)
        # a residual that has not halved since the last look falls no further: rounding
        stalled = running & (steps[active] > 0) & (~(true < 0.5 * last) | (run > restarts))
        worse = stalled & (true > last)
        q[active[worse]] = before[active[worse]]
        residual[active] = torch.where(worse, last, true)
        code[active[done]], code[active[~finite]], code[active[stalled]] = (
            CONVERGED,
            NOT_FINITE,
            FLOOR,
        )

        keep = running & ~stalled
        active = active[keep]
        if active.numel() == 0:
            break
        if not bool(keep.all()):
            op, r = matvec.select(active), r[keep]

        helper = preconditioner if active.numel() == size else narrowed(preconditioner, active)
        before = q.clone()
        used = recursion(op, r, tol[active], active, q, steps, code, helper, max_steps)
        products, total = products + used, total + used
    cost = Cost(hessian_products=products, cg_steps=total)
    return LinearSolution(q, residual, tuple(CODES[i] for i in code.tolist()), steps, cost)
