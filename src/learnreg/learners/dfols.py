"""DFO-LS as a learner: the maintained derivative-free least-squares package, fed with certified
inexact residuals.

Source of the method: Cartis, Fiala, Marteau, Roberts, ACM Trans. Math. Software 45, 2019; the
package (GPL) is optional and used by its public interface alone. It knows nothing of accuracy. Its
hook ``nsamples``, called with the trust radius Delta before evaluations, sets the tolerance of the
residuals to c Delta^2; the phase in which ``DFO`` makes theta_k more accurate has no counterpart,
so no decrease is certified.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar, cast

import numpy as np
from torch import Tensor

from ..core.errors import MissingPropertyError
from ..core.grants import Grants
from ..core.objective import Halt, Objective, Row, Value, checked, row_of
from ..core.packing import transient
from ..core.ranges import check_number, check_positive, tidy
from ..core.results import StopReason
from .box import Ranges, check_ranges
from .dfo import continued, solved
from .interpolation import Scaling, sample
from .inverted import Evaluate, Inverted

SETTINGS = {
    "restarts.use_restarts": False,
    "noise.quit_on_noise_level": False,
    "slow.max_slow_iters": 20,
    "init.random_initial_directions": False,
}
"""Of DFO-LS: one run without restarts, and nothing drawn at random."""

LEAST, FREE = 1e-15, 1e20
"""The least tolerance, and what DFO-LS takes for no bound."""

NO_LIMIT = 10_000
"""Evaluations, for which DFO-LS sets memory aside; the budget of the run decides."""


@dataclass(frozen=True)
class DFOLSState:
    """Between two evaluations.

    Attributes:
        best: the point of least loss, as evaluated.
        latest: the last point that was evaluated.
        questions: (k, n + 1), everything that DFO-LS has asked.
        answers: (k, m), the residuals that it was told.
        info: what the record shows.
        dialogue: the running DFO-LS, not part of a checkpoint.
    """

    best: Value
    latest: Value
    questions: np.ndarray
    answers: np.ndarray
    info: Row
    dialogue: Inverted[np.ndarray] | None = cast(None, transient())

    @property
    def theta(self) -> Tensor:
        return self.best.theta

    def row(self) -> Row:
        """The best point so far."""
        return row_of(self.best, self.info)


@dataclass(frozen=True)
class DFOLS:
    """Derivative-free learning by the package DFO-LS; one step is one evaluation.

    Args:
        box: [lower, upper] of the parameters, or a table by name; scaled as in ``DFO``.
        radius0, radius_end: first and last trust radius, in scaled variables (``rhobeg`` and
            ``rhoend``).
        eps: None for the tolerance c Delta^2; a number solves everything to this distance per
            image.
        model_error: c.

    Raises:
        InputError: a value out of range.
        MissingPropertyError: at the start, if DFO-LS is not installed.
    """

    box: Ranges = None
    radius0: float = 0.1
    radius_end: float = 1e-6
    eps: float | None = None
    model_error: float = 10.0

    def __post_init__(self) -> None:
        tidy(self)
        check_ranges("box", self.box)
        check_positive("radius0", self.radius0)
        check_number(
            "radius_end",
            self.radius_end,
            lambda v: 0 < v < self.radius0,
            f"a number in (0, radius0={self.radius0:g})",
        )
        check_positive("eps", self.eps, optional=True)
        check_positive("model_error", self.model_error)

    state: ClassVar[type[DFOLSState]] = DFOLSState

    @property
    def needs(self) -> Grants:
        """Nothing is differentiated; dynamic accuracy needs an objective that has one."""
        dynamic = Grants.ADAPTIVE if self.eps is None else Grants.NONE
        return Grants.LOSS | Grants.RESIDUALS | dynamic

    def init(self, objective: Objective, theta: Tensor, seed: int = 0) -> DFOLSState:
        """Evaluate at theta_0, which DFO-LS asks for first.

        Raises:
            MissingPropertyError: DFO-LS is not installed.
        """
        _package()
        scaling = Scaling.of(self.box, objective)
        first = np.append(scaling.to_u(theta), self.model_error * self.radius0**2)
        eps = self._eps(objective, float(first[-1]))
        point = continued(objective, objective.evaluate(theta, eps), eps)
        residuals = sample(objective, scaling, point, False).residuals
        return DFOLSState(point, point, first[None], residuals[None], _info(point, 1, None))

    def step(self, objective: Objective, state: DFOLSState) -> DFOLSState:
        """The evaluation that DFO-LS asks for next; raises Halt when it has ended."""
        checked(state.latest)
        scaling = Scaling.of(self.box, objective)
        dialogue = self._dialogue(scaling, state)
        question = dialogue.ask()
        if question is None:
            raise Halt(StopReason("radius", f"DFO-LS ended: {dialogue.result.msg}"))
        theta = scaling.to_theta(question[:-1], state.theta)
        near = min(
            (state.best, state.latest),
            key=lambda p: np.linalg.norm(scaling.to_u(p.theta) - question[:-1]),
        )
        eps = self._eps(objective, float(question[-1]))
        point = solved(objective, objective.evaluate(theta, eps, near), eps)
        residuals = sample(objective, scaling, point, False).residuals
        best = point if point.loss < state.best.loss else state.best
        dialogue.tell(residuals.copy())
        questions = np.concatenate([state.questions, question[None]])
        answers = np.concatenate([state.answers, residuals[None]])
        info = _info(best, len(questions), float(question[-1]))
        return DFOLSState(best, point, questions, answers, info, dialogue)

    def _eps(self, objective: Objective, tolerance: float) -> float:
        """The distance that gives every residual its tolerance (``interpolation.sample``)."""
        return self.eps if self.eps is not None else objective.distance_for(tolerance)

    def _dialogue(self, scaling: Scaling, state: DFOLSState) -> Inverted[np.ndarray]:
        """DFO-LS where the state left it: the one that is running, or a new one that is told
        everything again.
        """
        if state.dialogue is not None and state.dialogue.told == len(state.questions):
            return state.dialogue
        start = state.questions[0][:-1]
        down, up = scaling.room(start)
        dialogue: Inverted[np.ndarray] = Inverted(
            lambda evaluate, accept: self._run(evaluate, start, (start + down, start + up))
        )
        if not dialogue.replay(
            (question, residuals.copy())
            for question, residuals in zip(state.questions, state.answers, strict=True)
        ):
            raise Halt(
                StopReason(
                    "radius",
                    "this version of DFO-LS takes other steps than the one that wrote the "
                    "checkpoint; start without resume",
                )
            )
        return dialogue

    def _run(
        self,
        evaluate: Evaluate[np.ndarray],
        start: np.ndarray,
        bounds: tuple[np.ndarray, np.ndarray],
    ) -> object:
        """DFO-LS itself; a question is u with its tolerance as the last entry."""
        tolerance = self.model_error * self.radius0**2

        def before(delta: float, rho: float, iteration: int, restarts: int) -> int:
            nonlocal tolerance
            tolerance = max(self.model_error * float(delta) ** 2, LEAST)
            return 1

        low, high = (np.clip(b, -FREE, FREE) for b in bounds)
        return _package().solve(
            lambda u: evaluate(np.append(u, tolerance)),
            start,
            bounds=(low, high),
            rhobeg=self.radius0,
            rhoend=self.radius_end,
            maxfun=NO_LIMIT,
            nsamples=before,
            user_params=dict(SETTINGS),
            do_logging=False,
            print_progress=False,
        )


def _package() -> ModuleType:
    """DFO-LS.

    Raises:
        MissingPropertyError: it is not installed.
    """
    try:
        import dfols
    except ImportError as error:
        raise MissingPropertyError(
            "DFOLS",
            given="no package DFO-LS",
            expected="DFO-LS >= 1.5 (GPL), an optional extra",
            remedy='Run pip install "learnreg[dfols]", or use DFO, which needs no package.',
        ) from error
    return cast(ModuleType, dfols)


def _info(best: Value, evaluations: int, tolerance: float | None) -> Row:
    return {
        "eps": best.eps,
        "delta": None,
        "step_size": None,
        "trials": 0,
        "gradient_norm": None,
        "evaluations": evaluations,
        "tolerance": tolerance,
    }
