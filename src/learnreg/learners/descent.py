"""One accepted descent step with certified decrease: shared by MAID and the fixed-accuracy baseline.

Source: Salehi, Mukherjee, Roberts, Ehrhardt, arXiv 2308.10098, Algorithms 3.1 and 3.2. With a direction d = P z in the
place of z (P positive definite from curvature pairs, P = I without) the two tests read
    descent:  omega <= (1 - eta) <d, z> / ||d||            (implies <d, grad f> >= eta <d, z> > 0),
    decrease: U(theta - alpha d) - Lw(theta) + lambda alpha <d, z> <= 0    (implies the same for the exact f),
and for P = I they are those of the paper. U and Lw are the certified ends of the bracket of f.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.results import Hypergradient, StopReason
from .accuracy import Accuracy, Adaptive, Fixed
from .curvature import CurvaturePairs
from .lower_level import LowerLevel, Point
from .state import DescentState

LARGEST_CUT = 0.02
"""A single tightening never divides eps by more than 50, so that one wrong prediction cannot force a very tight solve."""


@dataclass(frozen=True)
class DescentRules:
    """The constants of a step; see MAID for their meaning."""

    accuracy: Accuracy
    rho: float
    growth: float
    eta: float
    sufficient: float
    trials: int
    rounds: int
    memory: int
    test: str
    gradient_tolerance: float
    smallest_eps: float


class Halt(Exception):
    """A step cannot be completed; carries the reason for the upper loop."""

    def __init__(self, reason: StopReason) -> None:
        self.reason = reason
        super().__init__(reason.sentence)


@dataclass
class _Effort:
    """What the step in progress has used, for the record."""

    trials: int = 0
    refinements: int = 0


def descend(rules: DescentRules, lower: LowerLevel, state: DescentState) -> DescentState:
    """One accepted step, or Halt with the reason why there can be none."""
    effort = _Effort()
    allowed = rules.trials
    for _ in range(rules.rounds):
        state, z, error = _gradient(rules, lower, state, effort)
        state = _learn_curvature(rules, state, z, error)
        direction, slope = _direction(rules, state, z, error)
        first = _first_step(state, direction, rules)
        state = _tighten_early(rules, lower, state, first * slope, effort)
        found = _search(rules, lower, state, direction, slope, first, allowed, effort)
        if isinstance(found, tuple):
            state, new, alpha = found
            return _accept(rules, state, new, alpha, z, error, effort)
        state = found
        if isinstance(rules.accuracy, Fixed):
            raise Halt(StopReason("line_search", "no trial step gave a certified decrease at this fixed accuracy; "
                                                 "a smaller eps or MAID would go on"))
        factor = rules.accuracy.tighten
        state = replace(_tighten(rules, lower, state, factor, effort), delta=state.delta * factor,
                        pairs=CurvaturePairs.empty(state.point.theta), last=None)
        allowed += 1
    raise Halt(StopReason("line_search", f"no certified decrease after {rules.rounds} rounds of tightening"))


# --- the inexact hypergradient ---------------------------------------------------------------------------------------


def _gradient(rules: DescentRules, lower: LowerLevel, state: DescentState,
              effort: _Effort) -> tuple[DescentState, Hypergradient, float]:
    """A hypergradient that passes the descent test along itself; tightens eps and delta until it does."""
    while True:
        point = _checked(lower.refine(state.point, state.eps))
        z = lower.gradient(point, state.delta, state.adjoint)
        state = replace(state, point=point, adjoint=z.adjoint)
        error = z.certified if rules.test == "certified" else z.estimated
        if error is None:
            if rules.test == "certified":
                raise Halt(StopReason("no_certificate", "the energy offers no proven constants for the certified test; "
                                                        "use test='estimated'"))
            error = 0.0
        if not torch.isfinite(z.value).all():
            raise Halt(StopReason("not_finite", "NaN or Inf appeared in the hypergradient"))
        if z.norm + error <= rules.gradient_tolerance:
            word = "certified" if rules.test == "certified" else "estimated"
            raise Halt(StopReason("stationary", f"||grad f|| <= {z.norm + error:.2e} ({word})"))
        if isinstance(rules.accuracy, Fixed) or error <= (1 - rules.eta) * z.norm:
            return state, z, error
        factor = rules.accuracy.tighten
        state = replace(_tighten(rules, lower, state, factor, effort), delta=state.delta * factor)


def _learn_curvature(rules: DescentRules, state: DescentState, z: Hypergradient, error: float) -> DescentState:
    """Add the pair of the step just made; a gradient seen twice at one theta is not a pair."""
    if state.last is None:
        return state
    s = state.point.theta - state.last[0]
    y = z.value - state.last[1]
    pairs = state.pairs.add(s, y, rules.memory, error + state.last_error)
    return replace(state, pairs=pairs, last=None)


def _direction(rules: DescentRules, state: DescentState, z: Hypergradient, error: float) -> tuple[Tensor, float]:
    """d = P z if it passes the descent test, else z."""
    d = state.pairs.direction(z.value)
    slope = float(d @ z.value)
    if slope > 1e-3 * float(d.norm()) * z.norm and error * float(d.norm()) <= (1 - rules.eta) * slope:
        return d, slope
    return z.value, z.norm**2


def _first_step(state: DescentState, direction: Tensor, rules: DescentRules) -> float:
    """The first trial: 1 with curvature, otherwise the remembered step size; d is never longer than theta allows."""
    length = float(direction.norm())
    reach = max(float(state.point.theta.norm()), 1.0)
    if len(state.pairs):
        return min(1.0, 0.5 * reach / length)
    if state.step_size is None:
        return 0.05 * reach / length
    return min(state.step_size, 0.5 * reach / length) if rules.memory else state.step_size


# --- the line search --------------------------------------------------------------------------------------------------


def _search(rules: DescentRules, lower: LowerLevel, state: DescentState, direction: Tensor, slope: float, first: float,
            allowed: int, effort: _Effort) -> tuple[DescentState, Point, float] | DescentState:
    """Backtrack until a trial has a certified decrease: (state, new point, alpha); the state alone when none has."""
    alpha = first
    for _ in range(allowed):
        theta = state.point.theta - alpha * direction
        effort.trials += 1
        scale = max(abs(state.point.loss), 1e-300)
        if alpha * slope <= 1e-13 * scale:
            break
        new = lower.solve(theta, _trial_eps(rules, state, alpha * slope), state.point.solution.value)
        wanted = rules.sufficient * alpha * slope
        while not new.failed:
            if new.upper - state.point.lower + wanted <= 0:
                return state, new, alpha
            if new.lower - state.point.upper + wanted > 0 or isinstance(rules.accuracy, Fixed):
                break  # no accuracy can make this trial acceptable
            gain = state.point.corrected(state.adjoint) - new.corrected(state.adjoint) - wanted
            slack = state.point.width + new.width
            if gain <= 1e-2 * slack and new.eps <= state.eps:
                break  # undecided and not promising: a shorter step is cheaper than more accuracy
            if new.eps > state.eps:
                new = lower.refine(new, max(state.eps, new.eps * _cut(rules, gain, slack)))
            else:
                state = _tighten(rules, lower, state, _cut(rules, gain, slack), effort)
                new = _checked(lower.refine(new, state.eps))
        alpha *= rules.rho
    return state


def _trial_eps(rules: DescentRules, state: DescentState, decrease: float) -> float:
    """Solve a trial only as far as its predicted decrease asks for: bracket width about a quarter of it."""
    if isinstance(rules.accuracy, Fixed):
        return state.eps
    slope = max(2 * state.point.loss, 1e-300) ** 0.5  # ||grad loss|| for the squared error, a scale for others
    return min(max(state.eps, decrease / (8 * slope)), 100 * state.eps)


def _cut(rules: DescentRules, gain: float, slack: float) -> float:
    """By how much to multiply eps so that the bracket can settle the matter (its width is linear in eps)."""
    assert isinstance(rules.accuracy, Adaptive)
    return min(rules.accuracy.tighten, max(LARGEST_CUT, 0.5 * gain / slack))


def _tighten_early(rules: DescentRules, lower: LowerLevel, state: DescentState, decrease: float,
                   effort: _Effort) -> DescentState:
    """Before a search that could not succeed: the bracket at theta_k alone is wider than the largest decrease."""
    if isinstance(rules.accuracy, Fixed) or state.point.width <= 0.5 * decrease:
        return state
    return _tighten(rules, lower, state, _cut(rules, 0.5 * decrease, state.point.width), effort)


def _tighten(rules: DescentRules, lower: LowerLevel, state: DescentState, factor: float,
             effort: _Effort) -> DescentState:
    """eps times ``factor`` and theta_k solved again; delta stays, because no bracket depends on it."""
    effort.refinements += 1
    eps = state.eps * factor
    if eps < rules.smallest_eps:
        raise Halt(StopReason("accuracy_floor", f"the next decision would need eps below {rules.smallest_eps:.1e}"))
    return replace(state, eps=eps, point=_checked(lower.refine(state.point, eps)))


def _checked(point: Point) -> Point:
    """The point, or Halt when the accuracy asked for could not be had."""
    if point.at_floor:
        reached = float(point.solution.error.max())
        raise Halt(StopReason("accuracy_floor", f"the lower level cannot be solved more accurately than {reached:.1e} in "
                                                f"{point.theta.dtype}; float64 would go on"))
    if point.failed:
        raise Halt(StopReason("not_finite", "the lower level could not be solved at the present parameters: "
                                            f"{next(s.value for s in point.solution.status if not s.ok)}"))
    return point


def _accept(rules: DescentRules, state: DescentState, new: Point, alpha: float, z: Hypergradient, error: float,
            effort: _Effort) -> DescentState:
    """theta moves; accuracies loosen, the step size grows."""
    loosen = rules.accuracy.loosen if isinstance(rules.accuracy, Adaptive) else 1.0
    growth = rules.growth if rules.memory == 0 else 2.0
    info = {"eps": new.eps, "delta": state.delta, "step_size": alpha, "trials": effort.trials,
            "refinements": effort.refinements, "gradient_norm": z.norm, "omega_estimated": z.estimated,
            "omega_certified": z.certified, "curvature_pairs": len(state.pairs)}
    return DescentState(new, state.adjoint, state.eps * loosen, state.delta * loosen, alpha * growth, state.pairs,
                        torch.stack([state.point.theta, z.value]), error, info)
