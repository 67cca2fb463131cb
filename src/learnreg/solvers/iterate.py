"""The only lower-level loop: step, look at the evidence, certify per image, freeze, compact."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from ..core.batch import per_image
from ..core.bounds import Kind
from ..core.cost import Cost
from ..core.protocols import AnySolver, Potential, Saddle, State
from ..core.results import Solution
from ..core.status import Status
from .closing import Measure, rounding_of
from .views import View, require_strong_convexity, view_of

__all__ = ["Measure", "minimize", "require_strong_convexity", "rounding_of"]

Kept = TypeVar("Kept", bound=State)

CODES = (
    Status.MAX_STEPS,
    Status.CONVERGED,
    Status.ROUNDING_FLOOR,
    Status.NOT_FINITE,
    Status.BUDGET,
)
MAX_STEPS, CONVERGED, FLOOR, NOT_FINITE, BUDGET = range(5)

STALL_INTERVAL = 8
"""The host looks for images that no longer improve every so many steps."""

GPU_INTERVAL = 8
"""On a GPU the host looks at the stopping test every so many steps, so that the queue never runs
dry.
"""


@torch.no_grad()
def minimize(
    f: Potential | Saddle,
    eps: float | Tensor,
    solver: AnySolver,
    x0: Tensor,
    *,
    max_steps: int | Tensor = 20000,
    should_stop: Callable[[], bool] | None = None,
    measure: Measure = "distance",
) -> Solution:
    """Minimize every potential of the batch (or solve every saddle function) to a certified
    distance eps.

    The evidence of the solver (a gradient norm in the working precision) only nominates an image;
    the certificate is computed from a closing gradient in float64. An image whose closing gradient
    keeps failing, or whose evidence stops falling near the rounding level, ends with
    ``ROUNDING_FLOOR`` and the distance that was reached.

    Args:
        f: the potentials.
        eps: positive distance, one value or one per image (b,).
        solver: provides the steps.
        x0: (b, ...), the start, packed for saddle functions; not modified. Bounds of pixels come
            first: it is projected.
        max_steps: steps, one limit for all images or one per image (b,).
        should_stop: asked between steps; True ends the solve with status ``BUDGET``.
        measure: what eps bounds: the distance to the minimizer, or the norm of the gradient, for
            functions that need not be strongly convex.

    Returns:
        Solution; ``error`` is the certified distance.
    """
    view, kind = view_of(f), f.bounds().mu.kind
    if measure == "distance":
        view.require_strong_convexity()
    else:
        kind = Kind.UNKNOWN

    x0 = view.variables(x0)
    loop = _Loop(view, per_image(eps, x0), x0, measure)
    interval = GPU_INTERVAL if x0.is_cuda else 1
    limits = torch.as_tensor(max_steps, device=x0.device).expand(x0.shape[0])
    ends = set(limits.tolist())
    running, state = view, solver.init(f, x0)
    loop.cost += state.cost
    for count in range(max(ends) + 1):
        if count % interval == 0 or count in ends:
            keep = loop.examine(running, state, count)
            state, running = _kept(keep, state, running)
            if state is None:
                break
            if should_stop is not None and should_stop():
                loop.give_up(running, state, torch.ones_like(loop.index, dtype=torch.bool), BUDGET)
                break
            if count in ends:
                keep = loop.give_up(running, state, limits[loop.index] <= count, MAX_STEPS)
                state, running = _kept(keep, state, running)
                if state is None:
                    break

        state = solver.step(running.f, state)
        loop.cost += state.cost
        loop.running += 1
    return loop.solution(view, kind, solver.name)


def _kept(keep: Tensor | None, state: Kept, view: View) -> tuple[Kept | None, View]:
    """State and functions of the images at positions ``keep``; a state of None when there are none,
    all for None.
    """
    if keep is None or keep.numel() == state.evidence.shape[0]:
        return state, view
    return (state.select(keep), view.select(keep)) if keep.numel() else (None, view)


class _Loop:
    """Bookkeeping of ``minimize``: which images are still running, what the finished ones left."""

    def __init__(self, view: View, eps: Tensor, x0: Tensor, measure: Measure) -> None:
        size, device = x0.shape[0], x0.device
        self.rule, self.measure = view.rule(measure), measure
        self.target = self.rule.target * eps  # evidence that certifies eps, float64
        # what the working precision must show before a closing gradient is paid for
        self.wanted = 0.95 * self.target
        self.value = x0.clone()
        self.gradient = torch.zeros_like(x0)
        self.closing = torch.full((size,), float("inf"), dtype=torch.float64, device=device)
        self.size = torch.full((size,), float("inf"), dtype=torch.float64, device=device)
        self.code = torch.zeros(size, dtype=torch.int64, device=device)
        self.steps = torch.zeros(size, dtype=torch.int64, device=device)
        self.index = torch.arange(size, device=device)
        self.best = torch.full((size,), float("inf"), dtype=torch.float64, device=device)
        self.waiting = torch.zeros(size, dtype=torch.int64, device=device)
        self.failures = torch.zeros(size, dtype=torch.int64, device=device)
        self.theorem = torch.zeros(size, dtype=torch.int64, device=device)
        self.level = self.wanted.to(x0.dtype)  # of the running images, in the working precision
        self.running = 0
        self.cost = Cost()

    def examine(self, view: View, state: State, count: int) -> Tensor | None:
        """Certify the images that look finished; positions (within the running batch) of those that
        go on.

        None when nothing has changed, found with as few operations as possible: this runs at every
        step.
        """
        if count % STALL_INTERVAL and bool(
            ((state.evidence > self.level) & (state.evidence < torch.inf)).all()
        ):
            return None
        evidence, index = state.evidence.double(), self.index
        broken = self.rule.broken(evidence, state)
        nominated = evidence <= self.wanted[index]
        stalled = self._stalled(view, evidence, state, count) & ~nominated & ~broken
        if not bool((nominated | stalled | broken).any()):
            return None

        done = broken.clone()
        if bool((nominated | stalled).any()):
            asked = torch.nonzero(nominated | stalled).flatten()
            closing = self._close(view, state.point, asked)
            passed = closing <= self.target[index[asked]]
            self.failures[index[asked]] += (~passed).long()
            # evidence that has promised too much is held to half of it; four failures are enough
            self.wanted[index[asked]] *= torch.where(passed, 1.0, 0.5)
            floor = ~passed & (stalled[asked] | (self.failures[index[asked]] > 3))
            self.code[index[asked[passed]]] = CONVERGED
            self.code[index[asked[floor]]] = FLOOR
            done[asked[passed | floor]] = True

        self.steps[index] = self.running
        if bool(broken.any()):  # keep the start, which was finite, and say so
            self.code[index[broken]] = NOT_FINITE

        keep = torch.nonzero(~done).flatten()
        self.index = index[keep]
        self.level = self.wanted[self.index].to(state.evidence.dtype)
        return keep

    def _stalled(self, view: View, evidence: Tensor, state: State, count: int) -> Tensor:
        """Images whose evidence has not fallen for long, at a level where only rounding can be the
        reason.
        """
        if count % STALL_INTERVAL:
            return torch.zeros_like(evidence, dtype=torch.bool)

        best, waiting = self.best[self.index], self.waiting[self.index]
        better = evidence < 0.9 * best
        waiting = torch.where(better, 0, waiting + STALL_INTERVAL)
        short, long = self.rule.patient(self.running)
        if bool((waiting > short).any()):
            level = view.noise(state.point)
            noise, late = evidence <= level, waiting > long
            stalled = (waiting > short) & noise | late & (evidence <= 100 * level)
            # far above the noise slow progress is still progress: the count starts again
            waiting = torch.where(late & ~stalled, 0, waiting)
        else:
            stalled = torch.zeros_like(better)

        self.best[self.index] = torch.where(better, evidence, best)
        self.waiting[self.index] = waiting
        return stalled

    def give_up(self, view: View, state: State, ending: Tensor, code: int) -> Tensor:
        """Certify what the unfinished images ``ending`` (a mask) have reached; positions of those
        that go on.
        """
        positions = torch.nonzero(ending).flatten()
        if positions.numel():
            index = self.index[positions]
            self.steps[index] = self.running
            closing = self._close(view, state.point, positions)
            self.code[index] = torch.where(closing <= self.target[index], CONVERGED, code)
        keep = torch.nonzero(~ending).flatten()
        self.index = self.index[keep]
        self.level = self.wanted[self.index].to(state.evidence.dtype)
        return keep

    def _close(self, view: View, point: Tensor, positions: Tensor) -> Tensor:
        """Closing gradient norms in float64 at the chosen images; stores the points and the
        norms.
        """
        chosen, x = self.index[positions], point[positions]
        part = view if positions.numel() == point.shape[0] else view.select(positions)
        found = part.close(x)
        self.cost += Cost(gradients=positions.numel())
        self.value[chosen], self.gradient[chosen] = x, found.gradient.to(x.dtype)
        self.closing[chosen], self.size[chosen] = found.evidence, found.size
        if found.theorem is not None:
            self.theorem[chosen] = found.theorem
        return found.evidence

    def solution(self, view: View, kind: Kind, name: str) -> Solution:
        """What has been found for all images; ``view`` and ``kind`` are those of the whole
        batch.
        """
        return Solution(
            self.value,
            self.rule.distance(self.closing),
            kind,
            tuple(CODES[i] for i in self.code.tolist()),
            self.steps,
            self.cost,
            name,
            self.size,
            self.gradient,
            theorem=view.theorems(self.theorem),
            measure=view.measured(self.measure),
        )
