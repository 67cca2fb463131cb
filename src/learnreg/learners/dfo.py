"""Derivative-free bilevel learning with dynamic accuracy: a trust-region Gauss-Newton method that
asks for no gradient.

Source: Ehrhardt and Roberts, Inexact Derivative-Free Optimization for Bilevel Learning, J. Math.
Imaging Vis. 2021 (arXiv 2006.12674). F = 2 n f for n images is a sum of squares
(``interpolation.sample``). With its Gauss-Newton model m (``interpolation.gauss_newton``) around
theta_k, radius Delta and its lower bound rho, all in scaled variables:
    1. s = argmin m(theta_k + s) over ball and box, P = m(theta_k) - m(theta_k + s);
    2. theta_k is evaluated again until |F~ - F| <= eta1_accuracy P there, which may change s;
    3. F~ at theta_k + s, to the same bound; ratio = actual / P, accepted if ratio >= eta1;
    4. Delta grows, stays or shrinks with the ratio, never below rho. After a failure one sample is
       improved: one that is far away, one that leaves the simplex flat, or one that is inexact;
       where there is none, rho shrinks.
Steps that are shorter than rho / 2 or promise next to nothing are not evaluated but count as
failures: that is the criticality phase. The updates of Delta and rho are those of DFO-GN (Cartis
and Roberts, Math. Program. Comput. 2019).

Tolerances t, how far the residual of an image may be off. New samples: c Delta^2 with c =
``model_error``. At theta_k
    |F~ - F| <= 2 t sum_i r~_i + n t^2 <= (sqrt(F~) + sqrt(n) t)^2 - F~,
which is eta1_accuracy P for t = (sqrt(F~ + eta1_accuracy P) - sqrt(F~)) / sqrt(n). At a trial the
same t, with the F~ of theta_k, is enough: where F~(trial) <= F~(theta_k) the bound holds; elsewhere
the trial is rejected, and rightly, since its F is above (sqrt(F~(theta_k)) - sqrt(n) t)^2 >=
F~(theta_k) - eta1_accuracy P. (The published code puts the worst F~ of all samples in that place.)
Both are at most c Delta^2.

Every accepted step decreases the exact f, by at least (eta1 - 2 eta1_accuracy) P / (2 n) > 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.errors import InputError, MissingPropertyError
from ..core.grants import Grants
from ..core.objective import Halt, Objective, Row, Value, checked, rounding_floor
from ..core.ranges import check_choice, check_fraction, check_number, check_positive, tidy
from ..core.results import StopReason
from .box import Ranges, check_ranges
from .dfo_state import DFOState
from .interpolation import (
    Sample,
    Scaling,
    distances,
    gauss_newton,
    lagrange,
    nearest,
    sample,
)
from .trust_region import constrained_step, longest_step

SHORT = 0.5
"""Steps below this fraction of rho are not worth an evaluation."""

LEAST_FACTOR, RADIUS_FACTOR = 0.1, 0.5
"""rho becomes so much of itself, and Delta so much of the old rho, when rho shrinks."""

FAR, FLAT, INEXACT = 2.0, 10.0, 4.0
"""A sample is replaced beyond so many Delta, or where its Lagrange polynomial exceeds FLAT in the
ball (the simplex is flat there); it is evaluated again if its residuals are off by more than
INEXACT c Delta^2."""

MARGIN = 0.99
"""Of the accuracy that theta_k is evaluated to: its F~ changes by it, and with it the bound."""

UNRESOLVED, NEGLIGIBLE = 0.1, 1e-12
"""Predicted decreases below UNRESOLVED times what residuals known to c rho^2 leave open of F, or
below NEGLIGIBLE F (which is rounding), are not worth an evaluation either."""

LEAST_VOLUME = 1e-3
"""A failed trial is not made a sample if the volume of the simplex would shrink to less than this
fraction.
"""

SPACING = 100.0
"""The radius must be at least so many times the spacing of numbers around u."""

CONTINUATIONS = 10
"""How often a solve that reached its step limit goes on."""


@dataclass(frozen=True)
class DFO:
    """Derivative-free learning of a few parameters, with dynamic accuracy and certified decrease.

    One step of the loop is one evaluation: a new theta, or theta_k again to more accuracy. n + 1
    evaluations come first, so n should be ten rather than a hundred. Nothing is differentiated, so
    any loss and any regularizer will do.

    Args:
        box: [lower, upper] of the parameters, or a table by name. Parameters with both ends are
            scaled to [0, 1], others by their natural units.
        radius0: first trust radius and spread of the first samples, in scaled variables.
        radius_end: stop when the radius would fall below.
        eps: None for dynamic accuracy; a number solves everything to this distance per image (a
            baseline without certified decrease, which must be known in advance).
        residuals: ``images`` models one residual sqrt(2 g_i) per image, as the paper does;
            ``pixels`` models x_i - x_true pixel by pixel, which only the squared error offers and
            which misses less of the curvature of f (measured: lower losses in the end); ``auto``
            takes pixels where it can.
        model_error: c, new samples know their residuals to c Delta^2.
        eta1, eta2: least ratio of an accepted and of a very successful step.
        eta1_accuracy: eta_1', share of the predicted decrease that either end may be off by;
            strictly below min(eta1, 1 - eta2) / 2 as the theory asks (the published 0.05 equals it,
            and then an accepted step may leave f where it was).
        gamma_dec, gamma_inc, gamma_inc_bar: factors of the radius after failure and success, and of
            the length of a successful step.

    Raises:
        InputError: a value out of range.
    """

    box: Ranges = None
    radius0: float = 0.1
    radius_end: float = 1e-6
    eps: float | None = None
    residuals: Literal["auto", "images", "pixels"] = "auto"
    model_error: float = 10.0
    eta1: float = 0.1
    eta2: float = 0.7
    eta1_accuracy: float = 0.045
    gamma_dec: float = 0.5
    gamma_inc: float = 2.0
    gamma_inc_bar: float = 4.0

    def __post_init__(self) -> None:
        tidy(self)
        check_ranges("box", self.box)
        check_positive("radius0", self.radius0)
        check_number(
            "radius_end",
            self.radius_end,
            lambda v: 0 < v <= self.radius0,
            f"a number in (0, radius0={self.radius0:g}]",
        )
        check_positive("eps", self.eps, optional=True)
        check_choice("residuals", self.residuals, ("auto", "images", "pixels"))
        check_positive("model_error", self.model_error)
        check_fraction("eta1", self.eta1)
        check_number(
            "eta2", self.eta2, lambda v: self.eta1 <= v < 1, f"a number in [eta1={self.eta1:g}, 1)"
        )
        limit = min(self.eta1, 1 - self.eta2) / 2
        check_number(
            "eta1_accuracy",
            self.eta1_accuracy,
            lambda v: 0 < v < limit,
            f"a number in (0, min(eta1, 1 - eta2) / 2 = {limit:g})",
        )
        check_fraction("gamma_dec", self.gamma_dec)
        check_number("gamma_inc", self.gamma_inc, lambda v: v > 1, "a number > 1")
        check_number("gamma_inc_bar", self.gamma_inc_bar, lambda v: v > 1, "a number > 1")

    state: ClassVar[type[DFOState]] = DFOState

    @property
    def needs(self) -> Grants:
        """Nothing is differentiated; dynamic accuracy needs an objective that has one."""
        dynamic = Grants.ADAPTIVE if self.eps is None else Grants.NONE
        return Grants.LOSS | Grants.BRACKET | Grants.RESIDUALS | dynamic

    def init(self, objective: Objective, theta: Tensor, seed: int = 0) -> DFOState:
        """Evaluate at theta_0; nothing is drawn at random.

        Raises:
            InputError: theta_0 outside the box, or a radius that does not fit into it.
        """
        scaling = Scaling.of(self.box, objective)
        down, up = scaling.room(scaling.to_u(theta))
        if bool((np.maximum(-down, up) < self.radius0).any()):
            raise InputError(
                "radius0", given=self.radius0, expected="at most 0.5, half the width of the box"
            )
        eps = self._eps(objective, self.model_error * self.radius0**2)
        point = continued(objective, objective.evaluate(theta, eps), eps)
        pixels = self.residuals == "pixels" or (
            self.residuals == "auto" and point.residuals(True) is not None
        )
        first = sample(objective, scaling, point, pixels)
        info = _info(first, self.radius0, 1, "start")
        return DFOState((first,), 0, self.radius0, self.radius0, False, False, pixels, info)

    def step(self, objective: Objective, state: DFOState) -> DFOState:
        """One evaluation; raises Halt when the radius is as small as asked for."""
        checked(state.center.point)
        scaling = Scaling.of(self.box, objective)
        state, task = self._plan(scaling, state)
        eps = self._eps(objective, task.tolerance)
        point: Value | None
        if task.phase == "accuracy":
            assert task.place is not None
            point = solved(objective, objective.refine(state.samples[task.place].point, eps), eps)
        else:
            theta, near = (
                scaling.to_theta(task.u, state.theta),
                nearest(state.samples, task.u).point,
            )
            point = _attempt(objective, theta, eps, near, hopeful=task.phase != "trial")
        new = None if point is None else sample(objective, scaling, point, state.pixels)
        before = state.center
        state = (
            _taken_up(state, task, new)
            if new and task.phase != "trial"
            else self._judged(state, task, new)
        )
        certified = (
            state.center.high < before.low and state.center.point.certified
            if state.center.point.theta is not before.point.theta
            else None
        )
        info = _info(state.center, state.radius, state.info["evaluations"] + 1, task.phase)
        return replace(state, info=info | {"certified": certified})

    def _eps(self, objective: Objective, tolerance: float) -> float:
        """The distance that gives every residual its tolerance."""
        return self.eps if self.eps is not None else objective.distance_for(tolerance)

    def _plan(self, scaling: Scaling, state: DFOState) -> tuple[DFOState, Task]:
        """What to evaluate next, and the state with all changes of the radius that lead there."""
        if len(state.samples) <= len(state.center.u):
            return state, self._first_samples(scaling, state)
        while True:
            if state.repair:
                task = self._repair(scaling, state)
                if task is not None:
                    return replace(state, repair=False), task
                state = self._narrowed(state)
            center, dtype = state.center, state.theta.dtype
            if state.radius < SPACING * torch.finfo(dtype).eps * max(
                1.0, float(np.abs(center.u).max())
            ):
                raise rounding_floor(
                    dtype, "the trust region is hardly larger than the spacing of numbers"
                )
            model = gauss_newton(state.samples, state.best)
            s = constrained_step(model.g, model.h, *scaling.room(center.u), state.radius)
            predicted = model.reduction(s)
            if np.linalg.norm(s) < SHORT * state.least or not predicted > self._worthwhile(
                center, state.least
            ):
                radius = max(state.least, self.gamma_dec * state.radius)
                state = replace(state, radius=radius, repair=True, exhausted=radius <= state.least)
                continue
            allowed, images = self.eta1_accuracy * predicted, len(center.point.error)
            if self.eps is None and center.uncertainty > allowed:
                tolerance = self.tolerance(center.value, images, MARGIN * allowed, state.radius)
                if (
                    0 < center.error <= tolerance
                ):  # a loss whose bracket is wider than the theory needs
                    tolerance = 0.5 * center.error
                return state, Task("accuracy", tolerance, state.best, center.u)
            tolerance = self.tolerance(center.value, images, allowed, state.radius)
            return state, Task("trial", tolerance, None, center.u + s, predicted)

    def tolerance(self, value: float, images: int, allowed: float, radius: float) -> float:
        """How far the residual of an image may be off, for an error of F = ``value`` of at most
        ``allowed``.
        """
        root = math.sqrt(
            value
        )  # sqrt(F + a) - sqrt(F) = a / (sqrt(F + a) + sqrt(F)), without cancellation
        return min(
            allowed / (math.sqrt(value + allowed) + root) / math.sqrt(images),
            self.model_error * radius**2,
        )

    def _worthwhile(self, center: Sample, least: float) -> float:
        """The predicted decrease below which a model of samples as exact as rho asks for tells too
        little.
        """
        t, n = self.model_error * least**2, len(center.point.error)
        hidden = 2 * t * math.sqrt(n * center.value) + n * t * t if self.eps is None else 0.0
        return max(UNRESOLVED * hidden, NEGLIGIBLE * center.value)

    def _first_samples(self, scaling: Scaling, state: DFOState) -> Task:
        """Sample 0 moved by radius0 along one axis, upwards where there is room."""
        axis = len(state.samples) - 1
        u = state.samples[0].u.copy()
        _, up = scaling.room(u)
        u[axis] += self.radius0 if up[axis] >= self.radius0 else -self.radius0
        return Task("start", self.model_error * self.radius0**2, None, u)

    def _repair(self, scaling: Scaling, state: DFOState) -> Task | None:
        """A better place for the farthest sample, or more accuracy for the worst one; None if all
        are fine.
        """
        tolerance = self.model_error * state.radius**2
        away, slopes = distances(state.samples, state.center.u), lagrange(state.samples, state.best)
        flat = (
            state.radius * np.linalg.norm(slopes, axis=1) * (np.arange(len(slopes)) != state.best)
        )
        for index, bad in (
            (int(np.argmax(away)), away.max() > FAR * state.radius),
            (int(np.argmax(flat)), flat.max() > FLAT),
        ):
            if bad:
                s = longest_step(slopes[index], *scaling.room(state.center.u), state.radius)
                return Task("geometry", tolerance, index, state.center.u + s)
        worst = int(np.argmax([s.error for s in state.samples]))
        if self.eps is None and state.samples[worst].error > INEXACT * tolerance:
            return Task("accuracy", tolerance, worst, state.samples[worst].u)
        return None

    def _narrowed(self, state: DFOState) -> DFOState:
        """All samples are near and exact: a step that failed at the least radius has failed for
        good.
        """
        if not state.exhausted:
            return replace(state, repair=False)
        if state.least <= self.radius_end:
            raise Halt(
                StopReason(
                    "radius",
                    f"no step longer than {state.least:.1e} (in variables scaled by the box or "
                    "by units) decreases the loss; a smaller radius_end would go on",
                )
            )
        least = max(LEAST_FACTOR * state.least, self.radius_end)
        return replace(
            state, least=least, radius=max(RADIUS_FACTOR * state.least, least), repair=False
        )

    def _judged(self, state: DFOState, task: Task, new: Sample | None) -> DFOState:
        """After a trial: theta_k, radius and samples; None is a trial at which nothing could be
        solved.
        """
        center, old = state.center, state.radius
        ratio = -math.inf if new is None else (center.value - new.value) / task.predicted
        length = float(np.linalg.norm(task.u - center.u))
        failed = ratio < self.eta1
        if failed:
            radius = min(self.gamma_dec * old, length)
        elif ratio < self.eta2:
            radius = max(self.gamma_dec * old, length)
        else:
            radius = max(self.gamma_inc * old, self.gamma_inc_bar * length)
        radius = max(radius, state.least)
        leaves = None if new is None else _leaving(state, new, radius, failed)
        if new is None or leaves is None:
            radius = max(
                self.gamma_dec * min(old, length), state.least
            )  # the model has learned nothing
        state = replace(
            state, radius=radius, repair=failed, exhausted=max(old, length) <= state.least
        )
        if new is None or leaves is None:
            return state
        return replace(
            state, samples=_with(state.samples, leaves, new), best=state.best if failed else leaves
        )


class Task(NamedTuple):
    """An evaluation to be made: of sample ``place`` again (accuracy), in its place (geometry), or
    of a new u.
    """

    phase: str
    tolerance: float
    place: int | None
    u: np.ndarray
    predicted: float = math.nan


def _leaving(state: DFOState, new: Sample, radius: float, failed: bool) -> int | None:
    """The sample whose place a trial takes: far from theta_k, and one that leaves the simplex with
    much volume.

    None where a failed trial would flatten it.
    """
    values = lagrange(state.samples, state.best) @ (new.u - state.center.u)
    values[state.best] += 1
    away = distances(state.samples, state.center.u if failed else new.u) / radius
    worth = np.abs(values) * np.maximum(1.0, away) ** 4
    if failed:
        worth[state.best] = -1.0
    leaves = int(np.argmax(worth))
    return None if failed and abs(values[leaves]) < LEAST_VOLUME else leaves


def _taken_up(state: DFOState, task: Task, new: Sample) -> DFOState:
    """Samples after an evaluation that was no trial; theta_k changes only to what is certainly
    better.
    """
    index = len(state.samples) if task.place is None else task.place
    best = index if new.high < state.center.low else state.best
    return replace(state, samples=_with(state.samples, index, new), best=best)


def _with(samples: tuple[Sample, ...], index: int, new: Sample) -> tuple[Sample, ...]:
    return (*samples[:index], new, *samples[index + 1 :])


def continued(objective: Objective, point: Value, eps: float) -> Value:
    """The point, gone on with where a solve has reached its step limit."""
    for _ in range(CONTINUATIONS):
        if not point.limited:
            break
        point = objective.refine(point, eps)
    return point


def solved(objective: Objective, point: Value, eps: float) -> Value:
    """The point solved to eps, or Halt with the reason why it cannot be."""
    point = checked(continued(objective, point, eps))
    if point.at_floor and float(point.error.max()) > eps:
        raise rounding_floor(
            point.theta.dtype,
            f"the lower level cannot be solved more accurately than {float(point.error.max()):.1e}",
        )
    return point


def _attempt(
    objective: Objective, theta: Tensor, eps: float, near: Value, hopeful: bool
) -> Value | None:
    """A new theta, from the solution of ``near``; None where no constants or no numbers are finite,
    unless hopeful.
    """
    try:
        return solved(objective, objective.evaluate(theta, eps, near), eps)
    except (MissingPropertyError, Halt) as error:
        if hopeful or (isinstance(error, Halt) and error.reason.code != "not_finite"):
            raise
        return None


def _info(center: Sample, radius: float, evaluations: int, phase: str) -> Row:
    return {
        "eps": center.point.eps,
        "delta": None,
        "step_size": radius,
        "trials": int(phase == "trial"),
        "refinements": int(phase == "accuracy"),
        "gradient_norm": None,
        "evaluations": evaluations,
        "phase": phase,
        "certified": None,
    }
