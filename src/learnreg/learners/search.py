"""Search without gradients for a few parameters: every point of a grid, random points, or Optuna's
proposals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from types import ModuleType
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from ..core.errors import InputError
from ..core.grants import Grants
from ..core.objective import Halt, Objective, Row, Value, row_of, settled
from ..core.packing import transient
from ..core.ranges import check_number, check_positive, tidy
from ..core.results import StopReason
from .box import Box, Ranges, box_of, check_ranges

LARGEST_GRID = 10**6


NEEDS = Grants.LOSS | Grants.ADAPTIVE
"""Of every search: losses of different theta are compared."""


@dataclass(frozen=True)
class SearchState:
    """Between two points.

    Attributes:
        point: the best theta so far.
        seed: of what is drawn.
        losses: (tried,) of all points so far, in order.
        info: what the record shows; ``tried`` is the loss of the point just evaluated.
        study: a running Optuna study, not part of a checkpoint.
    """

    point: Value
    seed: int
    losses: Tensor
    info: Row
    study: Any = transient()  # an optuna.Study; its class is not there to be named

    @property
    def theta(self) -> Tensor:
        return self.point.theta

    @property
    def tried(self) -> int:
        """How many points were evaluated."""
        return len(self.losses)

    def row(self) -> Row:
        """The best point, and the loss of the latest one."""
        return row_of(self.point, self.info)


@dataclass(frozen=True)
class GridSearch:
    """All points of a regular grid over the box, in an order drawn from the seed; the best one so
    far is kept.

    A step of the run is one solve of all images to eps, from the solution of the best theta so far.
    The random order lets a run that ends early have seen points of the whole box.

    Args:
        box: [lower, upper] of the parameters, or a table by name; needed for every parameter.
        points: per parameter, ends included.
        eps: distance per image.

    Raises:
        InputError: no box, or a value out of range; at the start of a run, a grid of more than a
            million points.
    """

    box: Ranges
    points: int = 9
    eps: float = 1e-2

    def __post_init__(self) -> None:
        tidy(self)
        _check(self)
        check_number("points", self.points, lambda v: v >= 2, "an integer >= 2", integer=True)

    needs: ClassVar[Grants] = NEEDS
    state: ClassVar[type[SearchState]] = SearchState

    def init(self, objective: Objective, theta: Tensor, seed: int = 0) -> SearchState:
        """Solve at theta_0."""
        if self.points ** theta.numel() > LARGEST_GRID:
            raise InputError(
                "points",
                given=f"{self.points} per parameter, {theta.numel()} parameters",
                expected=f"at most {LARGEST_GRID} points in total",
                remedy="Use a learner with gradients for so many parameters.",
            )
        return _first(self, objective, theta, seed)

    def step(self, objective: Objective, state: SearchState) -> SearchState:
        """Evaluate the next point of the grid."""
        d, box = state.theta.numel(), box_of(self.box, objective)
        order = _permutation(self.points**d, state.seed)
        if state.tried >= len(order):
            raise Halt(StopReason("grid", f"all {len(order)} points of the grid were evaluated"))
        number = int(order[state.tried])
        digits = torch.tensor(
            [number // self.points**i % self.points for i in range(d)], dtype=torch.float64
        )
        return _tried(self.eps, objective, state, _inside(box, digits / (self.points - 1)))


@dataclass(frozen=True)
class RandomSearch:
    """Points drawn uniformly from the box; the best one so far is kept (Bergstra and Bengio 2012).

    Args:
        box: [lower, upper] of the parameters, or a table by name; needed for every parameter.
        eps: distance per image.

    Raises:
        InputError: no box, or a value out of range.
    """

    box: Ranges
    eps: float = 1e-2

    def __post_init__(self) -> None:
        tidy(self)
        _check(self)

    needs: ClassVar[Grants] = NEEDS
    state: ClassVar[type[SearchState]] = SearchState

    def init(self, objective: Objective, theta: Tensor, seed: int = 0) -> SearchState:
        """Solve at theta_0."""
        return _first(self, objective, theta, seed)

    def step(self, objective: Objective, state: SearchState) -> SearchState:
        """Evaluate one more point, which depends on the seed and its number only."""
        generator = torch.Generator().manual_seed((state.seed * 1_000_003 + state.tried) % 2**63)
        share = torch.rand(state.theta.numel(), generator=generator, dtype=torch.float64)
        return _tried(self.eps, objective, state, _inside(box_of(self.box, objective), share))


@dataclass(frozen=True)
class OptunaSearch:
    """Optuna's tree-structured Parzen estimator proposes the points (Akiba et al. 2019); an
    optional extra.

    Args:
        box: [lower, upper] of the parameters, or a table by name; needed for every parameter.
        eps: distance per image.

    Raises:
        InputError: no box, a value out of range, or Optuna not installed.
    """

    box: Ranges
    eps: float = 1e-2

    def __post_init__(self) -> None:
        tidy(self)
        _check(self)

    needs: ClassVar[Grants] = NEEDS
    state: ClassVar[type[SearchState]] = SearchState

    def init(self, objective: Objective, theta: Tensor, seed: int = 0) -> SearchState:
        """Solve at theta_0; refused where Optuna is not installed."""
        _optuna()
        return _first(self, objective, theta, seed)

    def step(self, objective: Objective, state: SearchState) -> SearchState:
        """Evaluate the next proposal; a study that is not at hand is told its history first."""
        optuna, box = _optuna(), box_of(self.box, objective)
        study = (
            state.study
            if state.study is not None and len(state.study.trials) == state.tried
            else None
        )
        ranges = {
            str(i): optuna.distributions.FloatDistribution(low, high)
            for i, (low, high) in enumerate(
                zip(box.lower.tolist(), box.upper.tolist(), strict=True)
            )
        }
        if study is None:
            study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=state.seed))
            for loss in state.losses.tolist():
                study.tell(study.ask(ranges), loss)
        trial = study.ask(ranges)
        theta = torch.tensor(
            [trial.params[str(i)] for i in range(len(ranges))], dtype=torch.float64
        )
        found = _tried(self.eps, objective, replace(state, study=study), theta)
        study.tell(trial, float(found.losses[-1]))
        return found


@cache
def _permutation(count: int, seed: int) -> Tensor:
    """The order of the grid."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def _optuna() -> ModuleType:
    try:
        import optuna
    except ImportError as error:
        raise InputError(
            "OptunaSearch",
            given="no package optuna",
            expected="Optuna to be installed",
            remedy="Install it: pip install 'learnreg[optuna]'.",
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return cast(ModuleType, optuna)


def _check(learner: GridSearch | RandomSearch | OptunaSearch) -> None:
    """What the searches share."""
    if learner.box is None:
        raise InputError(
            "box",
            given=None,
            expected="[lower, upper] for every parameter",
            remedy="For example box=[-7, 7].",
        )
    check_ranges("box", learner.box)
    check_positive("eps", learner.eps)


def _inside(box: Box, share: Tensor) -> Tensor:
    """The point at ``share`` in [0, 1]^d of the box."""
    return box.project(box.lower + share.to(box.lower) * (box.upper - box.lower)).cpu()


def _first(
    learner: GridSearch | RandomSearch | OptunaSearch,
    objective: Objective,
    theta: Tensor,
    seed: int,
) -> SearchState:
    """theta_0, the best point so far."""
    if not box_of(learner.box, objective).bounded:
        raise InputError(
            "box",
            given="a parameter without finite bounds",
            expected="[lower, upper] for every parameter",
        )
    point = objective.evaluate(theta, learner.eps)
    return SearchState(point, seed, torch.zeros(0, dtype=torch.float64), _info(point, None))


def _info(point: Value, loss: float | None) -> Row:
    return {
        "eps": point.eps,
        "delta": None,
        "step_size": None,
        "trials": 0 if loss is None else 1,
        "tried": loss,
    }


def _tried(eps: float, objective: Objective, state: SearchState, theta: Tensor) -> SearchState:
    """The state with one more theta; a theta at which the lower level cannot be solved has an
    infinite loss.
    """
    point = objective.trial(theta.to(state.theta), eps, state.point)
    loss = math.inf if point is None else settled(point).loss
    best = state.point
    if point is not None and (best.failed or loss < best.loss):
        best = point
    losses = torch.cat([state.losses.cpu(), torch.tensor([loss], dtype=torch.float64)])
    return replace(
        state, point=best, losses=losses, info=_info(best, loss if math.isfinite(loss) else None)
    )
