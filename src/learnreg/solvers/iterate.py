"""The only lower-level loop: step, look at the evidence, certify per image, freeze, compact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeGuard

import torch
from torch import Tensor

from ..core.batch import norm, per_image
from ..core.bounds import Kind, constants_of
from ..core.certificates import distance_from_gradient
from ..core.cost import Cost
from ..core.errors import MissingPropertyError
from ..core.protocols import Potential, Saddle, Solver
from ..core.results import Solution
from ..core.status import Status

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

NOISE_PATIENCE = 24
"""Steps without progress after which an image is at the floor, where gradients can be nothing but
rounding noise.
"""

GPU_INTERVAL = 8
"""On a GPU the host looks at the stopping test every so many steps, so that the queue never runs
dry.
"""


Measure = Literal["distance", "residual", "stationarity"]
"""What the accuracy of a solve bounds."""


def is_saddle(f: Any) -> TypeGuard[Saddle]:
    """Whether ``f`` is a saddle function (it certifies its own points) and no potential."""
    return hasattr(f, "certify")


def require_strong_convexity(f: Potential) -> float:
    """mu of the potential; of a saddle function, that of the image.

    Raises:
        MissingPropertyError: mu = 0 or unknown, so no distance to the minimizer can be certified;
            or the primal value of a saddle function is finite under an equation only.
    """
    mu = f.bounds().mu
    if not (0 < mu.value < float("inf")):
        raise MissingPropertyError(
            "energy",
            given=f"strong convexity mu = {mu}",
            expected="mu > 0, which certified distances need",
            remedy="Give SaddleEnergy a tikhonov > 0, for example 1e-3."
            if is_saddle(f)
            else "Add a strongly convex term, for example regularizer + "
            "lr.regularizers.Tikhonov(1e-3), or ask for solve(..., stationarity=1e-3).",
        )
    smoothness = f.bounds().L
    if is_saddle(f):
        if getattr(f, "constrained", False):
            raise MissingPropertyError(
                "energy",
                given="a constraint K x = 0, which iterates only approach",
                expected="finite gaps on the way",
                remedy="Give the regularizer rounding > 0, or use a fixed number of steps "
                "(JointPiggyback).",
            )
        return mu.value
    if not smoothness.value < float("inf"):
        raise MissingPropertyError(
            "energy",
            given=f"a Hessian bounded by L = {smoothness}",
            expected="a finite L",
            remedy="Let bounds() of the regularizer give L; if it does, its parameters are out of "
            "range.",
        )
    return mu.value


@torch.no_grad()
def minimize(
    f: Potential,
    eps: float | Tensor,
    solver: Solver,
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
        x0: (b, ...), the start, packed for saddle functions; not modified.
        max_steps: steps, one limit for all images or one per image (b,).
        should_stop: asked between steps; True ends the solve with status ``BUDGET``.
        measure: what eps bounds: the distance to the minimizer, or the norm of the gradient, for
            functions that need not be strongly convex.

    Returns:
        Solution; ``error`` is the certified distance.
    """
    kind = f.bounds().mu.kind
    if measure == "distance":
        require_strong_convexity(f)
    else:
        kind = Kind.UNKNOWN
    loop = _Loop(f, per_image(eps, x0), x0, measure)
    interval = GPU_INTERVAL if x0.is_cuda else 1
    limits = torch.as_tensor(max_steps, device=x0.device).expand(x0.shape[0])
    ends = set(limits.tolist())
    current, state = f, solver.init(f, x0)
    loop.cost += state.cost
    for count in range(max(ends) + 1):
        if count % interval == 0 or count in ends:
            keep = loop.examine(current, state, count)
            state, current = _kept(keep, state, current)
            if state is None:
                break
            if should_stop is not None and should_stop():
                loop.give_up(current, state, torch.ones_like(loop.index, dtype=torch.bool), BUDGET)
                break
            if count in ends:
                keep = loop.give_up(current, state, limits[loop.index] <= count, MAX_STEPS)
                state, current = _kept(keep, state, current)
                if state is None:
                    break
        state = solver.step(current, state)
        loop.cost += state.cost
        loop.running += 1
    theorem = tuple(f.theorems[i] for i in loop.theorem.tolist()) if is_saddle(f) else ()
    return Solution(
        loop.value,
        loop.rule.distance(loop.closing),
        kind,
        tuple(CODES[i] for i in loop.code.tolist()),
        loop.steps,
        loop.cost,
        solver.name,
        loop.size,
        loop.gradient,
        theorem=theorem,
        measure=getattr(f, "measure", measure),
    )


