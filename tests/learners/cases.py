"""Small learning problems whose exact loss is known, and a learner that can be watched."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import deepinv
import torch
from torch import Tensor

from learnreg.core.grants import Grants
from learnreg.core.objective import Learner, Objective, State
from learnreg.data import Pairs, pairs
from learnreg.problems import BilevelProblem, Energy, gallery
from learnreg.regularizers import TV, FoE, Regularizer
from learnreg.runs import Budget, Run, learn
from learnreg.runs.checkpoint import FILE
from learnreg.solvers import solve

CLOCKS = {"seconds", "cpu_seconds"}

GALLERY = {
    "quadratic": lambda: gallery.quadratic(images=3, n=6, d=3, condition=50.0),
    "spectrum": lambda: gallery.spectrum_quadratic(10.0, n=12),
    "two_pixels": lambda: gallery.scalar_tv(),
}
IMAGES: dict[str, Callable[[], Regularizer]] = {
    "TV": lambda: TV(),
    "FoE": lambda: FoE(filters=3, size=3),
}


class Plain(SimpleNamespace):
    """Ground truth x and measurements y, without any check."""

    def __len__(self) -> int:
        return len(self.x)


@cache
def phantoms() -> tuple[Pairs, Pairs]:
    """Two training pictures and two to test on, 24 x 24, float32."""
    return pairs("phantoms", denoising(), size=24, split=(2, 2), seed=0)


def denoising() -> torch.nn.Module:
    return deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1))


def pictures(regularizer: Regularizer | None = None, data: object = None) -> BilevelProblem:
    """Denoising of the phantoms, with TV unless another regularizer is given."""
    return BilevelProblem(
        Energy(denoising(), regularizer or TV()), phantoms()[0] if data is None else data
    )


class Watched:
    """A learner that keeps its states; their ``last`` holds theta_k and z_k of the step that led to
    them.
    """

    def __init__(self, learner: Learner[State]) -> None:
        self.learner, self.states = learner, []
        self.state: type[State] = learner.state

    def __repr__(self) -> str:
        return repr(self.learner)

    @property
    def needs(self) -> Grants:
        return self.learner.needs

    def init(self, objective: Objective, theta: Tensor, seed: int = 0) -> State:
        self.states = [self.learner.init(objective, theta, seed)]
        return self.states[0]

    def step(self, objective: Objective, state: State) -> State:
        self.states = self.states or [state]  # a resumed run begins with a step
        self.states.append(self.learner.step(objective, state))
        return self.states[-1]


def run(problem: BilevelProblem, learner: object, *, steps: int = 100, **arguments: object) -> Run:
    """``learn`` with a budget of steps, unless another one is given; ``resume`` where there is
    something to resume.
    """
    folder = arguments.get("checkpoint")
    if arguments.get("resume") and folder is not None:
        arguments["resume"] = (Path(str(folder)) / FILE).exists()
    return learn(problem, learner, **{"budget": Budget(steps=steps), **arguments})


def exact_loss(problem: BilevelProblem, theta: Tensor) -> float:
    """f(theta) in float64: in closed form, or by solving to 1e-10 (off by less than 1e-9)."""
    if hasattr(problem, "exact_loss"):
        return problem.exact_loss(theta)
    energy = problem.energy.with_theta(theta.double())
    x = solve(energy, problem.pairs.y.double(), 1e-10).value
    return float(problem.loss.value(x, problem.pairs.x.double()).mean())


def slack(problem: BilevelProblem) -> float:
    """How far ``exact_loss`` can be off: a few roundings of a loss of order one, or the tight
    solve.
    """
    return 1e-14 if hasattr(problem, "exact_loss") else 1e-9


def assert_certified(
    problem: BilevelProblem, watched: Watched, outcome: Run, losses: list[float]
) -> None:
    """Every row brackets its exact loss, and every step decreased it as much as the learner
    promises.
    """
    off, promised = slack(problem), watched.learner.sufficient
    assert len(losses) == len(outcome.record.rows) == len(outcome.thetas)
    for row, loss in zip(outcome.record.rows, losses, strict=True):
        assert row["lower"] - off <= loss <= row["upper"] + off, row
        assert row["lower"] - off <= row["loss"] <= row["upper"] + off
    for k, state in enumerate(watched.states[1:]):
        theta, z = state.last.double()
        decrease = float((theta - state.point.theta.double()) @ z)  # alpha <d, z>
        assert decrease > 0
        assert losses[k] - losses[k + 1] >= promised * decrease - 2 * off, (k, decrease)


def without_clocks(rows: object) -> list[dict]:
    """Rows of a record but for the two columns that no two runs share."""
    return [{name: value for name, value in row.items() if name not in CLOCKS} for row in rows]


def assert_same(one: Run, two: Run) -> None:
    """Bitwise the same run, clocks aside."""
    assert without_clocks(one.record.rows) == without_clocks(two.record.rows)
    assert one.theta.dtype == two.theta.dtype
    assert one.theta.equal(two.theta) and one.thetas.equal(two.thetas)
