"""L-BFGS-B on implicit hypergradients: every lower level solved to one accuracy, SciPy decides the
steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from ..core.grants import Grants
from ..core.objective import Halt, Objective, Row, Value, row_of, settled
from ..core.packing import transient
from ..core.ranges import check_number, check_positive, tidy
from ..core.results import Hypergradient, StopReason
from .box import Ranges, box_of, check_ranges
from .inverted import Evaluate, Inverted

_Answer: TypeAlias = tuple[float, np.ndarray]
"""Value and gradient, as SciPy takes them."""


@dataclass(frozen=True)
class _Log:
    """Everything that SciPy was told, in units: with it a run can be brought back to where it was.

    Attributes:
        units: (d,) float64, theta is units times a point; those of the start, also where the run
            goes on in float64.
        start: (d,) float64.
        points, gradients: (m, d) float64.
        values: (m,) float64.
    """

    units: Tensor
    start: Tensor
    points: Tensor
    values: Tensor
    gradients: Tensor

    def __post_init__(self) -> None:
        for name in ("units", "start", "points", "values", "gradients"):  # SciPy lives on the host
            object.__setattr__(self, name, vars(self)[name].cpu())

    @classmethod
    def empty(cls, objective: Objective) -> Self:
        units = objective.units.double().cpu()
        none = torch.zeros(0, units.numel(), dtype=torch.float64)
        return cls(
            units,
            objective.theta.double().cpu() / units,
            none,
            torch.zeros(0, dtype=torch.float64),
            none,
        )

    def __len__(self) -> int:
        return len(self.values)

    def add(self, point: Tensor, value: float, gradient: Tensor) -> _Log:
        values = torch.cat([self.values, torch.tensor([value], dtype=torch.float64)])
        return replace(
            self,
            points=torch.cat([self.points, point[None]]),
            values=values,
            gradients=torch.cat([self.gradients, gradient[None]]),
        )

    def rows(self) -> Iterator[tuple[np.ndarray, float, np.ndarray]]:
        """(point, value, gradient) in the order in which they were asked for."""
        return zip(self.points.numpy(), self.values.tolist(), self.gradients.numpy(), strict=True)


@dataclass(frozen=True)
class LBFGSBState:
    """Between two moves.

    Attributes:
        point: theta_k with its solution.
        adjoint: (b, ...), the latest q.
        log: what SciPy knows.
        moves: how often it has moved.
        info: what the record shows.
        dialogue: the running SciPy, not part of a checkpoint.
    """

    point: Value
    adjoint: Tensor | None
    log: _Log
    moves: int
    info: Row
    dialogue: Inverted[_Answer] | None = cast(None, transient())

    @property
    def theta(self) -> Tensor:
        return self.point.theta

    def row(self) -> Row:
        """The point, and how the step was made."""
        return row_of(self.point, self.info)


@dataclass(frozen=True)
class LBFGSB:
    """SciPy's L-BFGS-B with box constraints, fed with losses and implicit hypergradients at one
    fixed accuracy.

    Its line search takes losses and gradients for exact, so eps and delta must be small enough in
    advance: where they are not, it ends early, which the record shows. No decrease is certified.
    Theta is scaled by its natural units. Source of the method: Byrd, Lu, Nocedal, Zhu, SIAM J. Sci.
    Comput. 16, 1995.

    Args:
        eps: distance per image.
        delta: residual of the linear systems per image.
        memory: curvature pairs.
        box: [lower, upper] of the parameters, or a table by name.
        loss_tolerance: stop when the decrease of the loss, relative to max(loss, 1), is below
            (``ftol``).
        gradient_tolerance: stop when the projected gradient is below in every entry, in units
            (``gtol``).

    Raises:
        InputError: a value out of range.
    """

    eps: float = 1e-3
    delta: float = 1e-3
    memory: int = 20
    box: Ranges = None
    loss_tolerance: float = 1e-10
    gradient_tolerance: float = 1e-8

    def __post_init__(self) -> None:
        tidy(self)
        check_positive("eps", self.eps)
        check_positive("delta", self.delta)
        check_number("memory", self.memory, lambda v: v >= 1, "an integer >= 1", integer=True)
        check_ranges("box", self.box)
        check_number("loss_tolerance", self.loss_tolerance, lambda v: v >= 0, "a number >= 0")
        check_number(
            "gradient_tolerance", self.gradient_tolerance, lambda v: v >= 0, "a number >= 0"
        )

    needs: ClassVar[Grants] = Grants.LOSS | Grants.GRADIENT
    state: ClassVar[type[LBFGSBState]] = LBFGSBState

    def init(self, objective: Objective, theta: Tensor, seed: int = 0) -> LBFGSBState:
        """Solve at theta_0; nothing is drawn at random."""
        box_of(self.box, objective)
        point = objective.evaluate(theta, self.eps)
        info = {
            "eps": self.eps,
            "delta": self.delta,
            "step_size": None,
            "trials": 0,
            "gradient_norm": None,
        }
        return LBFGSBState(point, None, _Log.empty(objective), 0, info)

    def step(self, objective: Objective, state: LBFGSBState) -> LBFGSBState:
        """Evaluate until SciPy moves to another theta."""
        units, log, adjoint = state.log.units, state.log, state.adjoint
        dialogue = self._dialogue(objective, state)
        latest, trials, norm = state.point, 0, None
        while (x := dialogue.ask()) is not None and dialogue.moves <= state.moves:
            theta = (torch.from_numpy(x) * units).to(state.theta) if len(log) else state.theta
            found = self._evaluate(objective, theta, latest, adjoint)
            trials += 1
            if found is None:
                if not len(log):
                    raise Halt(
                        StopReason(
                            "not_finite",
                            "the lower level could not be solved and differentiated at the "
                            "present parameters",
                        )
                    )
                value, gradient = _wall(x, log, dialogue.accepted)
            else:
                latest, z = found
                adjoint, norm, value, gradient = (
                    z.adjoint,
                    z.norm,
                    latest.loss,
                    (units * z.value.double().cpu()),
                )
            log = log.add(torch.from_numpy(x), value, gradient)
            dialogue.tell((value, gradient.numpy()))
        if dialogue.moves <= state.moves:
            ended = dialogue.result
            code = (
                "line_search"
                if ended.status == 2
                else "small_progress"
                if "REDUCTION" in str(ended.message)
                else "stationary"
            )
            raise Halt(StopReason(code, f"L-BFGS-B ended: {ended.message}"))
        assert dialogue.accepted is not None
        theta = (torch.from_numpy(dialogue.accepted) * units).to(state.theta)
        if not torch.equal(theta, latest.theta):  # SciPy went back to an earlier point
            latest = settled(objective.evaluate(theta, self.eps, latest))
        move = float(((theta - state.theta).cpu().double() / units).norm())
        info = {
            "eps": self.eps,
            "delta": self.delta,
            "step_size": move,
            "trials": trials,
            "gradient_norm": norm,
        }
        return LBFGSBState(latest, adjoint, log, state.moves + 1, info, dialogue)

    def _evaluate(
        self, objective: Objective, theta: Tensor, near: Value, adjoint: Tensor | None
    ) -> tuple[Value, Hypergradient] | None:
        """(Value, Hypergradient) at theta; None where the lower level cannot be solved."""
        same = torch.equal(theta, near.theta)
        point = objective.refine(near, self.eps) if same else objective.trial(theta, self.eps, near)
        if point is None or point.failed:
            return None
        z = objective.gradient(settled(point), self.delta, adjoint, "none")
        return (point, z) if torch.isfinite(z.value).all() else None

    def _dialogue(self, objective: Objective, state: LBFGSBState) -> Inverted[_Answer]:
        """SciPy at the point where the state left it: the one that is running, or a new one that is
        told the log.
        """
        running = state.dialogue
        if running is not None and running.told == len(state.log) and running.moves >= state.moves:
            return running
        box, units = box_of(self.box, objective), state.log.units
        bounds = list(
            zip((box.lower.cpu() / units).tolist(), (box.upper.cpu() / units).tolist(), strict=True)
        )
        start = state.log.start.numpy()
        options = {
            "maxcor": self.memory,
            "ftol": self.loss_tolerance,
            "gtol": self.gradient_tolerance,
            "maxiter": 10**9,
            "maxfun": 10**9,
        }

        def run(evaluate: Evaluate[_Answer], accept: Callable[[np.ndarray], None]) -> object:
            from scipy.optimize import minimize

            return minimize(
                evaluate,
                start,
                jac=True,
                method="L-BFGS-B",
                bounds=bounds,
                options=options,
                callback=accept,
            )

        dialogue = Inverted(run)
        if not dialogue.replay((x, (value, gradient)) for x, value, gradient in state.log.rows()):
            raise Halt(
                StopReason(
                    "line_search",
                    "this version of SciPy takes other steps than the one that "
                    "wrote the checkpoint; start without resume",
                )
            )
        return dialogue


def _wall(x: np.ndarray, log: _Log, origin: np.ndarray | None) -> tuple[float, Tensor]:
    """What stands for a theta at which nothing can be solved: a paraboloid through the origin of
    the line search.

    Its value and gradient there are the true ones, and at x it has risen by as much as the gradient
    promised to fall, so that no line search accepts x, and the next trial is a quarter of the way
    there.
    """
    k = 0
    if origin is not None:
        known = (log.points == torch.from_numpy(origin)).all(dim=1).nonzero()
        k = int(known[-1]) if len(known) else 0
    away, slope = torch.from_numpy(x) - log.points[k], log.gradients[k]
    fall, length = float(slope @ away), float(away @ away)
    curvature = 2 * max(abs(fall), 1e-12 * float(log.values[k])) / max(length, 1e-300)
    return float(log.values[k]) + fall + curvature * length, slope + 2 * curvature * away