def _kept(keep: Tensor | None, state: Any, f: Potential) -> tuple[Any, Potential]:
    """State and potentials of the images at positions ``keep``; a state of None when there are
    none, all for None.
    """
    if keep is None or keep.numel() == state.evidence.shape[0]:
        return state, f
    return (state.select(keep), f.select(keep)) if keep.numel() else (None, f)


class _ByGradient:
    """Images are certified by a gradient norm and mu."""

    def __init__(self, f: Potential, dtype: torch.dtype) -> None:
        constants = constants_of(f)
        self.mu = constants.mu
        self.target = constants.mu  # evidence that certifies a distance of one, (b,) or (1,)
        condition = float((constants.L / constants.mu).max())
        self.patience = int(30 + 4 * min(condition, 1e8) ** 0.5)
        self.L, self.eps = constants.L, torch.finfo(dtype).eps

    def broken(self, evidence: Tensor, state: Any) -> Tensor:
        """Images (b,) that cannot go on."""
        return ~torch.isfinite(evidence)

    def noise(self, f: Potential, point: Tensor) -> Tensor:
        """Evidence (b,) below which rounding may be all there is."""
        return self.eps * constants_of(f).L * norm(point).double()

    def patient(self, running: int) -> tuple[int, int]:
        """Steps without progress after which noise, and any reason near the noise, ends an
        image.
        """
        return NOISE_PATIENCE, self.patience

    def close(self, f: Potential, point: Tensor) -> Closing:
        """Evidence and gradient in float64; the evidence pays for the rounding of the gradient."""
        wide, x = f.double(), point.double()
        gradient = wide.grad(x)
        size = norm(gradient)
        return Closing(size + rounding_of(wide, x), size, gradient, None)

    def distance(self, evidence: Tensor) -> Tensor:
        return distance_from_gradient(evidence, self.mu)


class _ByStationarity(_ByGradient):
    """Images are done when their gradient is small; no distance is known."""

    def __init__(self, f: Potential, dtype: torch.dtype) -> None:
        constants = constants_of(f)
        self.mu = self.target = torch.ones(1, dtype=torch.float64, device=constants.L.device)
        self.patience = 3000
        self.eps = torch.finfo(dtype).eps

    def noise(self, f: Potential, point: Tensor) -> Tensor:
        L = constants_of(f).L
        return self.eps * torch.where(torch.isfinite(L), L, 1.0) * norm(point).double()

    def distance(self, evidence: Tensor) -> Tensor:
        return torch.full_like(evidence, torch.inf)


class Closing(NamedTuple):
    """What a closing evaluation of some images has shown; (b,) each but for the gradient.

    Attributes:
        evidence: what is compared with the target.
        size: the norm of the gradient itself; NaN where there is none.
        gradient: (b, ...).
        theorem: codes of the certificates, or None where there is one only.
    """

    evidence: Tensor
    size: Tensor
    gradient: Tensor
    theorem: Tensor | None


def examined(f: Potential, x: Tensor, measure: Measure) -> tuple[Closing, Tensor]:
    """The closing evaluation of a point of f, and the distance (b,) that it certifies."""
    rule: Any = _rule(f, measure)(f, x.dtype)
    closing: Closing = rule.close(f, x)
    return closing, rule.distance(closing.evidence)


def rounding_of(f: Potential, x: Tensor) -> Tensor:
    """What rounding can make of a gradient norm at x, (b,); see ``problems.EnergyAt.rounding``.

    A potential that does not tell gets four units of L ||x||.
    """
    offer = getattr(f, "rounding", None)
    if offer is not None:
        return offer(x)
    L = constants_of(f).L
    units = 4 * torch.finfo(x.dtype).eps * torch.where(torch.isfinite(L), L, 0.0)
    return units * norm(x).double()


