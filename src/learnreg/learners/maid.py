"""MAID, the Method of Adaptive Inexact Descent, and its fixed-accuracy baseline."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from ..core.errors import InputError
from ..core.grants import Grants
from ..core.objective import Objective
from ..core.ranges import (
    check_choice,
    check_flag,
    check_fraction,
    check_number,
    check_positive,
    shown,
    tidy,
)
from .accuracy import Adaptive, Fixed
from .box import Ranges, box_of, check_ranges
from .curvature import CurvaturePairs
from .descent import DescentRules, DescentState, descend
from .rescaling import rescaled

CERTIFYING = Grants.LOSS | Grants.GRADIENT | Grants.BRACKET | Grants.ADAPTIVE
"""What a certified decrease needs."""


def _check_descent(learner: MAID | FixedAccuracy) -> None:
    """The settings that both learners share."""
    check_positive("alpha0", learner.alpha0, optional=True)
    check_fraction("rho", learner.rho)
    check_number("growth", learner.growth, lambda v: v >= 1, "a number >= 1")
    check_fraction("eta", learner.eta)
    check_number(
        "sufficient",
        learner.sufficient,
        lambda v: 0 < v < learner.eta,
        f"a number in (0, eta={learner.eta:g})",
    )
    check_number("trials", learner.trials, lambda v: v >= 1, "an integer >= 1", integer=True)
    check_number("memory", learner.memory, lambda v: v >= 0, "an integer >= 0", integer=True)


@dataclass(frozen=True)
class MAID:
    """Method of Adaptive Inexact Descent: as accurate as necessary, as cheap as possible.

    Every accepted step has a *certified* decrease of the exact loss (Lemma 3.5 of Salehi et al.,
    arXiv 2308.10098), provided mu is known: eps and delta are tightened when a decision needs it
    and loosened after each step. With ``memory`` > 0 the direction uses limited-memory curvature
    (derived here; the paper's theory covers ``memory=0``, steepest descent).

    Args:
        eps0, delta0: first accuracies (distance and residual per image); derived at theta_0 when
            None.
        alpha0: first step size; a step of 5 % of ||theta_0|| when None.
        rho: factor of a failed trial, in (0, 1).
        growth: factor of the step size after an accepted step, rho_bar >= 1 (used with
            ``memory=0``).
        accuracy: tighten and loosen factors nu, nu_bar.
        eta: of the descent test, in (0, 1).
        sufficient: lambda of the sufficient decrease, in (0, eta).
        trials: line-search trials per round (one more after each failed round).
        rounds: failed rounds before the run stops.
        memory: curvature pairs kept; 0 is the method of the paper.
        test: ``estimated`` runs the descent test with the estimated error of z, ``certified`` with
            the proven bound (often hundreds of times larger, so eps becomes tiny); the decrease is
            certified in both.
        gradient_tolerance: stop when ||z|| + error is below.
        smallest_eps: stop when a decision would need less.
        box: [lower, upper] of the parameters, or a table by name; steps are projected (``arcs``).
        rescale: begin with the scale of the regularizer, as ``Deferred`` does; for operators that
            are far from norm one.

    Raises:
        InputError: a value out of range.
    """

    eps0: float | None = None
    delta0: float | None = None
    alpha0: float | None = None
    rho: float = 0.5
    growth: float = 10 / 9
    accuracy: Adaptive = field(default_factory=Adaptive)
    eta: float = 0.5
    sufficient: float = 1e-4
    trials: int = 10
    rounds: int = 20
    memory: int = 20
    test: Literal["estimated", "certified"] = "estimated"
    gradient_tolerance: float = 1e-9
    smallest_eps: float = 1e-11
    box: Ranges = None
    rescale: bool = False

    def __post_init__(self) -> None:
        tidy(self)
        check_positive("eps0", self.eps0, optional=True)
        check_positive("delta0", self.delta0, optional=True)
        _check_descent(self)
        check_number("rounds", self.rounds, lambda v: v >= 1, "an integer >= 1", integer=True)
        check_positive("gradient_tolerance", self.gradient_tolerance)
        check_positive("smallest_eps", self.smallest_eps)
        check_choice("test", self.test, ("estimated", "certified"))
        check_ranges("box", self.box)
        check_flag("rescale", self.rescale)
        if not isinstance(self.accuracy, Adaptive):
            raise InputError(
                "accuracy",
                given=shown(self.accuracy),
                expected="an Adaptive",
                remedy="For example accuracy=learners.Adaptive(tighten=0.5); FixedAccuracy(eps, "
                "delta) keeps one accuracy.",
            )

    state: ClassVar[type[DescentState]] = DescentState

    @property
    def needs(self) -> Grants:
        """An error of z that tightening makes small, for ``test="certified"``. An estimate is taken
        where there is one; without it every direction passes the descent test, and the decrease is
        certified all the same.
        """
        return CERTIFYING | (Grants.BOUND if self.test == "certified" else Grants.NONE)

    def init(self, objective: Objective, theta: Tensor, seed: int = 0) -> DescentState:
        """Solve at theta_0 to eps0; nothing is drawn at random."""
        box = box_of(self.box, objective)
        if self.rescale:
            theta = box.project(rescaled(objective, theta))
        return first_state(objective, theta, self.eps0, self.delta0, self.alpha0)

    def step(self, objective: Objective, state: DescentState) -> DescentState:
        """One accepted step; raises Halt with the reason when there can be none."""
        return descend(self.rules, objective, state)

    @property
    def rules(self) -> DescentRules:
        """The constants of a step."""
        return DescentRules(
            self.accuracy,
            self.rho,
            self.growth,
            self.eta,
            self.sufficient,
            self.trials,
            self.rounds,
            self.memory,
            self.test,
            self.gradient_tolerance,
            self.smallest_eps,
            "certify" if self.test == "certified" else "estimate",
            box=self.box,
        )


@dataclass(frozen=True)
class FixedAccuracy:
    """The plain baseline: the same descent at one accuracy, which must be known in advance.

    Same solver, same certified decrease, same trials as MAID, but eps and delta never change; it
    stops when no trial can be certified.

    Args:
        eps, delta: the accuracies.
        alpha0: first step size; a step of 5 % of ||theta_0|| when None.
        rho, growth, eta, sufficient, trials, memory, box: as in MAID.
    """

    eps: float = 1e-2
    delta: float = 1e-2
    alpha0: float | None = None
    rho: float = 0.5
    growth: float = 10 / 9
    eta: float = 0.5
    sufficient: float = 1e-4
    trials: int = 10
    memory: int = 20
    box: Ranges = None

    def __post_init__(self) -> None:
        tidy(self)
        check_positive("eps", self.eps)
        check_positive("delta", self.delta)
        check_ranges("box", self.box)
        _check_descent(self)

    needs: ClassVar[Grants] = CERTIFYING
    state: ClassVar[type[DescentState]] = DescentState

    def init(self, objective: Objective, theta: Tensor, seed: int = 0) -> DescentState:
        """Solve at theta_0; nothing is drawn at random."""
        box_of(self.box, objective)
        return first_state(objective, theta, self.eps, self.delta, self.alpha0)

    def step(self, objective: Objective, state: DescentState) -> DescentState:
        """One accepted step."""
        rules = DescentRules(
            Fixed(),
            self.rho,
            self.growth,
            self.eta,
            self.sufficient,
            self.trials,
            1,
            self.memory,
            "estimated",
            1e-12,
            1e-300,
            "none",  # nothing would react to it
            box=self.box,
        )
        return descend(rules, objective, state)


def first_state(
    objective: Objective, theta: Tensor, eps: float | None, delta: float | None, alpha: float | None
) -> DescentState:
    """The start of a descent; accuracies that are not given are derived at theta_0."""
    eps, delta = objective.accuracies(theta, eps, delta)
    point = objective.evaluate(theta, eps)
    info = {
        "eps": eps,
        "delta": delta,
        "step_size": None,
        "trials": 0,
        "refinements": 0,
        "gradient_norm": None,
        "omega_estimated": None,
        "omega_certified": None,
        "curvature_pairs": 0,
    }
    return DescentState(
        point, None, eps, delta, alpha, CurvaturePairs.empty(theta), None, None, info
    )
