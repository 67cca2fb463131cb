"""One accepted descent step with certified decrease: shared by MAID and the fixed-accuracy
baseline.

Source: Salehi, Mukherjee, Roberts, Ehrhardt, arXiv 2308.10098, Algorithms 3.1 and 3.2. With a
direction d = P z in the place of z (P positive definite from curvature pairs, P = I without) the
two tests read
    descent:  |<d, z - grad f>| <= (1 - eta) <d, z>        (implies <d, grad f> >= eta <d, z> > 0),
    decrease: U(theta - alpha d) - Lw(theta) + lambda alpha <d, z> <= 0    (implies the same for the
    exact f),
and for P = I they are those of the paper with |<d, z - grad f>| <= omega ||d||. The certified test
uses the proven omega, the estimated one the change that a Newton polish makes to <d, z>. U and Lw
are the certified ends of the bracket of f.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..core.objective import (
    ErrorWord,
    Halt,
    Objective,
    Row,
    Value,
    checked,
    doubt_of,
    rounding_floor,
    row_of,
)
from ..core.results import Hypergradient, StopReason
from ..core.status import Status
from .accuracy import Accuracy, Adaptive, Fixed
from .arcs import Arc, free_of, restricted, seen
from .box import Box, Ranges, box_of
from .curvature import CurvaturePairs, diagonal_metric, mean_squares

LARGEST_CUT = 0.02
"""A single tightening never divides eps by more than 50: one wrong prediction cannot force a very
tight solve.
"""


WIDE = 10.0
"""A bracket so many times wider than the gain of the first short step calls for a longer one."""

EXPLORED = (0.1, 4.0)
"""eps of a trial that is decided by estimates, over the one before: within this range."""

FOR_CURVATURE = 0.1
"""With curvature pairs z must be known to this relative accuracy: differences of z are what the
pairs are made of.
"""


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
    test: Literal["estimated", "certified"]
    gradient_tolerance: float
    smallest_eps: float
    error: ErrorWord
    decrease: Literal["certified", "estimated"] = "certified"
    box: Ranges = None

    def box_of(self, objective: Objective) -> Box | None:
        """The box of theta, if there is one."""
        return None if self.box is None else box_of(self.box, objective)


@dataclass(frozen=True)
class DescentState:
    """Of MAID and its fixed-accuracy baseline.

    Attributes:
        point: theta_k with its lower-level solution.
        adjoint: (b, ...), the latest q, or None before the first hypergradient.
        eps, delta: present accuracies.
        step_size: the first trial of the next line search.
        pairs: curvature of the upper level.
        last: (2, d), theta_{k-1} and z_{k-1}, or None.
        squares: (d,), running mean of the squared hypergradients in units, or None.
        info: what the record shows of the step that led here.
    """

    point: Value
    adjoint: Tensor | None
    eps: float
    delta: float
    step_size: float | None
    pairs: CurvaturePairs
    last: Tensor | None
    squares: Tensor | None
    info: Row

    @property
    def theta(self) -> Tensor:
        return self.point.theta

    def row(self) -> Row:
        """The point, and how the step was made."""
        return row_of(self.point, self.info)


@dataclass
class _Effort:
    """What the step in progress has used, for the record."""

    trials: int = 0
    refinements: int = 0


def descend(rules: DescentRules, objective: Objective, state: DescentState) -> DescentState:
    """One accepted step, or Halt with the reason why there can be none."""
    effort = _Effort()
    box = rules.box_of(objective)
    allowed, failed = rules.trials, 0
    while failed < rules.rounds:
        state, whole, z, error = _gradient(rules, objective, state, box)
        units = objective.units.to(z.value) if rules.memory else torch.ones_like(z.value)
        state = _learn_curvature(rules, state, whole, units)
        found = _direction(rules, state, z, units, free_of(box, state.theta, whole.value))
        vague = z.norm == 0 or (rules.memory and error > FOR_CURVATURE * z.norm)
        if found is None or (isinstance(rules.accuracy, Adaptive) and vague):
            state = _sharpen(rules, objective, state, z, effort)
            continue
        aim = Arc(state.theta, *found, z, box)
        first = _first_step(state, aim.direction, aim.slope, units, rules)
        state = _tighten_early(rules, objective, state, aim.at(first)[1], effort)
        reached = _search(rules, objective, state, aim, first, allowed, effort)
        if isinstance(reached, tuple):
            state, new, alpha = reached
            return _accept(rules, state, new, alpha, whole, effort)
        state, failed, allowed = reached, failed + 1, allowed + 1
        decrease = _decrease(state)
        if isinstance(rules.accuracy, Fixed):
            raise Halt(
                StopReason(
                    "line_search",
                    f"no trial step gave {decrease} at this fixed accuracy; "
                    "a smaller eps or MAID would go on",
                )
            )
        factor = rules.accuracy.tighten
        state = replace(
            _tighten(rules, objective, state, factor, effort),
            delta=state.delta * factor,
            pairs=CurvaturePairs.empty(state.point.theta),
            last=None,
        )
    raise Halt(
        StopReason(
            "line_search", f"no {_decrease(state)[2:]} after {rules.rounds} rounds of tightening"
        )
    )


def _decrease(state: DescentState) -> str:
    """What an accepted step needs, by how the brackets are known."""
    certified = state.point.certified
    return "a certified decrease" if certified else "a decrease beyond the estimated errors"


# --- the inexact hypergradient --------------------------------------------------------------------


def _gradient(
    rules: DescentRules, objective: Objective, state: DescentState, box: Box | None
) -> tuple[DescentState, Hypergradient, Hypergradient, float]:
    """The hypergradient at theta_k with the present accuracies, what counts of it in a box, and
    the error of that.
    """
    point = checked(objective.refine(state.point, state.eps))
    whole = objective.gradient(point, state.delta, state.adjoint, rules.error)
    z = seen(whole, free_of(box, state.theta, whole.value))
    state = replace(state, point=point, adjoint=z.adjoint)
    if z.certified is None and z.undecided and rules.test == "certified":
        # pixels may or may not be at a bound: a smaller distance decides them
        assert isinstance(rules.accuracy, Adaptive)
        sharper = tighten(rules, objective, state, rules.accuracy.tighten)
        return _gradient(rules, objective, sharper, box)
    error = z.certified if rules.test == "certified" else z.estimated
    if error is None and rules.test == "certified":
        raise Halt(
            StopReason(
                "no_certificate",
                "the energy offers no proven constants for the certified test; "
                "use test='estimated'",
            )
        )
    error = error or 0.0
    if not torch.isfinite(z.value).all():
        raise Halt(StopReason("not_finite", "NaN or Inf appeared in the hypergradient"))
    if z.norm == 0 and isinstance(rules.accuracy, Fixed):
        raise Halt(
            StopReason(
                "line_search",
                "the hypergradient is zero at this fixed accuracy, which need not mean "
                "that theta is stationary; a smaller delta or MAID would tell",
            )
        )
    unseen = (
        whole.norm == 0 and float(z.residual.max()) > rules.gradient_tolerance
    )  # q = 0 met delta, theta played no part
    if (
        z.norm + error <= rules.gradient_tolerance
        and not unseen
        and isinstance(rules.accuracy, Adaptive)
    ):
        word = (
            "certified"
            if rules.test == "certified"
            else "not estimated by this strategy"
            if z.estimated is None
            else "estimated"
        )
        raise Halt(StopReason("stationary", f"||grad f|| <= {z.norm + error:.2e} ({word})"))
    return state, whole, z, error


def _sharpen(
    rules: DescentRules,
    objective: Objective,
    state: DescentState,
    z: Hypergradient,
    effort: _Effort,
) -> DescentState:
    """Tighten what z suffers from: delta if the residual outweighs the distance, eps the other way,
    else both.
    """
    assert isinstance(rules.accuracy, Adaptive)
    factor = rules.accuracy.tighten
    distance, residual = float(state.point.error.mean()), float(z.residual.mean())
    if residual <= 4 * distance:
        state = _tighten(rules, objective, state, factor, effort)
    elif any(s is Status.ROUNDING_FLOOR for s in z.status):
        raise rounding_floor(
            state.theta.dtype,
            f"the linear system cannot be solved more accurately than {residual:.1e}",
        )
    elif any(
        s is Status.MAX_STEPS for s in z.status
    ):  # a smaller delta would end at the same limit, again and again
        raise Halt(
            StopReason(
                "linear_steps",
                f"the linear system ended at its step limit with residual {residual:.1e}",
            )
        )
    else:
        effort.refinements += 1
    return replace(state, delta=state.delta * factor) if distance <= 4 * residual else state


def _learn_curvature(
    rules: DescentRules, state: DescentState, z: Hypergradient, units: Tensor
) -> DescentState:
    """Add the pair of the step just made; a gradient seen twice at one theta is not a pair, and
    counts once.
    """
    if rules.memory and (state.last is not None or state.squares is None):
        state = replace(state, squares=mean_squares(state.squares, z.value, units))
    if state.last is None:
        return state
    s = state.point.theta - state.last[0]
    y = z.value - state.last[1]
    pairs = state.pairs.add(s, y, rules.memory, units)
    # a new pair sets the scale of the next step to 1; where the curvature was negative the steps go
    # on growing
    return replace(
        state, pairs=pairs, last=None, step_size=state.step_size if pairs is state.pairs else None
    )


def _direction(
    rules: DescentRules,
    state: DescentState,
    z: Hypergradient,
    units: Tensor,
    free: Tensor | None = None,
) -> tuple[Tensor, float] | None:
    """d = P z and <d, z> if d passes the descent test, else scaled steepest descent, else None."""
    for pairs in (restricted(state.pairs, free, units), CurvaturePairs.empty(z.value)):
        d = pairs.direction(z.value, diagonal_metric(state.squares, units))
        d = d if free is None else d * free
        slope = float(d @ z.value)
        if isinstance(rules.accuracy, Fixed) or z.along(d, rules.test) <= (1 - rules.eta) * slope:
            return d, slope
    return None


def _first_step(
    state: DescentState, direction: Tensor, slope: float, units: Tensor, rules: DescentRules
) -> float:
    """The first trial: 1 with curvature, otherwise the remembered step size; d is never longer than
    theta allows.
    """
    length = float((direction / units).norm())
    reach = max(float((state.point.theta / units).norm()), 1.0)
    if len(state.pairs):
        return min(max(state.step_size or 1.0, 1.0), 0.5 * reach / length)
    if state.step_size is None:
        short = 0.05 * reach / length
        # why: to show what a short step gains, a wide bracket would have to become much narrower
        shows = state.point.width / slope if state.point.width > WIDE * short * slope else 0.0
        return min(max(short, shows), 0.5 * reach / length)
    return min(state.step_size, 0.5 * reach / length) if rules.memory else state.step_size


# --- the line search ------------------------------------------------------------------------------


def _search(
    rules: DescentRules,
    objective: Objective,
    state: DescentState,
    aim: Arc,
    first: float,
    allowed: int,
    effort: _Effort,
) -> tuple[DescentState, Value, float] | DescentState:
    """Backtrack until a trial has a certified decrease: (state, new point, alpha); the state alone
    when none has.
    """
    alpha = first
    for _ in range(allowed):
        theta, predicted = aim.at(alpha)
        effort.trials += 1
        scale = max(abs(state.point.loss), 1e-300)
        if alpha * aim.slope <= 1e-13 * scale:
            break
        if not predicted > 0 or not aim.leads_down(theta, predicted, rules.eta, rules.test):
            alpha *= rules.rho  # the box has bent the step too far
            continue
        new = objective.trial(theta, _trial_eps(rules, state, predicted), state.point)
        if new is None:
            alpha *= rules.rho
            continue
        wanted = rules.sufficient * predicted
        while not new.failed:
            before, after = (_range(rules, p, state.adjoint) for p in (state.point, new))
            if after.upper - before.lower + wanted <= 0:
                return state, new, alpha
            if after.lower - before.upper + wanted > 0 or isinstance(rules.accuracy, Fixed):
                break  # no accuracy can make this trial acceptable
            gain = state.point.corrected(state.adjoint) - new.corrected(state.adjoint) - wanted
            slack = before.width + after.width
            if gain <= max(1e-2 * slack, 0.1 * predicted) and new.eps <= state.eps:
                break  # undecided and not promising: a shorter step is cheaper than more accuracy
            if new.eps > state.eps and not new.at_floor:
                new = objective.refine(new, max(state.eps, new.eps * _cut(rules, gain, slack)))
            else:
                state = _tighten(rules, objective, state, _cut(rules, gain, slack), effort)
                new = checked(objective.refine(new, state.eps))
        alpha *= rules.rho if new.failed else _shrink(rules, state, new, predicted)
    return state


class _Range(NamedTuple):
    """Where f(theta) lies, by the bracket or by the estimate of ``exploring``."""

    lower: float
    upper: float

    @property
    def width(self) -> float:
        return self.upper - self.lower


def _range(rules: DescentRules, point: Value, adjoint: Tensor | None) -> _Range:
    """What the rules take for the range of f at a point."""
    if rules.decrease == "certified":
        return _Range(point.lower, point.upper)
    middle, doubt = point.corrected(adjoint), doubt_of(point, adjoint)
    return _Range(middle - doubt, middle + doubt)


def _shrink(rules: DescentRules, state: DescentState, new: Value, predicted: float) -> float:
    """Factor for the next trial: the minimizer of the parabola through both values and the slope,
    in [0.1, rho].
    """
    rise = new.corrected(state.adjoint) - state.point.corrected(state.adjoint) + predicted
    return min(rules.rho, max(0.1, 0.5 * predicted / rise)) if rise > 0 else rules.rho


def _trial_eps(rules: DescentRules, state: DescentState, decrease: float) -> float:
    """Solve a trial only as far as its predicted decrease asks for: bracket width about a quarter
    of it.
    """
    if isinstance(rules.accuracy, Fixed):
        return state.eps
    if rules.decrease == "estimated":
        width = max(_range(rules, state.point, state.adjoint).width, 1e-300)
        wanted = 0.25 * decrease * state.point.eps / width  # widths are linear in eps
        return min(max(wanted, EXPLORED[0] * state.eps), EXPLORED[1] * state.eps)
    slope = (
        max(2 * state.point.loss, 1e-300) ** 0.5
    )  # ||grad loss|| for the squared error, a scale for others
    return min(max(state.eps, decrease / (8 * slope)), 100 * state.eps)


def _cut(rules: DescentRules, gain: float, slack: float) -> float:
    """By how much to multiply eps so that the bracket can settle the matter (its width is linear in
    eps).
    """
    assert isinstance(rules.accuracy, Adaptive)
    return min(rules.accuracy.tighten, max(LARGEST_CUT, 0.5 * gain / slack))


def _tighten_early(
    rules: DescentRules, objective: Objective, state: DescentState, decrease: float, effort: _Effort
) -> DescentState:
    """Before a search that could not succeed: the bracket at theta_k alone is wider than the
    largest decrease.
    """
    width = _range(rules, state.point, state.adjoint).width
    if isinstance(rules.accuracy, Fixed) or width <= 0.5 * decrease:
        return state
    return _tighten(rules, objective, state, _cut(rules, 0.5 * decrease, width), effort)


def tighten(
    rules: DescentRules, objective: Objective, state: DescentState, factor: float
) -> DescentState:
    """eps times ``factor`` and theta_k solved again; delta stays, because no bracket depends on
    it.

    Raises:
        Halt: at the floor of the floating-point type, or of the rules.
    """
    return _tighten(rules, objective, state, factor, _Effort())


def _tighten(
    rules: DescentRules, objective: Objective, state: DescentState, factor: float, effort: _Effort
) -> DescentState:
    """``tighten``, counted."""
    if not (state.point.width > 0 or bool((state.point.error > 0).any())):  # nothing to tighten
        raise rounding_floor(
            state.theta.dtype,
            "the loss is exact up to rounding, and no trial step decreases it by more than that",
        )
    effort.refinements += 1
    eps = state.eps * factor
    if eps < rules.smallest_eps:
        raise Halt(
            StopReason(
                "accuracy_floor", f"the next decision would need eps below {rules.smallest_eps:.1e}"
            )
        )
    if state.point.at_floor:
        reached = float(state.point.error.max())
        raise rounding_floor(
            state.theta.dtype,
            f"the lower level cannot be solved more accurately than {reached:.1e}",
        )
    return replace(state, eps=eps, point=checked(objective.refine(state.point, eps)))


def _accept(
    rules: DescentRules,
    state: DescentState,
    new: Value,
    alpha: float,
    z: Hypergradient,
    effort: _Effort,
) -> DescentState:
    """theta moves; accuracies loosen, eps at least to what this step could be certified with; the
    step size grows.
    """
    loosen = rules.accuracy.loosen if isinstance(rules.accuracy, Adaptive) else 1.0
    growth = rules.growth if rules.memory == 0 else 2.0
    # why not loosened: eps follows the estimates, and nothing would tighten delta again
    exploring = rules.decrease == "estimated"
    info = {
        "eps": new.eps,
        "delta": state.delta,
        "step_size": alpha,
        "trials": effort.trials,
        "refinements": effort.refinements,
        "gradient_norm": z.norm,
        "omega_estimated": z.estimated,
        "omega_certified": z.certified,
        "curvature_pairs": len(state.pairs),
    }
    return DescentState(
        new,
        state.adjoint,
        new.eps if exploring else max(state.eps * loosen, new.eps),
        state.delta if exploring else state.delta * loosen,
        alpha * growth,
        state.pairs,
        torch.stack([state.point.theta, z.value]),
        state.squares,
        info,
    )