class _ByCertificate:
    """Images are certified by the saddle function itself, whose evidence is a distance."""

    target = 1.0

    def __init__(self, f: Any, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def broken(self, evidence: Tensor, state: Any) -> Tensor:
        """An infinite gap is no failure: K x may pass through places where f is infinite."""
        return evidence.isnan() | ~torch.isfinite(state.point).all(dim=1)

    def noise(self, f: Any, point: Tensor) -> Tensor:
        return f.rounding_distance(point)

    def patient(self, running: int) -> tuple[int, int]:
        """A gap that falls as 1/k^2 looks slow after many steps."""
        return max(NOISE_PATIENCE, running // 4), max(100, running // 2)

    def close(self, f: Any, point: Tensor) -> Closing:
        certificate = f.double().certify(point.double())
        size = norm(certificate.gradient)
        # a saddle function without derivatives has no gradient of its Lagrangian
        size = torch.where(size > 0, size, torch.nan)
        return Closing(certificate.distance, size, certificate.gradient, certificate.theorem)

    def distance(self, evidence: Tensor) -> Tensor:
        return evidence


def _rule(f: Potential, measure: Measure) -> type[_ByGradient] | type[_ByCertificate]:
    if is_saddle(f):
        return _ByCertificate
    return _ByGradient if measure == "distance" else _ByStationarity


class _Loop:
    """Bookkeeping of ``minimize``: which images are still running, what the finished ones left."""

    def __init__(self, f: Potential, eps: Tensor, x0: Tensor, measure: Measure) -> None:
        size, device = x0.shape[0], x0.device
        self.rule: Any = _rule(f, measure)(f, x0.dtype)
        self.target = self.rule.target * eps  # evidence that certifies eps, float64
        self.wanted = (
            0.95 * self.target
        )  # what the working precision must show before a closing gradient is paid for
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

    def examine(self, f: Potential, state: Any, count: int) -> Tensor | None:
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
        stalled = self._stalled(f, evidence, state, count) & ~nominated & ~broken
        if not bool((nominated | stalled | broken).any()):
            return None
        done = broken.clone()
        if bool((nominated | stalled).any()):
            asked = torch.nonzero(nominated | stalled).flatten()
            closing = self._close(f, state.point, asked)
            passed = closing <= self.target[index[asked]]
            self.failures[index[asked]] += (~passed).long()
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

    def _stalled(self, f: Potential, evidence: Tensor, state: Any, count: int) -> Tensor:
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
            level = self.rule.noise(f, state.point)
            noise, late = evidence <= level, waiting > long
            stalled = (waiting > short) & noise | late & (evidence <= 100 * level)
            waiting = torch.where(late & ~stalled, 0, waiting)
        else:
            stalled = torch.zeros_like(better)
        self.best[self.index], self.waiting[self.index] = (
            torch.where(better, evidence, best),
            waiting,
        )
        return stalled

    def give_up(self, f: Potential, state: Any, ending: Tensor, code: int) -> Tensor:
        """Certify what the unfinished images ``ending`` (a mask) have reached; positions of those
        that go on.
        """
        positions = torch.nonzero(ending).flatten()
        if positions.numel():
            index = self.index[positions]
            self.steps[index] = self.running
            closing = self._close(f, state.point, positions)
            self.code[index] = torch.where(closing <= self.target[index], CONVERGED, code)
        keep = torch.nonzero(~ending).flatten()
        self.index = self.index[keep]
        self.level = self.wanted[self.index].to(state.evidence.dtype)
        return keep

    def _close(self, f: Potential, point: Tensor, positions: Tensor) -> Tensor:
        """Closing gradient norms in float64 at the chosen images; stores the points and the
        norms.
        """
        chosen, x = self.index[positions], point[positions]
        sub = f if positions.numel() == point.shape[0] else f.select(positions)
        found: Closing = self.rule.close(sub, x)
        self.cost += Cost(gradients=positions.numel())
        self.value[chosen], self.gradient[chosen] = x, found.gradient.to(x.dtype)
        self.closing[chosen], self.size[chosen] = found.evidence, found.size
        if found.theorem is not None:
            self.theorem[chosen] = found.theorem
        return found.evidence
